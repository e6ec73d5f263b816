"""Tables as text: their marks, quotes and uneven rows."""

import csv

import pytest
from test_read import all_rows

from lc_ray.data import read
from lc_ray.data.files import File
from lc_ray.errors import DataError


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


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('" a film\tx\n"b" and c\tx\nd "\ty\n"e"\ty\n', ['" a film', '"b" and c', 'd "', '"e"']),  # as GLUE's
        ('"a ""film"""\tx\n"b\tc"\tx\n"d\ne"\ty\nf "g"\ty\n', ['a "film"', "b\tc", "d\ne", 'f "g"']),  # as pandas writes them
        ('a\tx\n"b\ty\nc\tx\n', ["a", '"b', "c"]),
        ('"a"\tx\r\n""\ty\r\n""""\tx\r\n', ["a", "", '"']),
    ],
)
def test_quotes_of_a_tsv_enclose_cells_or_are_part_of_them(tmp_path, content, texts):
    (tmp_path / "a.tsv").write_bytes(f"text\tlabel\n{content}".encode())
    rows = all_rows(tmp_path / "a.tsv", ["text", "label"])
    assert [row["text"].decode() for row in rows] == texts
    assert {row["label"] for row in rows} == {b"x", b"y"}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text,label\n"he said \\"hi\\" to me",x\n"a, b",y\n"c \\"d, e\\" f",x\n', ['he said "hi" to me', "a, b", 'c "d, e" f']),  # as MySQL's
        ('text,label\n"a ""b"" c\\",x\n"d \\"" e",y\n"f\\\\",x\n', ['a "b" c\\', 'd \\" e', "f\\\\"]),  # backslashes that mean nothing
        ("text,label\n'hello, world',x\n'it''s',y\n", ["hello, world", "it's"]),
        ("'text','label'\n'a','x'\n'it''s','y'\n", ["a", "it's"]),
        ("text,label\n'tis a,x\nit's b,y\n", ["'tis a", "it's b"]),
        ("sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n", ["a, b", "c"]),  # as Excel's
        ("Customer reviews\n\ntext;label\na, b;x\nc;y\nd;y\n", ["a, b", "c", "d"]),
        ("Reviews of 2020,\nby Ann,\ntext,label\na,x\nb,y\nc,x\n", ["a", "b", "c"]),
    ],
)
def test_quotes_escapes_and_titles(tmp_path, content, texts):
    (tmp_path / "a.csv").write_text(f"{content}", "utf-8")
    rows = all_rows(tmp_path / "a.csv", ["text", "label"])
    assert [row["text"].decode() for row in rows] == texts
    assert {row["label"] for row in rows} == {b"x", b"y"}
    with (tmp_path / "a.csv").open("a") as file:
        file.write(f"{content.splitlines()[-1]}\n" * 20 + "1;2;3,4,5\n")
    last = all_rows(tmp_path / "a.csv", ["text"])[-1]
    assert last["_row"] == len(texts) + 20
    assert "fields where the header has 2" in last["_error"]


def test_one_column_of_texts_has_no_title(tmp_path):
    (tmp_path / "a.csv").write_text("text\na; b\nc; d\ne; f\n", "utf-8")
    assert [row["text"] for row in all_rows(tmp_path / "a.csv", ["text"])] == [b"a; b", b"c; d", b"e; f"]
    (tmp_path / "b.csv").write_text(",review text\n0,a b\n1,c d\n2,e\n", "utf-8")  # as pandas writes it with its index
    assert [row["review text"] for row in all_rows(tmp_path / "b.csv", ["review text"])] == [b"a b", b"c d", b"e"]


def test_a_list_of_texts_and_labels_between_at_signs(tmp_path):
    """As the Financial PhraseBank."""
    (tmp_path / "a.txt").write_text("Sales rose, to 1 mn @positive\nThe firm said so .@neutral\n", "utf-8")
    rows = [row for chunk in read.Reader(File(str(tmp_path / "a.txt")), ["text", "label"]).rows(["text", "label"]) for row in chunk]
    assert [row["label"] for row in rows] == [b"positive", b"neutral"]


@pytest.mark.parametrize("content", [b'text,label\nc,"d\ne\n"\n', b'text,label\n"c\n",d\n', b'text,label\n"\nd",d', b"text,label", b"text,label\n"])
def test_quotes_that_are_closed_and_files_without_rows(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    assert len(all_rows(tmp_path / "a.csv", ["text", "label"])) == content.endswith((b'"\n', b",d\n", b",d"))


def test_cells_that_another_mark_separates(tmp_path):
    """As in LJSpeech, whose texts have commas, and quotes of their own."""
    file = tmp_path / "metadata.csv"
    file.write_text('LJ001|Printing, in the only sense|printing\nLJ002|"No," he said|no he said\nLJ003|in "being|in being\n', "utf-8")
    reader = read.Reader(File(str(file)), ["id", "text", "plain"])
    reader.require(["text"])
    texts = [row["text"] for chunk in reader.rows(["text"]) for row in chunk]
    file.write_text("LJ1|One, two|one, two\nLJ2|three|three\n", "utf-8")
    assert [row["id"] for row in read_by(file, ["id", "text", "plain"], ["id"])] == [b"LJ1", b"LJ2"]
    file.write_text("1,Adventure|Drama\n2,War\n", "utf-8")
    assert [row["genres"] for row in read_by(file, ["id", "genres"], ["genres"])] == [b"Adventure|Drama", b"War"]
    file.write_text('LJ001|Printing, in the only sense|printing\nLJ002|"No," he said|no he said\nLJ003|in "being|in being\n', "utf-8")
    assert texts == [b"Printing, in the only sense", b'"No," he said', b'in "being']
    with pytest.raises(DataError, match=r"no column 'text'; there are: LJ001.Printing, .*\n.*`data.columns`"):
        read.Reader(File(str(file))).require(["text"])
    file.write_text("text;price\n\"a; b\";3,5\n\"c, d\";4\n", "utf-8")
    assert all_rows(file, ["text", "price"]) == [{"text": b"a; b", "price": b"3,5", "_row": 0}, {"text": b"c, d", "price": b"4", "_row": 1}]
    file.write_text("Abyssinian_1 1 2\nbeagle_7 5 1\n", "utf-8")  # as Oxford's pets
    assert [row["id"] for row in read_by(file, ["image", "id", "species"], ["id", "image"])] == [b"1", b"5"]
    file.write_text("a, b; c, d\n", "utf-8")
    read.Reader(File(str(file)), ["one", "other"]).require(["one"])
    read.Reader(File(str(file)), ["one", "two", "three"]).require(["one"])


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


def read_by(file, names, wanted):
    reader = read.Reader(File(str(file)), names)
    reader.require(wanted)
    return [row for chunk in reader.rows(wanted) for row in chunk]


def test_an_uneven_row_that_is_not_utf8_costs_that_row(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\ncaf\xe9,b\n\xe9,a,c\n\xc3\xa9,e\n")
    assert read_by(file, None, ["label", "text"]) == [
        {"text": b"caf\xe9", "label": b"b", "_row": 0},
        {"_error": "3 fields where the header has 2", "_row": 1},
        {"text": b"\xc3\xa9", "label": b"e", "_row": 2},
    ]


def test_names_of_columns_may_have_blanks_around_them_and_be_latin_1(tmp_path):
    """As Flickr30k's captions, whose marks have a blank behind them."""
    file = tmp_path / "a.csv"
    file.write_bytes(b"image| caf\xe9 | caption\n1| x\xe9| a dog\n")
    assert read.Reader(File(str(file))).columns() == ["image", "café", "caption"]
    assert read_by(file, None, ["caption", "café"]) == [{"caption": b" a dog", "café": b" x\xe9", "_row": 0}]
    file.write_bytes("é,b\n1,".encode() + b"\xe9\n")
    assert read_by(file, None, ["é", "b"]) == [{"é": b"1", "b": b"\xe9", "_row": 0}]


def test_a_first_row_that_is_not_utf8_where_names_are_given(tmp_path):
    """As Sentiment140's, in Latin-1 and without a header."""
    (tmp_path / "a.csv").write_bytes(b'"0","caf\xe9"\n"4","b"\n')
    assert [row["text"] for row in read_by(tmp_path / "a.csv", ["label", "text"], ["text"])] == [b"caf\xe9", b"b"]


def test_the_first_text_of_a_file_without_a_header_may_be_long(tmp_path):
    long = "word " * 40_000
    (tmp_path / "rows.csv").write_text(f"{long},good\nshort,bad\n", "utf-8")
    before = csv.field_size_limit(131_072)  # as it is where nothing has raised it
    reader = read.Reader(File(str(tmp_path / "rows.csv")), ["text", "label"])
    reader.require(["text", "label"])
    assert [len(row["text"]) for chunk in reader.rows(["text", "label"]) for row in chunk] == [len(long), 5]
    csv.field_size_limit(max(before, csv.field_size_limit()))


def test_of_pixels_in_columns_of_their_own_a_few_are_listed(tmp_path):
    """As in the tables of MNIST that Kaggle has."""
    (tmp_path / "a.csv").write_text(",".join(["label", *(f"pixel{n}" for n in range(784))]) + "\n", "utf-8")
    told = r"no column 'image'; there are: label, pixel0, .*, pixel18, \.\.\. \(785 in all\)\n.* write a column of lists"
    with pytest.raises(DataError, match=told):
        read.Reader(File(str(tmp_path / "a.csv"))).require(["image"])
