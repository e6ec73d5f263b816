"""Ray Data's stage on small files: what is read, set aside, split and written."""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from lc_ray import spec
from lc_ray.data import prepare as prepares
from lc_ray.data import read
from lc_ray.data.cells import order
from lc_ray.data.prepare import prepare
from lc_ray.data.sides import Side
from lc_ray.errors import DataError
from lc_ray.section import override
from lc_ray.spec import digest
from lc_ray.storage import StoragePath
from lc_ray.tasks import image_generation
from lc_ray.tasks.classification import Task

pytestmark = pytest.mark.cluster
TEXTS = [f"{a} {b} {c}" for a in ("good", "bad", "late") for b in ("flight", "day", "service") for c in ("was", "ok", "love", "hate")]
ROWS = [(text, "xy"[i % 2]) for i, text in enumerate(TEXTS)]


@pytest.fixture
def job(ray_local, tiny_base, tmp_path):
    """job(rows or path, **values) → JobSpec."""

    def job(rows, validation="25%", **values):
        file = rows
        if isinstance(rows, list):
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows), "utf-8")
        data = {"train": str(file), "validation": validation, "inputs": [{"column": "text", "max_length": 8}], "target": "label"}
        tree = {"model": {"base": str(tiny_base)}, "data": data, "storage": str(tmp_path / "runs")}
        return spec.parse(override(tree, values))

    return job


def texts(prepared, split):
    return prepared.rows(split)["text.text"]


def test_rows_are_split_tokenised_and_kept_once(job):
    asked = job(ROWS)
    (first, reused), (again, reused_again) = prepare(asked), prepare(asked)
    assert (reused, reused_again) == (False, True)
    assert again.path == first.path
    assert Counter(texts(first, "train") + texts(first, "validation")) == Counter(t for t, _ in ROWS)
    assert first.count("train") + first.count("validation") == len(ROWS)
    assert first.task().labels == ["x", "y"]
    rows = first.rows("train")
    assert all(len(ids) == size <= 8 for ids, size in zip(rows["text.input_ids"], rows["_size"], strict=True))
    assert len(first.parts("train")) >= 16  # enough for 16 workers


def test_a_search_measures_models_on_other_rows_than_it_compares_members_on(job):
    plain = job(ROWS)
    searching = job(ROWS, search={"genes": {"train.learning_rate": {"uniform": [0.1, 0.2]}}})
    prepared, _ = prepare(plain)
    everything, compared, measured = (
        prepared.read(files)["text.text"]
        for files in (prepared.held_out(plain), prepared.held_out(searching, comparing=True), prepared.held_out(searching))
    )
    assert prepared.held_out(plain) == prepared.held_out(plain, comparing=True)
    assert abs(len(compared) - len(measured)) <= 1
    assert sorted(compared + measured) == sorted(everything)
    few = searching.set({"evaluate.rows": 2})
    assert [len(prepared.read(prepared.held_out(few, comparing))["text.text"]) for comparing in (True, False)] == [2, 2]


def test_names_of_classes_beside_the_rows_and_labels_that_are_nearly_alike(job, tmp_path):
    asked = job([(text, i % 2) for i, text in enumerate(TEXTS)])
    plain, _ = prepare(asked)
    assert plain.task().labels == ["0", "1"]
    (tmp_path / "classes.txt").write_text("Good\ngood\n", "utf-8")
    named, reused = prepare(asked)
    assert not reused
    assert (named.task().labels, named.task().encode("1")) == (["Good", "good"], 1)
    assert set(named.rows("train")["_target"]) == {"0", "1"}
    (note,) = named.notes(asked.inputs())
    assert "'Good' and 'good'" in note


def test_how_many_texts_fill_their_length_is_told(job):
    rows = [("good day " * 9, "x"), *ROWS[:3]] * 9  # of 5 tokens each, but for the first
    asked = job([(f"{text} {i}", label) for i, (text, label) in enumerate(rows)], **{"data.inputs.0.max_length": 12})
    prepared, _ = prepare(asked)
    cut = sum(text.count("day") > 1 for text in texts(prepared, "train"))
    assert 0 < cut < prepared.count("train")
    share = cut / prepared.count("train")
    assert prepared.notes(asked.inputs()) == [f"text: {share:.0%} of the rows fill its max_length, beyond which texts are cut"]


def test_conversations_of_which_nothing_is_learned_are_told(job, tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} [SEP] {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "base")

    def talk(number, end):
        said = [("user", "good day"), ("assistant", f"bad day {number}"), ("user", f"{'late ' * 30 if end else 'late'} {number}")]
        return [{"role": role, "content": content} for role, content in said], None

    data = {"column": "text", "modality": "chat", "max_length": 16}
    how = {"model.base": str(tmp_path / "base"), "task": {"kind": "text_generation"}, "data.target": None, "data.inputs": [data]}
    for end, notes in ((False, 0), (True, 2)):
        asked = job([talk(number, end) for number in range(12)], **how)
        prepared, _ = prepare(asked)
        assert len(found := prepared.notes(asked.inputs())) == notes
    assert found[-1].startswith("100% of the conversations teach nothing: what the assistant says is cut off")


def test_labels_as_columns_of_0_and_1(job, tmp_path):
    lines = [f"{text},{i % 2},{int(i % 3 == 0)}" for i, text in enumerate(TEXTS)]
    (tmp_path / "flags.csv").write_text("\n".join(["text,late,rude", *lines[:-1], f"{TEXTS[-1]},-1,0"]), "utf-8")
    prepared, _ = prepare(job(tmp_path / "flags.csv", **{"task": {"kind": "multilabel"}, "data.target": "late|rude", "data.reject.limit": 0.1}))
    rows = prepared.rows("train")
    wanted = {text: [name for name, has in (("late", i % 2), ("rude", i % 3 == 0)) if has] for i, text in enumerate(TEXTS)}
    assert dict(zip(rows["text.text"], rows["_target"], strict=True)).items() <= wanted.items()
    assert prepared.record["reasons"] == {"late|rude: 'late' is neither 0 nor 1": 1}
    assert prepared.task().labels == ["late", "rude"]


def test_rows_that_are_trained_and_measured_on_are_told(job, tmp_path):
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text, "label": y}) + "\n" for text, y in [*ROWS[:2], ("new", "x")]), "utf-8")
    asked = job(ROWS, validation=str(tmp_path / "other.jsonl"))
    prepared, _ = prepare(asked)
    (note,) = prepared.notes(asked.inputs())
    assert note.startswith("validation: 2 of its 3 rows are training rows too, ")


@pytest.mark.parametrize("task", ["text_generation", "masked_language_modeling"])
def test_long_texts_without_a_target_are_several_rows(job, tiny_base, task):
    whole = {" ".join([f"good{i}", *TEXTS]): i for i in range(12)}
    asked = job([(text, None) for text in whole], **{"task": {"kind": task}, "data.target": None, "data.inputs.0.max_length": 16})
    prepared, _ = prepare(asked)
    rows, tokenizer = prepared.rows("train"), AutoTokenizer.from_pretrained(tiny_base)
    tokens = sum(-(-len(ids) // 14) for ids in tokenizer(list(whole), add_special_tokens=False)["input_ids"])
    assert prepared.count("train") + prepared.count("validation") == tokens
    assert all(tokenizer(part)["input_ids"] == ids for part, ids in zip(rows["text.text"], rows["text.input_ids"], strict=True))
    begun = {split: {part.split()[0] for part in texts(prepared, split) if part[4:5].isdigit()} for split in ("train", "validation")}
    assert len(begun["train"] | begun["validation"]) == 12
    assert not begun["train"] & begun["validation"]
    assert prepared.notes(asked.inputs()) == []


def test_prompts_keep_their_end(job, tiny_base):
    prepared, _ = prepare(job(ROWS, **{"task": {"kind": "text_generation"}, "data.inputs.0.max_length": 4}))
    rows, tokenizer = prepared.rows("train"), AutoTokenizer.from_pretrained(tiny_base)
    assert [tokenizer.decode(ids[1:-1]).split() for ids in rows["text.input_ids"]] == [text.split()[1:] for text in rows["text.text"]]


def test_many_parts_are_written_by_few_tasks(job, monkeypatch):
    first, _ = prepare(job(ROWS))
    for name, value in {"_ROWS_PER_PART": 2, "_LEAST_PARTS": 1, "_TASKS": 3}.items():
        monkeypatch.setattr(prepares, name, value)
    again, _ = prepare(job(ROWS, storage=f"{job(ROWS).storage}/other"))
    assert again.rows("train") == first.rows("train")
    assert {part["rows"] for part in again.record["train"]} <= {1, 2}


def test_rows_keep_their_side_when_others_are_added(job, tmp_path):
    before, _ = prepare(job(ROWS))
    after, _ = prepare(job(ROWS + [(f"never {i}", "x") for i in range(30)]))
    assert set(texts(before, "validation")) <= set(texts(after, "validation"))
    assert set(texts(before, "train")) <= set(texts(after, "train"))


def test_equal_rows_fall_on_one_side_or_are_dropped(job):
    doubled = ROWS * 3
    kept, _ = prepare(job(doubled))
    assert not set(texts(kept, "train")) & set(texts(kept, "validation"))
    assert kept.count("train") + kept.count("validation") == len(doubled)
    dropped, _ = prepare(job(doubled, **{"data.duplicates": "drop"}))
    assert dropped.count("train") + dropped.count("validation") == len(ROWS)


def test_rows_and_validation_may_be_counts(job):
    found, _ = prepare(job(ROWS, validation="6 rows", **{"data.rows": 20}))
    assert (found.count("train"), found.count("validation")) == (14, 6)


def test_equal_rows_at_a_counted_cut_fall_on_one_side(job):
    found, _ = prepare(job(ROWS * 5, validation="8 rows"))
    assert found.count("validation") == 10
    assert not set(texts(found, "train")) & set(texts(found, "validation"))


def test_a_label_too_rare_for_both_sides_is_learned(job):
    rows = [*ROWS, *((f"good day {i}", f"rare{i}") for i in range(12))]
    found, _ = prepare(job(rows, validation="50%"))
    assert {f"rare{i}" for i in range(12)} < set(found.task().labels)
    assert set(found.rows("validation")["_target"]) == {"x", "y"}
    assert found.count("train") + found.count("validation") == len(rows)
    order = found.rows("train")["_order"]
    assert order == sorted(order)


def test_one_of_two_labels_too_rare_for_both_sides_is_learned(job):
    held_out = next(text for text in TEXTS if order(0, [text], "rare") < 2**62)  # in the first half of all places
    rows = [(text, "rare" if text == held_out else "usual") for text in TEXTS]
    found, _ = prepare(job(rows, validation="50%"))
    assert found.rows("train")["_target"].count("rare") == 1
    assert set(found.rows("validation")["_target"]) == {"usual"}
    with pytest.raises(DataError, match="at least 2 labels"):
        prepare(job([(text, "usual") for text in TEXTS], validation="50%"))


def test_storage_that_no_machine_mounts(job, tmp_path):
    """The way of s3:// and gs://, on the one such file system that is always there."""
    here, _ = prepare(job(ROWS))
    asked = job(ROWS, storage=f"file://{tmp_path}/bucket")
    there, _ = prepare(asked)
    assert there.path.remote
    assert there.rows("train") == here.rows("train")
    assert there.rows("validation") == here.rows("validation")
    assert {name.split("/")[1] for name in there.path.files() if "/" in name} == {"train", "validation"}, "cells are gone"
    assert not list(Path(tempfile.gettempdir()).glob(f"lc_ray-*-{digest(str(there.folder / 'train-cells'))}"))
    assert prepare(asked)[1], "and found again"


def test_a_storage_that_can_not_be_written(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't write the prepared data"):
        prepare(job(ROWS, storage=str(tmp_path / "file" / "runs")))


def test_a_storage_that_can_not_be_written_later_on(job, monkeypatch):
    def blocked(job, folder, name):
        (Path(str(folder)) / name).mkdir(parents=True)
        (Path(str(folder)) / name / "train").write_text("a file, where parts are to be")
        begun(job, folder, name)

    begun = prepares._try
    monkeypatch.setattr(prepares, "_try", blocked)
    with pytest.raises(DataError, match="can't write the prepared data"):
        prepare(job(ROWS))


def test_the_seed_decides_the_split(job):
    assert set(texts(prepare(job(ROWS))[0], "validation")) != set(texts(prepare(job(ROWS, seed=1))[0], "validation"))
    assert order(0, ["a"], "x") == order(0, ["a"], "x") != order(1, ["a"], "x")


def test_bad_rows_are_set_aside_with_their_reason(job, tmp_path):
    file = tmp_path / "rows.jsonl"
    good = "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in ROWS)
    bad = '{"text": null, "label": "x"}\n{"text": [5], "label": "x"}\n{"text": "ok"}\n{oops\n{"text": "\\ud83d", "label": "x"}\n'
    file.write_text(good + bad, "utf-8")
    found, _ = prepare(job(file, **{"data.reject.limit": "50%"}))
    assert found.record["rejected"] == 5
    rejects = pq.read_table(str(found.folder / "rejects")).to_pandas()
    assert list(rejects.columns) == ["file", "row", "column", "reason", "value"]
    assert sorted(rejects["row"]) == [len(ROWS) + i for i in range(5)]
    by_row = rejects.set_index("row")["reason"].to_dict()
    for i, reason in enumerate(["null", "not text but list", "label missing", "not valid JSON", "not valid Unicode"]):
        assert by_row[len(ROWS) + i].startswith(reason)
    with pytest.raises(DataError, match=r"5 of 41 rows can't be used(.|\n)*1 × text: null(.|\n)*1 × not valid JSON") as error:
        prepare(job(file, **{"data.reject.limit": "1%"}))
    kept = error.value.fix.split("kept in ")[1].split(";")[0]
    assert len(pd.read_parquet(kept)) == 5


def test_many_files_are_read_by_tasks_alone(job, tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    for number in range(9):
        (tmp_path / "rows" / f"{number}.csv").write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in ROWS[number::9]), "utf-8")
    monkeypatch.setattr(read.Reader, "_whole", None)  # of this process
    found, _ = prepare(job(tmp_path / "rows"))
    assert found.count("train") + found.count("validation") == len(ROWS)


def test_csv_that_is_not_utf8(job, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes(b"text,label\n" + b"".join(f"{t},{y}\n".encode() for t, y in ROWS) + b"caf\xe9 good,x\n")
    strict, _ = prepare(job(file, **{"data.reject.limit": "50%"}))
    assert strict.record["reasons"] == {"text: not valid UTF-8": 1}
    for errors, found in {"replace": "caf� good", "windows-1252": "café good"}.items():
        lenient, _ = prepare(job(file, **{"data.encoding_errors": errors}))
        assert lenient.record["rejected"] == 0
        assert found in texts(lenient, "train") + texts(lenient, "validation")
    with pytest.raises(DataError, match=r"`data\.encoding_errors: windows-1252` reads Latin-1"):
        prepare(job(file))


def test_a_label_that_training_lacks(job, tmp_path):
    file = tmp_path / "validation.csv"
    file.write_text("text,label\ngood,x\nbad,z\n", "utf-8")
    with pytest.raises(DataError, match=r"validation\.csv, row 1: label 'z' was never seen in training"):
        prepare(job(ROWS, validation=str(file)))


def test_a_validation_source_of_its_own(job, tmp_path):
    file = tmp_path / "validation.csv"
    file.write_text("text,label\ngood,x\nbad,y\n", "utf-8")
    found, _ = prepare(job(ROWS, validation=str(file)))
    assert (found.count("train"), found.count("validation")) == (len(ROWS), 2)
    file.write_text("text,label\n", "utf-8")
    with pytest.raises(DataError, match=r"validation\.csv: no validation rows are left"):
        prepare(job(ROWS, validation=str(file)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\n", "no training rows are left"),
        ("text,stars\na,b\n", "no column 'label'; there are: text, stars"),
        ("text,label\n" + "good,x\n" * 9, "no validation rows|at least 2 labels|no training rows"),
    ],
)
def test_data_that_can_not_be_trained_on(job, tmp_path, content, message):
    file = tmp_path / "rows.csv"
    file.write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        prepare(job(file))


def test_data_that_is_changed_while_it_is_read(job, monkeypatch):
    asked = job(ROWS)

    def changed(job, folder):
        Path(job.data.train).write_text('{"text": "a", "label": "x"}\n')
        return {}

    monkeypatch.setattr(prepares, "_prepare", changed)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(asked)
    assert not list(Path(asked.storage).rglob("data.json"))


def test_nothing_half_prepared_is_taken_for_whole(job):
    asked = job(ROWS)
    first, _ = prepare(asked)
    (first.path / "data.json").remove()
    again, reused = prepare(asked)
    assert not reused
    assert texts(again, "train") == texts(first, "train")


def test_the_first_label_that_training_lacks_is_told_without_looking_at_all(job, tmp_path, monkeypatch):
    file = tmp_path / "validation.csv"
    file.write_text("text,label\n" + "".join(f"{a} {b},z{b}\n" for a, b in ROWS), "utf-8")
    asked, own = [], Task.encode
    monkeypatch.setattr(Task, "encode", lambda self, target: asked.append(target) or own(self, target))
    with pytest.raises(DataError, match=r"label 'z[xy]' was never seen"):
        prepare(job(ROWS, str(file)))
    assert len(asked) == 1


def test_of_thousands_of_labels_none_is_compared_with_one_that_is_not_there(monkeypatch):
    few, many = (Task([f"label {n}" for n in range(count)]) for count in (1000, 1001))
    with pytest.raises(DataError, match="did you mean 'label 1'"):
        few.encode("labels 1")
    with pytest.raises(DataError, match="label 'labels 1' was never seen") as error:
        many.encode("labels 1")
    assert "mean" not in error.value.fix


def test_recordings_and_pictures_that_are_targets_are_not_read_to_know_labels():
    side = Side(None, None, None)
    assert list(side.unseen(image_generation.Task())) == []


def test_a_try_to_which_nobody_has_written_for_a_day_was_killed(tmp_path):
    for name, age in (("1700000000-killed00", 90_000), ("1700000000-atwork00", 60)):  # both begun long ago
        for file, since in (("cells/a.parquet", 1_000_000), ("train/part-0.parquet", age)):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True)
            path.write_text("rows", "utf-8")
            os.utime(path, (time.time() - since,) * 2)
    prepares._sweep(StoragePath(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["1700000000-atwork00"]
