"""Regression, several labels per row, and entities: against the libraries that define their metrics."""

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import f1_score, log_loss, mean_absolute_error, r2_score, root_mean_squared_error

from lc_ray.errors import DataError, SpecError
from lc_ray.modalities import _text
from lc_ray.spec import TaskSpec
from lc_ray.tasks import multilabel, regression, token_classification

RANDOM = np.random.default_rng(0)


def fit(kind, targets, **options):
    return kind.Task.fit(targets, kind.Task.options(TaskSpec(kind="any", **options)), {})


@pytest.mark.parametrize("unit", [1, 1e-9])
def test_regression_has_the_targets_unit(unit):
    targets = (unit * RANDOM.normal(200, 40, 50)).tolist()
    task = fit(regression, targets)
    guesses = unit * RANDOM.normal(200, 40, 50)
    scores = [np.array([(g - task.mean) / task.std], np.float32) for g in guesses]
    found = task.metrics(scores, [task.encode(t) for t in targets])
    assert found["mae"] == pytest.approx(mean_absolute_error(targets, guesses), rel=1e-4)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(targets, guesses), rel=1e-4)
    assert found["r2"] == pytest.approx(r2_score(targets, guesses), rel=1e-3)
    assert task.decode(scores[0], {})["value"] == pytest.approx(guesses[0], rel=1e-4)
    assert task.collate([task.encode(t) for t in targets]).std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("guesses", [[7.0, 7.0], [7.0, 9.0], [7.0], [9.0]])
def test_targets_that_are_all_equal_have_no_boundless_r2(guesses):
    task, targets = fit(regression, [1.0, 7.0]), [7.0] * len(guesses)
    found = task.metrics([np.array([task.encode(guess)], np.float32) for guess in guesses], [task.encode(target) for target in targets])
    assert found["r2"] == (1.0 if guesses == targets else 0.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *(("", "missing"), (None, "missing"), ("tall", "not a number"), (float("inf"), "not a finite"), ([1], "not a number")),
        *(("1,234.5", "not a number"), (b"2020_01", "not a number"), (10**400, "not a number")),
    ],
)
def test_bad_numbers_are_told_apart(value, reason):
    with pytest.raises(DataError, match=reason):
        regression.Task.clean(value)


@pytest.mark.parametrize(("text", "number"), [("1,5", 1.5), ("-1.234,5", -1234.5), (b"12345,678 ", 12345.678), ("1.5", 1.5), ("1,234", None)])
def test_decimal_commas(text, number):
    """As Excel writes them in most of Europe; with three digits behind, one may be for thousands."""
    if number is None:
        with pytest.raises(DataError, match="not a number"):
            regression.Task.clean(text)
    else:
        assert regression.Task.clean(text) == number


def test_equal_targets_teach_nothing():
    with pytest.raises(DataError, match="all training targets are equal"):
        fit(regression, [0.1] * 10)
    for targets in ([1e200, 2e200], [1e-200, 2e-200]):
        with pytest.raises(DataError, match="can't be standardised"):
            fit(regression, targets)


def test_multilabel_metrics_are_those_of_scikit_learn():
    task = multilabel.Task(["a", "b", "c"])
    logits = RANDOM.normal(size=(60, 3)).astype(np.float32)
    truth = (RANDOM.random((60, 3)) < 0.4).astype(float)
    found = task.metrics(list(logits), truth.tolist())
    chosen = logits > 0
    assert found["micro_f1"] == pytest.approx(f1_score(truth, chosen, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, chosen, average="macro"))
    assert found["exact_match"] == pytest.approx((chosen == truth).all(1).mean())
    flat = 1 / (1 + np.exp(-logits.astype(float).ravel()))
    assert found["log_loss"] == pytest.approx(log_loss(truth.ravel(), flat), rel=1e-5)
    answer = task.decode(np.array([2.0, -1.0, 0.5]), {})
    assert answer["labels"] == ["a", "c"]
    assert task.mistake(answer, ["a", "c"]) is None
    assert task.mistake(answer, ["c"]) == pytest.approx(answer["probabilities"]["a"])


def test_labels_come_in_several_forms_and_rare_ones_may_weigh_more():
    forms = (["b", "a"], "a | b", np.array(["a", "b"]), b'["b", "a"]', "['a', 'b']", "", [], "[]")
    assert [multilabel.Task.clean(v) for v in forms] == [["a", "b"]] * 5 + [[]] * 3
    assert multilabel.Task.clean([0, 1]) == ["0", "1"]
    rows = [["a"], ["a"], ["a", "b"], []]
    assert fit(multilabel, rows).weights is None
    assert fit(multilabel, rows, class_weights="balanced").weights == [1.0, 3.0]
    bad = [(None, "labels missing"), (float("nan"), "labels missing"), (b"\xff", "not valid UTF-8"), ([0, 1, 1], "a 0 or 1 per label")]
    bad += [(hot, "a 0 or 1 per label") for hot in ([0, 0], [1.0, 1.0], "0,1,0")]  # of two labels; [0, 1] may be their numbers
    for value, reason in [*bad, ("['a' 'b']", "not valid JSON"), ("[a, b]", "not valid JSON"), ("[" * 9999, "not valid JSON")]:
        with pytest.raises(DataError, match=reason):
            multilabel.Task.clean(value)
    with pytest.raises(DataError, match="never seen"):
        fit(multilabel, rows).encode(["z"])
    assert [multilabel.Task.clean(numbers) for numbers in ("2,14", b"14; 2", [2, 14])] == [["14", "2"]] * 3
    assert multilabel.Task.clean([{"id": 1, "name": "Drama"}, {"label": "War"}]) == ["Drama", "War"]
    for several, parts in (("b, a", r"b\|a"), ("b;a", r"b\|a")):
        with pytest.raises(DataError, match=f"seems to be 2 labels\n.*'{parts}'"):
            fit(multilabel, [*rows, [several]])
    assert fit(multilabel, [*rows, ["a, or else"]]).labels == ["a", "a, or else", "b"]


TAGS = ["B-loc", "B-per", "I-loc", "I-per", "O"]


def test_entity_metrics_are_those_of_seqeval():
    task = token_classification.Task(TAGS)
    truth = [RANDOM.integers(5, size=n).tolist() for n in RANDOM.integers(1, 12, 80)]
    logits = [RANDOM.normal(size=(len(row) + 2, 5)) + 2 * np.eye(5)[[*row, 4, 4]] for row in truth]  # longer than the words: padding
    words = [[TAGS[i] for i in row] for row in truth]
    guess = [[TAGS[i] for i in x[: len(row)].argmax(-1)] for x, row in zip(logits, truth, strict=True)]
    found = task.metrics(logits, truth)
    assert 0.1 < found["f1"] < 0.95
    for name, reference in (("f1", entity_f1), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(reference(words, guess)), name


def test_words_that_were_cut_off_count_as_outside():
    task = token_classification.Task(TAGS)
    short = [np.eye(5)[[1]] * 9]  # one word, of three
    found = task.metrics(short, [[1, 3, 0]])
    assert found["recall"] == 0
    assert found["word_accuracy"] == pytest.approx(1 / 3)
    loss = task.loss(torch.eye(5)[None, [1]] * 50, task.collate([[1, 3, 0]]))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_words_that_were_cut_off_count_as_little_beside_a_row_of_which_more_are_read():
    task = token_classification.Task(TAGS)
    inputs = {"words.starts": torch.tensor([[1, -1, -1], [1, 2, 3], [-1, -1, -1]])}  # of three words each
    encoded, logits = [[1, 3, 0]] * 3, np.eye(5, dtype=np.float32)[[1, 3, 0]] * 50
    _, targets = task.teach(inputs, task.collate(encoded), torch.Generator(), training=True)
    assert [(row >= 0).sum().item() for row in targets] == [1, 3, 1]
    wrong = torch.from_numpy(np.stack([logits[[0, 0, 0]], logits, logits]))  # behind the first row's only word
    assert task.loss(wrong, targets).item() == pytest.approx(0, abs=1e-6)
    answers = task.answer(lambda batch: wrong.numpy(), inputs)
    assert [len(answer) for answer in answers] == [1, 3, 1]
    assert task.decode(answers[0], {"words": {"words": ["Ann ", "Lee ", "Bonn"]}})["tags"] == ["B-per", "O", "O"]


def test_entities_are_decoded_with_where_they_are_in_the_text():
    task = token_classification.Task(TAGS)
    text = "\n👨‍👩‍👧 Ann  Lee\nin 'Bonn'\u200b"
    pieces = _text.pieces(text)
    answer = task.decode(np.eye(5)[[4, 1, 3, 4, 4, 0, 4]] * 9, {"words": {"words": pieces}})
    assert [(e["type"], e["text"]) for e in answer["entities"]] == [("per", "Ann  Lee"), ("loc", "Bonn")]
    assert [text[e["start"] : e["end"]] for e in answer["entities"]] == ["Ann  Lee", "Bonn"]
    assert answer["words"] == ["👨‍👩‍👧", "Ann", "Lee", "in", "'", "Bonn", "'"]
    assert answer["tags"] == ["O", "B-per", "I-per", "O", "O", "B-loc", "O"]
    assert task.mistake(answer, answer["tags"]) is None
    assert task.mistake(answer, ["O", "O", "O", "O", "O", "B-loc", "O"]) > 0.9
    assert task.mistake(answer, ["O", "B-per", "I-per", "B-loc", "O", "B-loc", "O"]) is not None


def test_tags_come_in_several_forms_and_inner_ones_are_known():
    assert [token_classification.Task.clean(v) for v in (["O", "B-x"], '["O", "B-x"]', "O B-x", b"O B-x")] == [["O", "B-x"]] * 4
    assert fit(token_classification, [["O", "B-x"]]).labels == ["B-x", "I-x", "O"]
    with pytest.raises(DataError, match=r"tags are numbers without names \(0, 3\)"):
        fit(token_classification, [["0", "3"], ["0"]])
    for bad, reason in ((None, "missing"), (float("nan"), "missing"), ("[1", "not valid JSON"), (7, "not a list")):
        with pytest.raises(DataError, match=reason):
            token_classification.Task.clean(bad)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("I-x I-x B-x O I-y", [("x", 0, 2), ("x", 2, 3), ("y", 4, 5)]),  # IOB1
        ("S-x B-y E-y B-y I-y E-y E-x", [("x", 0, 1), ("y", 1, 3), ("y", 3, 6), ("x", 6, 7)]),  # BIOES
        ("U-x B-y L-y U-y", [("x", 0, 1), ("y", 1, 3), ("y", 3, 4)]),  # BILOU
        ("NOUN NOUN VERB B-x PRON-a", [("NOUN", 0, 2), ("VERB", 2, 3), ("x", 3, 4), ("PRON-a", 4, 5)]),
    ],
)
def test_entities_of_other_schemes(tags, found):
    assert token_classification.entities(tags.split()) == found


def test_every_word_has_a_tag():
    token_classification.Task.check(["O", "O"], {"words": ["a", "b"]})
    with pytest.raises(DataError, match="1 tags for 2 words"):
        token_classification.Task.check(["O"], {"words": ["a", "b"]})
    with pytest.raises(SpecError, match="modality `words`"):
        token_classification.Task.check(["O"], {"text": "a"})


def test_an_unknown_option_of_a_task_is_an_error():
    with pytest.raises(SpecError, match=r"task.class_weight: unknown field \(did you mean 'class_weights'"):
        fit(multilabel, [["a"]], class_weight="balanced")
    with pytest.raises(SpecError, match=r"task\.class_weights"):
        fit(multilabel, [["a"]], class_weights="some")


TEXT, TAGGED = "Ann Lee saw  Rome.", ["B-PER", "I-PER", "O", "B-LOC", "O"]


@pytest.mark.parametrize(
    "cell",
    [
        [[0, 7, "PER"], [13, 17, "LOC"]],  # Doccano's
        {"entities": [[13, 17, "LOC"], [0, 7, "PER"], [0, 3, "NAME"]]},  # spaCy's; of two that overlap the longer
        [{"start_offset": 0, "end_offset": 7, "label": "PER", "id": 1}, {"start_offset": 13, "end_offset": 17, "label": "LOC", "id": 2}],
        [{"start": 0, "end": 7, "labels": ["PER"]}, {"start": 13, "end": 17, "labels": ["LOC"]}],
        [{"result": [{"value": {"start": s, "end": e, "labels": [k]}} for s, e, k in ((0, 7, "PER"), (13, 17, "LOC"))]}],  # Label Studio's
        '[{"start": 0, "end": 7, "label": "PER"}, {"start": 13, "end": 17, "label": "LOC"}]',
    ],
)
def test_spans_of_characters_are_tags_of_words(cell):
    task = token_classification.Task
    assert task.clean(task.placed(cell, [TEXT])) == task.clean(task.placed(cell, [TEXT.encode()])) == TAGGED
    assert {"B-PER", "B-LOC", "O"} <= set(task.clean(cell)), "without the text, as a preflight reads many"
    with pytest.raises(DataError, match="give the text"):
        task.placed(cell, [TEXT.split()])
    with pytest.raises(DataError, match="no word between the characters"):
        task.placed(cell, ["Ann"])


def test_spans_of_a_text_without_blanks_are_all_kept():
    task = token_classification.Task(["B-LOC", "B-PER", "I-LOC", "I-PER", "O"])
    text = "小明今天去东京タワー, with Ann"
    tags = task.clean(task.placed([[0, 2, "PER"], [5, 10, "LOC"], [17, 20, "PER"]], [text]))
    words = _text.pieces(text)
    assert " ".join(tags) == "B-PER I-PER O O O B-LOC I-LOC I-LOC I-LOC I-LOC O O B-PER"
    task.check(tags, {"text": words})
    answer = task.decode(np.eye(5)[task.encode(tags)] * 9, {"text": {"words": words}})
    assert [(e["type"], e["text"]) for e in answer["entities"]] == [("PER", "小明"), ("LOC", "东京タワー"), ("PER", "Ann")]


def test_chinese_whose_words_blanks_part_has_a_tag_for_each():
    text = "昨天 在 北京 with Ann"
    words = [word[0] for word in _text.words(text)]
    assert words == ["昨天", "在", "北京", "with", "Ann"]
    token_classification.Task.check(["O", "O", "B-LOC", "O", "B-PER"], {"text": words})
    task = token_classification.Task(["B-LOC", "B-PER", "O"])
    assert task.placed([[5, 7, "LOC"]], [text]) == ["O", "O", "B-LOC", "O", "O"]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-a O I-b", "B-a I-a I-a O I-b I-b"),
        ("S-a O E-b", "B-a I-a E-a O I-b E-b"),
        ("U-a O L-b", "B-a I-a L-a O I-b L-b"),
        ("NOUN O X", "NOUN NOUN NOUN O X X"),
        ("O O O O", "O O O O"),  # not as many as what blanks part, and refused
    ],
)
def test_tags_of_what_blanks_part_are_those_of_all_its_words(tags, found):
    task = token_classification.Task
    assert task.placed(tags, ["Rome/Oslo or Bonn."]) == task.placed(tags.split(), [b"Rome/Oslo or Bonn."]) == found.split()
    before, after = ([kind for kind, *_ in token_classification.entities(of.split())] for of in (tags, found))
    assert before == after
    assert task.placed(tags.split(), ['["Rome/Oslo", "or", "Bonn."]']) == tags.split(), "of words that are given each is one"


def test_texts_without_spans_and_tags_without_a_text():
    task = token_classification.Task
    assert task.placed([], [TEXT]) == ["O"] * 5
    assert task.placed(["O"], [["Ann"]]) == ["O"]
    for cell in ([], None):
        with pytest.raises(DataError, match="tags missing"):
            task.clean(task.placed(cell, [["Ann"]]))
    with pytest.raises(DataError, match="without start, end and label"):
        task.placed([{"start": 0, "label": "PER"}], [TEXT])
