"""Rows that one JSON document holds, in the forms that programs write."""

import json

import pandas as pd
import pytest
from test_read import all_rows

ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
READ = [row | {"_row": number} for number, row in enumerate(ROWS)]


@pytest.mark.parametrize("orient", ["columns", "index", "records", "split", "table"])
@pytest.mark.parametrize("indent", [0, 2])
def test_what_pandas_writes(tmp_path, orient, indent):
    table = pd.DataFrame(ROWS, index=[7, 3])
    table.to_json(tmp_path / "a.json", orient=orient, indent=indent)
    assert all_rows(tmp_path / "a.json", ["text", "label"]) == READ


@pytest.mark.parametrize(
    "content",
    [
        {"text": ["a", "b"], "label": ["x", "y"]},
        {"version": 1, "data": ROWS},
        {"data": ROWS, "languages": ["en"]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_columns_and_rows_within_an_object(tmp_path, content, indent):
    (tmp_path / "a.json").write_text(json.dumps(content, indent=indent), "utf-8")
    assert all_rows(tmp_path / "a.json", ["text", "label"]) == READ


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_alone_is_a_row(tmp_path, indent):
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=indent), "utf-8")
    assert all_rows(tmp_path / "a.json", ["text", "label"]) == READ[:1]


@pytest.mark.parametrize("length", [100, 256, 257, 2**20 + 256])
def test_first_lines_of_any_length_are_lines(tmp_path, length):
    line = json.dumps({"text": "a" * (length - len('{"text": ""}'))})
    for rows in (1, 2):
        (tmp_path / "a.json").write_text(f"{line}\n" * rows, "utf-8")
        assert len(all_rows(tmp_path / "a.json", ["text"])) == rows
