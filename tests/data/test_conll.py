import pytest

from lc_ray.data import read
from lc_ray.data.files import files
from lc_ray.errors import DataError

SENTENCES = [["Ann", "lives", "in", "Bonn", "."], ["#ok\u00a0\u2028ok"]]
TAGS = [["B-PER", "O", "O", "B-LOC", "O"], ["O"]]


def read_all(tmp_path, content, wanted, name="train.conll"):
    (tmp_path / name).write_bytes(content)
    (file,) = files(str(tmp_path / name))
    reader = read.Reader(file)
    reader.require(wanted)
    return [row for chunk in reader.rows(wanted) for row in chunk]


@pytest.mark.parametrize("between", ["\t", " NNP I-NP ", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["", "-DOCSTART- -X- O O\n\n", "-DOCSTART- O\n", "\n\n", "\ufeff", "\ufeff\n"])
def test_sentences_are_rows(tmp_path, between, end, first):
    sentences = ["".join(f"{word}{between}{tag}\n" for word, tag in zip(*both, strict=True)) for both in zip(SENTENCES, TAGS, strict=True)]
    rows = read_all(tmp_path, (first + "\n \n".join(sentences)).replace("\n", end).encode(), ["tokens", "ner_tags"])
    assert [row["tokens"] for row in rows] == SENTENCES
    assert [row["ner_tags"] for row in rows] == TAGS


def test_a_text_may_be_such_a_file(tmp_path):
    content = b"-DOCSTART- -X- -X- O\n\nAnn NNP B-NP B-PER\nsings VBZ B-VP O\n"
    (row,) = read_all(tmp_path, content, ["tokens", "ner_tags"], "valid.txt")
    assert (row["tokens"], row["ner_tags"]) == (["Ann", "sings"], ["B-PER", "O"])
    assert len(read_all(tmp_path, content, ["text"], "valid.txt")) == 3
    with pytest.raises(DataError, match="no column 'label'; there are: text"):
        read_all(tmp_path, content, ["text", "label"], "valid.txt")


def test_sentences_that_are_broken(tmp_path):
    content = b"a O\n\nb\n\n\xff O\n\nc O\n"
    rows = read_all(tmp_path, content, ["tokens"])
    assert [row.get("_error") for row in rows] == [None, "a word without a tag", "not valid UTF-8", None]
    assert rows[3]["tokens"] == ["c"]
