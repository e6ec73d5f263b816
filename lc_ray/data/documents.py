"""Rows that one JSON document holds: a list, or an object as COCO, pandas and others write it."""

from __future__ import annotations

import codecs
import json
from typing import Any

from lc_ray.data import coco, packed
from lc_ray.data.files import File

_START, _PART = 256, 2**20  # bytes
_SPLIT = {"columns", "data"}  # of pandas' orient="split"


def is_one(file: File) -> bool:
    """Whether a file of JSON is one document, and not one on each line. In a .jsonl only a list of objects is, as its lines may be lists."""
    lines = not packed.bare(file.name.lower()).endswith(".json")
    with file.open() as content:
        start = b""
        while not start.strip() and (line := content.readline(_START)):
            start = line.removeprefix(codecs.BOM_UTF8)
        if lines or not start.lstrip().startswith(b"{"):
            return b"".join((start + content.read(_START)).split()).startswith(b"[{" if lines else b"[")
        while not start.endswith(b"\n") and (line := content.readline(_PART)):  # all of the first line, of which the end tells
            start = start[-1:] + line
        return not start.rstrip().endswith(b"}") or not any(map(bytes.strip, content))


def rows(content: bytes) -> list[Any]:
    """Of a list, or an object: COCO's pictures; pandas' columns; objects by name; lists of like length; the one list of objects in it; or itself.

    Raises:
        ValueError: neither.
    """
    found = json.loads(content.removeprefix(codecs.BOM_UTF8))
    if isinstance(found, list):
        return found
    if not isinstance(found, dict):
        raise ValueError("neither a list nor an object")
    if coco.is_one(found):
        return coco.rows(found)
    values = list(found.values())
    if found.keys() >= _SPLIT and all(isinstance(row, list) for row in found["data"]):
        return [dict(zip(found["columns"], row, strict=False)) for row in found["data"]]
    if values and all(isinstance(each, dict) for each in values):
        by_column = all(number.isdigit() for number in values[0]) and all(column.keys() == values[0].keys() for column in values)
        return [{name: column[number] for name, column in found.items()} for number in values[0]] if by_column else values
    lists = [value for value in values if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)]
    if len(values) > len(lists) and all(isinstance(column, list) and len(column) == len(values[0]) for column in values):
        return [dict(zip(found, row, strict=True)) for row in zip(*values, strict=True)]
    return lists[0] if len(lists) == 1 else [found]
