import json

import pytest
from artifacts import save

import lc_ray
from lc_ray.errors import DataError
from lc_ray.evaluate import labelled
from lc_ray.evaluate.labelled import evaluate
from lc_ray.models import load
from lc_ray.predictor import Predictor
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks.classification import Task


@pytest.fixture(scope="module")
def model(tiny_artifact):
    return lc_ray.load(tiny_artifact, threads=1)


def test_every_usable_row_counts(model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\ngood,positive\nbad,negative\n,negative\nok,\nday,neutral\n", "utf-8")
    found = evaluate(model, str(file), "label")
    answers = [a["label"] for a in model.predict(["good", "bad", "day"])]
    right = sum(a == b for a, b in zip(answers, ["positive", "negative", "neutral"], strict=True))
    assert (found["rows"], found["rejected"]) == (3, 2)
    assert found["accuracy"] == pytest.approx(right / 3)


def test_few_rows_are_in_memory_at_a_time(model, tiny_rows, monkeypatch):
    whole, scores, held = evaluate(model, str(tiny_rows), "label"), model.scores, []
    monkeypatch.setattr(labelled, "_ROWS", 50)
    monkeypatch.setattr(model, "scores", lambda rows: held.append(len(rows["_size"])) or scores(rows))
    assert evaluate(model, str(tiny_rows), "label") == pytest.approx(whole, abs=1e-5)
    assert (max(held), sum(held)) == (50, whole["rows"])


def test_an_unknown_label_says_where(model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\ngood,positive\nbad,negativ\n", "utf-8")
    with pytest.raises(DataError, match=r"rows\.csv, row 1: label 'negativ' was never seen.*\n.*did you mean 'negative'"):
        evaluate(model, str(file), "label")


def test_the_label_needs_a_column(model, tiny_rows):
    with pytest.raises(DataError, match="the column that holds the label"):
        evaluate(model, str(tiny_rows), "")


def test_words_without_a_tag_each_are_rejected(model, tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\ngood,positive\nbad,negative\n", "utf-8")

    def check(target, values):
        if values["text"] == "bad":
            raise DataError("does not fit")

    monkeypatch.setattr(model.task, "check", check)
    assert evaluate(model, str(file), "label")["rejected"] == 1


def test_a_column_that_rows_may_lack_counts_wherever_it_begins(tiny_base, tmp_path):
    text = InputSpec(column="text", base=str(tiny_base), max_length=8, optional=False)
    inputs = [text, InputSpec(column="cell", modality="tabular", optional=True)]
    task = Task(["no", "yes"])
    model = Predictor(save(tmp_path / "model", load.pretrained(ModelSpec(), inputs, task), task, inputs), 1)
    seen = []
    decode = model.decode
    model.decode = lambda *given: seen.append(decode(*given)) or seen[-1]
    plain = {"text": "good", "label": "yes"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*[plain] * 130, plain | {"cell": 3}]), "utf-8")
    assert evaluate(model, str(file), "label")["rows"] == 131
    assert [row["cell"] for row in seen[-2:]] == [None, "3"]
    (tmp_path / "rows.csv").write_text("text,label\ngood,yes\n", "utf-8")
    assert evaluate(model, str(tmp_path / "rows.csv"), "label")["rows"] == 1
    (tmp_path / "rows.csv").write_text("text,Cell,label\ngood,3,yes\n", "utf-8")
    with pytest.raises(DataError, match=r"no column 'cell'; there are: text, Cell, label\n.*add it, empty"):
        evaluate(model, str(tmp_path / "rows.csv"), "label")


def test_nothing_usable(model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n,x\n", "utf-8")
    with pytest.raises(DataError, match=r"no row can be used \(1 rejected; text: empty text\)"):
        evaluate(model, str(file), "label")


def test_a_missing_column(model, tiny_rows):
    with pytest.raises(DataError, match=r"no column 'stars'; there are: text, label\n.*--target"):
        evaluate(model, str(tiny_rows), "stars")


def test_how_far_it_is_is_told(model, tiny_rows, monkeypatch):
    monkeypatch.setattr(labelled, "_ROWS", 200)
    told = []
    evaluate(model, str(tiny_rows), "label", told=told.append)
    assert told == [200, 400, 480]
