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


@pytest.mark.parametrize(
    "content",
    [
        b"Sentence #,Word,POS,Tag\nSentence: 1,Ann,NN,B-PER\n,sang,VB,O\n,\",\",\",\",O\nSentence: 2,caf\xe9,NN,O\n",  # as Kaggle's
        b"POS,sentence_id,Word,Tag\nNN,0,Ann,B-PER\nVB,0,sang,O\n\",\",0,\",\",O\nNN,1,caf\xe9,O\n",  # as Simple Transformers'
    ],
)
def test_tables_of_a_word_in_each_row(tmp_path, content):
    one, two = read_all(tmp_path, content, ["Word", "Tag"], "ner.csv")
    assert one == {"Word": [b"Ann", b"sang", b","], "Tag": [b"B-PER", b"O", b"O"], "_row": 0}
    assert two == {"Word": [b"caf\xe9"], "Tag": [b"O"], "_row": 1}
    split = content.partition(b"\n")[0].decode().split(",")[1 if b"sentence_id" in content else 0]
    assert [row[split] for row in read_all(tmp_path, content, ["Tag", split], "ner.csv")] in ([b"Sentence: 1", b"Sentence: 2"], [b"0", b"1"])


def test_tables_of_phrases_of_sentences_have_a_phrase_in_each_row(tmp_path):
    content = b"sentence_id,phrase,label\n1,a good film,2\n1,film,1\n"
    assert [row["label"] for row in read_all(tmp_path, content, ["label"], "a.csv")] == [b"2", b"1"]


def test_comments_before_a_sentence_are_no_words(tmp_path):
    """As MultiCoNER's; a word may be that sign."""
    content = b"# id 6f domain=train\nthe _ _ O\nalps _ _ B-LOC\n\n# # B-NP O\n1 CD I-NP O\n\n#\tO\n"
    rows = read_all(tmp_path, content, ["tokens", "ner_tags"])
    assert [row["tokens"] for row in rows] == [["the", "alps"], ["#", "1"], ["#"]]
    assert rows[0]["ner_tags"] == ["O", "B-LOC"]


def test_columns_of_universal_dependencies(tmp_path):
    words = ("1-2\tdu\t_", "1\tde\tde\tADP\t_\t_\t0\troot", "2\tle\tle\tDET\t_\tNumber=Sing\t1\tdet", "2.1\tx\tx\tX\t_\t_\t_\t_")
    lines = [f"{word}{chr(9).join(['', *'_' * (9 - word.count(chr(9)))])}" for word in words]
    content = "\n".join(["# sent_id = 1", "# text = du", *lines, "", "# sent_id = 2", lines[1], "", "1\tbad", ""]).encode()
    rows = read_all(tmp_path, content, ["tokens", "upos", "feats"], "fr-ud-train.conllu")
    assert rows[0] == {"tokens": ["de", "le"], "upos": ["ADP", "DET"], "feats": ["_", "Number=Sing"], "_row": 0}
    assert rows[1]["tokens"] == ["de"]
    assert "10 columns" in rows[2]["_error"]
