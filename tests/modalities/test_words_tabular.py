"""Words and cells of a table."""

from decimal import Decimal

import pytest
import torch

from lc_ray.errors import DataError
from lc_ray.modalities import tabular, words
from lc_ray.spec import InputSpec


@pytest.fixture
def column(tiny_base):
    return words.Modality(InputSpec(column="words", modality="words", max_length=8), tiny_base)


def test_words_come_as_list_or_text(column):
    assert column.decode(["good", "day"]) == column.decode("good  day") == column.decode(b"good day") == ["good", "day"]
    assert column.decode(b'["good", "a day"]') == column.decode("['good', 'a day']") == ["good", "a day"]
    assert column.decode("[1] good") == ["[1]", "good"]
    for bad, reason in (([], "no words"), (None, "null"), (["good", None], "null"), (["good", ""], "empty"), (7, "not text")):
        with pytest.raises(DataError, match=reason):
            column.decode(bad)


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


def test_words_that_the_tokenizer_drops_move_no_other(column):
    parts = column.prepare([["\u200b", "good", "\ufe0f", "day", "\u200b"]])
    tokens = column.tokenizer.convert_ids_to_tokens(parts["input_ids"][0])
    assert [tokens[p] for p in parts["starts"][0]] == ["[CLS]", "good", "good", "day"]


def test_cells_are_numbers_or_categories():
    cell = tabular.Modality(InputSpec(column="age", modality="tabular"), "")
    assert [cell.decode(v) for v in (3, 2.5, "7", b" red ", True, Decimal("1.50"))] == ["3", "2.5", "7", "red", "True", "1.50"]
    bad_cells = [(None, "null"), ("  ", "null"), (float("inf"), "not a finite"), ([1], "neither a number nor a text"), (b"\xff", "UTF-8")]
    for bad, reason in [*bad_cells, ("\ud83d", "Unicode")]:
        with pytest.raises(DataError, match=reason):
            cell.decode(bad)
    batch = cell.collate(cell.prepare(["3", "red", "blue", "red", None]))
    assert batch["number"].tolist() == [3, 0, 0, 0, 0]
    number, red, blue, again, missing = batch["category"].tolist()
    assert number == missing == 0
    assert red == again != blue


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
        found.append(encoder.standardise(torch.stack([batch["number"]] * 2, 1)))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
