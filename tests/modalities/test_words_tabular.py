"""Words and cells of a table."""

import json
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokens import byte_tokenizer
from transformers import GPT2Tokenizer, RobertaTokenizer, Wav2Vec2CTCTokenizer

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import _text, tabular, words
from lc_ray.modalities._text import listed
from lc_ray.spec import InputSpec


@pytest.fixture
def column(tiny_base):
    return words.Modality(InputSpec(column="words", modality="words", max_length=8), tiny_base)


def bare(pieces):
    return [_text.bare(piece) for piece in pieces]


def test_words_come_as_list_or_text(column):
    assert column.decode(["good", "day"]) == column.decode(b"good day") == ["good ", "day"]
    assert column.decode(b'["good", "a day"]') == column.decode("['good', 'a day']") == ["good ", "a day"]
    assert column.decode(["去", "北京", "good"]) == ["去", "北京 ", "good"], "Chinese has no blanks"
    assert bare(column.decode("[1] good")) == ["[", "1", "]", "good"]
    assert bare(column.decode(["good", 7], folder=".")) == ["good", "7"]
    for bad, reason in (([], "no words"), (None, "null"), (["good", None], "null"), (["good", ""], "empty"), (7, "not text"), ("\x00", "no words")):
        with pytest.raises(DataError, match=reason):
            column.decode(bad)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  She is in  Rome/Oslo (Ann's) \n", "She is in Rome / Oslo ( Ann ' s )"),
        ("U.S. Jean-Luc 10,000.5 3% ann@x.org", "U.S. Jean-Luc 10,000.5 3 % ann@x.org"),
        ("去北京 good", "去 北 京 good"),  # there are no blanks between words of Chinese
        ("去 北京 good", "去 北京 good"),  # here there are
        ("ที่กรุง", "ที่ ก รุ ง"),  # nor of Thai
        ("နေပြည်တော်", "နေ ပြ ည် တော်"),
        ("दिल्ली में।", "दिल्ली में ।"),  # marks are parts of letters, as in what is decomposed
        ("Ha\u0300 No\u0323\u0302i, 서울", "Ha\u0300 No\u0323\u0302i , 서울"),
        ("القاهرة، مصر", "القاهرة ، مصر"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # what joins or parts letters parts no words
        ("at\u200bhome", "at home"),
        ("Rome👨‍👩‍👧!", "Rome 👨‍👩‍👧 !"),
    ],
)
def test_what_a_word_is(column, text, found):
    pieces = column.decode(text)
    assert bare(pieces) == found.split(" ")
    assert "".join(pieces) == text == column.show({"words": pieces})


def test_a_tokenizer_that_knows_no_words_of_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(["<pad>", "<unk>", "|", "a", "b"])}), "utf-8")
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of which word a token is: Wav2Vec2CTCTokenizer"):
        words.Modality(InputSpec(column="words", modality="words"), tmp_path)


def test_each_word_is_read_at_its_first_token_and_late_ones_are_cut_off(column, tiny_base):
    rows = [["love", "xyz", "day"], ["good"] * 9]
    parts = column.prepare(rows)
    tokens = [column.tokenizer.convert_ids_to_tokens(ids) for ids in parts["input_ids"]]
    assert [tokens[0][p] for p in parts["starts"][0]] == ["love", "x", "day"]
    assert [tokens[1][p] for p in parts["starts"][1]] == ["good"] * 6  # of 9: 8 tokens less two specials
    batch = column.collate(parts)
    encoder = words.Encoder.pretrained(column.spec, str(tiny_base)).eval()
    with torch.no_grad():
        hidden, mask = encoder(**batch)
        alone, _ = encoder(**column.collate(column.prepare(rows[:1])))
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    torch.testing.assert_close(hidden[0, :3], alone[0], rtol=1e-4, atol=1e-5)


def test_of_a_book_no_more_is_read_than_is_kept(column, monkeypatch):
    short = column.prepare([["good", "day"] * 15])
    read, tokenizer = [], column.tokenizer

    def reading(texts, **how):
        read.extend(texts)
        return tokenizer(texts, **how)

    monkeypatch.setattr(column, "tokenizer", reading)
    reading.truncation_side = "right"
    assert {**column.prepare([["good", "day"] * 100_000]), "words": short["words"]} == short
    assert len(read[0]) < 1000
    book = "good day, " * 10_000
    asked, learned = column.decode(book), column.decode(book, folder=".")
    assert len(asked) == 64 * 8
    assert len(learned) == 30_000
    assert "".join(asked) == "".join(learned) == book


def test_words_that_the_tokenizer_drops_move_no_other(column):
    parts = column.prepare([["\u200b", "good", "\ufe0f", "day", "\u200b"]])
    tokens = column.tokenizer.convert_ids_to_tokens(parts["input_ids"][0])
    assert [tokens[p] for p in parts["starts"][0]] == ["[CLS]", "good", "good", "day"]


def test_words_of_a_bytewise_tokenizer_are_read_as_in_a_text(tmp_path):
    bytewise = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet()), "Ġa", "Ġb"])}
    for name, made in (
        ("roberta", RobertaTokenizer(vocab=bytewise, merges=[("Ġ", "a"), ("Ġ", "b")])),
        ("gpt2", GPT2Tokenizer(vocab=bytewise, merges=[("Ġ", "a"), ("Ġ", "b")], pad_token="<pad>", unk_token="<unk>")),
        ("bare", byte_tokenizer("")),
    ):
        made.save_pretrained(tmp_path / name)
        column = words.Modality(InputSpec(column="words", modality="words", max_length=16), tmp_path / name)
        column.save(tmp_path / f"{name} again")
        for modality in (column, words.Modality(column.spec, tmp_path / f"{name} again")):
            parts = modality.prepare([["ab ", "b ", "ca"], None])
            assert modality.tokenizer.decode(parts["input_ids"][0], skip_special_tokens=True) == " ab b ca"
            text = modality.tokenizer(" ab b ca")["input_ids"]
            assert parts["input_ids"][0] == text
            assert [modality.tokenizer.convert_ids_to_tokens(text[p])[0] for p in parts["starts"][0]] == ["Ġ"] * 3
            assert parts["words"] == [["ab ", "b ", "ca"], None]
            close = modality.prepare([modality.decode("ab (b)")])["input_ids"][0]
            assert modality.tokenizer.decode(close, skip_special_tokens=True) == " ab (b)", "no blank where the text has none"


def test_cells_are_numbers_or_categories():
    cell = tabular.Modality(InputSpec(column="age", modality="tabular"), "")
    assert [cell.decode(v) for v in (3, 2.5, "7", b" red ", True, b"true", Decimal("1.50"))] == ["3", "2.5", "7", "red", "True", "True", "1.50"]
    assert [cell.decode(v) for v in (np.int64(3), np.float32(2.5), np.bool_(True), np.str_("red"))] == ["3", "2.5", "True", "red"]
    bad_cells = [(None, "null"), ("  ", "null"), (np.float32("nan"), "null"), (float("inf"), "not a finite"), ([1], "neither a number nor a text")]
    for bad, reason in [*bad_cells, (b"\xff", "UTF-8"), ("\ud83d", "Unicode"), (b"NaN", "null"), (b"1,234.5", "without"), ("-12,345,678", "without")]:
        with pytest.raises(DataError, match=reason):
            cell.decode(bad)
    assert tabular.Modality(InputSpec(column="age", modality="tabular", optional=True), "").decode(b"nan") is None
    assert [cell.decode(v) for v in ("1,2", "12,34", "1,234 m")] == ["1,2", "12,34", "1,234 m"]
    batch = cell.collate(cell.prepare(["3", "red", "blue", "red", None, "2020_01", "1.234,5"]))
    assert batch["number"].tolist() == [3, 0, 0, 0, 0, 0, 1234.5]
    number, red, blue, again, missing, month, european = batch["category"].tolist()
    assert number == european == 0 not in (red, blue, missing, month)
    assert red == again != blue


def test_dates_are_numbers_of_days():
    cell = tabular.Modality(InputSpec(column="day", modality="tabular"), "")
    days = [datetime(2020, 1, 2, 12), date(2020, 1, 1), b"2020-01-01", "2020-01-01T01:00:00+01:00", "1969-12-31", "2020-13-01", "2020-01-01 or so"]
    batch = cell.collate(cell.prepare([cell.decode(day) for day in days]))
    assert batch["number"].tolist() == [18263.5, 18262, 18262, 18262, -1, 0, 0]
    assert [bool(category) for category in batch["category"]] == [False] * 5 + [True] * 2
    assert cell.decode(days[0]) == "2020-01-02 12:00:00"


def test_cells_that_are_no_numbers_do_not_count_as_0():
    cell, encoder = tabular.Modality(InputSpec(column="year", modality="tabular"), ""), tabular.Encoder().train()
    for years in (["1999", None], ["2001", "unknown"], [None]):
        encoder(**cell.collate(cell.prepare(years)))
    assert encoder.standardise.running_mean[0] == pytest.approx(2000)
    assert encoder.standardise.running_var[0] == pytest.approx(1)


def test_numbers_of_any_scale_are_encoded_alike():
    cell = tabular.Modality(InputSpec(column="pay", modality="tabular"), "")
    found = []
    for scale in (1e-3, 1e6):
        torch.manual_seed(0)
        encoder = tabular.Encoder.pretrained(cell.spec, "").train()
        batch = cell.collate(cell.prepare([str(scale * i) for i in range(1, 9)]))
        hidden, mask = encoder(**batch)
        assert hidden.shape == (8, 1, encoder.width)
        assert mask.shape == (8, 1)
        found.append(encoder.standardise.eval()(torch.stack([batch["number"]] * 2, 1))[:, 0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_each_category_has_a_vector_of_its_own_and_hundreds_of_columns_are_a_small_model():
    torch.manual_seed(0)
    encoder = tabular.Encoder.pretrained(InputSpec(column="town", modality="tabular"), "").eval()
    categories = torch.arange(1, tabular._BUCKETS)
    hidden, _ = encoder(torch.zeros(len(categories)), categories)
    assert len(hidden.unique(dim=0)) == len(categories)
    assert sum(p.numel() for p in encoder.parameters()) < 40_000


def test_a_list_as_python_writes_it_is_read_unless_it_is_very_long():
    assert listed("['a', 'b']") == ["a", "b"]
    assert listed(json.dumps(["a"] * 100_000)) == ["a"] * 100_000
    with pytest.raises(DataError, match="not valid JSON"):
        listed(str(["a"] * 100_000))


@pytest.mark.parametrize("rows", [1, 16])
def test_a_short_training_standardises_as_a_long_one(rows):
    torch.manual_seed(0)
    years = 2000 + 10 * torch.randn(15 * rows, 2)
    encoder = tabular.Encoder.pretrained(InputSpec(column="year", modality="tabular"), "").train()
    for batch in years.split(rows):
        encoder(batch[:, 0], torch.zeros(rows, dtype=torch.long))
    kept = tabular.Encoder.rebuild(encoder.config)
    kept.load_state_dict(encoder.state_dict())
    number = encoder.standardise.eval()(torch.stack([years[:, 0], years[:, 0].log1p()], 1))
    torch.testing.assert_close(number.mean(0), torch.zeros(2), rtol=0, atol=0.05)
    torch.testing.assert_close(number.std(0, correction=0), torch.ones(2), rtol=0, atol=0.05)
    assert kept.standardise.num_batches_tracked == 15
