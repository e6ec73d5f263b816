import pytest

import lc_ray
from lc_ray.errors import DataError
from lc_ray.evaluate.labelled import evaluate


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


def test_an_unknown_label_says_where(model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\ngood,positive\nbad,negativ\n", "utf-8")
    with pytest.raises(DataError, match=r"rows\.csv, row 1: label 'negativ' was never seen.*\n.*did you mean 'negative'"):
        evaluate(model, str(file), "label")


def test_words_without_a_tag_each_are_rejected(model, tmp_path, monkeypatch):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\ngood,positive\nbad,negative\n", "utf-8")

    def check(target, values):
        if values["text"] == "bad":
            raise DataError("does not fit")

    monkeypatch.setattr(model.task, "check", check)
    assert evaluate(model, str(file), "label")["rejected"] == 1


def test_nothing_usable(model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n,x\n", "utf-8")
    with pytest.raises(DataError, match="no row can be used"):
        evaluate(model, str(file), "label")


def test_a_missing_column(model, tiny_rows):
    with pytest.raises(DataError, match="no column 'stars'; there are: text, label"):
        evaluate(model, str(tiny_rows), "stars")
