"""Files that are compressed, and texts, whose endings say little."""

import bz2
import gzip
import io
import lzma
import re
import zipfile

import pytest
import zstandard

from lc_ray.data import read
from lc_ray.data.files import files
from lc_ray.errors import DataError

TABLE = b"text,label\na,b\n"


def zipped(**content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name.replace("_csv", ".csv").replace("_in_", "/")), data)
    return out.getvalue()


def rows(path, wanted=("text", "label"), names=None):
    (file,) = files(str(path))
    reader = read.Reader(file, names)
    reader.require(wanted)
    return [tuple(row[name] for name in wanted) for chunk in reader.rows(wanted) for row in chunk]


@pytest.mark.parametrize(
    ("name", "content"),
    [  # each the same in all of pytest's workers
        ("a.csv.gz", gzip.compress(TABLE, mtime=0)),
        ("a.csv.bz2", bz2.compress(TABLE)),
        ("a.CSV.XZ", lzma.compress(TABLE)),
        ("a.csv.zst", zstandard.compress(TABLE)),
        ("a.csv.zip", zipped(other_csv=TABLE)),
        ("archive.zip", zipped(a_csv=TABLE, __MACOSX_in_a_csv=b"notes")),
        ("a.csv.bz2", bz2.compress(TABLE.decode().encode("utf-16"))),
    ],
)
def test_compressed_tables(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert rows(tmp_path / name) == [(b"a", b"b")]
    assert rows(f"file://{tmp_path}/{name}") == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", zipped(a_csv=TABLE, b_csv=TABLE), r"a.zip: 2 files are in it: a.csv, b.csv; of a zip file one is read\n.*unpack it"),
        ("a.csv.zip", zipped(), "0 files are in it"),
        ("a.csv.zip", TABLE, "can't be read: File is not a zip file"),
        ("a.zip", TABLE, "can't be read: File is not a zip file"),
        ("a.csv.xz", lzma.compress(TABLE * 9999)[:-50], "can't be read"),
        ("a.csv.zst", TABLE, "can't be read"),
        ("a.csv.zip", re.sub(rb"(PK\x03\x04..|PK\x01\x02....)\x00", lambda found: found[1] + b"\1", zipped(a_csv=TABLE)), "encrypted"),
    ],
)
def test_compressed_files_that_are_not_what_they_seem(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


def test_texts_may_be_tables(tmp_path):
    """As the paraphrases of MRPC, UCI's spam and incomes, and Flickr's captions."""
    (tmp_path / "msr.txt").write_bytes(b'Quality\t#1 String\n1\tHe said "no\n0\tb, c\n')
    assert rows(tmp_path / "msr.txt", ("#1 String", "Quality")) == [(b'He said "no', b"1"), (b"b, c", b"0")]
    (tmp_path / "captions.txt").write_bytes(b'image,caption\n1.jpg,"a, b"\n')
    assert rows(tmp_path / "captions.txt", ("image", "caption")) == [(b"1.jpg", b"a, b")]
    (tmp_path / "SMSSpamCollection").write_bytes(b'ham\tGo, now "\nspam\tWin\n')
    assert rows(tmp_path / "SMSSpamCollection", names=["label", "text"]) == [(b'Go, now "', b"ham"), (b"Win", b"spam")]
    (tmp_path / "adult.data").write_bytes(b"39, Private, <=50K\n50, ?, >50K\n\n")
    assert rows(tmp_path / "adult.data", ("age", "income"), ["age", "work", "income"]) == [(b"39", b" <=50K"), (b"50", b" >50K")]
    (tmp_path / "eng.train").write_bytes(b"Ann NN B-PER\n\n")
    assert rows(tmp_path / "eng.train", ("tokens", "ner_tags")) == [(["Ann"], ["B-PER"])]
    with pytest.raises(DataError, match="no column 'label'; there are: text"):
        rows(tmp_path / "eng.train")


def test_labels_of_fasttext(tmp_path):
    (tmp_path / "train.ft.txt.bz2").write_bytes(bz2.compress(b"__label__2 Great, really\n__label__a, __label__b both\nnone\n"))
    assert rows(tmp_path / "train.ft.txt.bz2") == [(b"Great, really", b"2"), (b"both", b"a|b"), (b"none", None)]
