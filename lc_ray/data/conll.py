"""CoNLL's files of tagged sentences (Tjong Kim Sang and De Meulder 2003): a word on each line, its tag last, an empty line after each sentence."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

COLUMNS = {"tokens", "ner_tags"}
_DOCUMENT = b"-DOCSTART-"  # a word that begins a document, and is in none


def rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """A row for each sentence, as Hugging Face names them: `tokens`, the first of each line, and `ner_tags`, the last."""
    columns = (line.removeprefix(codecs.BOM_UTF8).split() for line in lines)  # at ASCII's blanks alone: a word may have others, such as 10 000
    for some, sentence in groupby(columns, bool):
        if some and (row := _row(list(sentence))):
            yield row


def _row(words: list[list[bytes]]) -> dict[str, Any] | None:
    if words[0][0] == _DOCUMENT:
        words = words[1:]
    if any(len(word) < 2 for word in words):
        return {"_error": "a word without a tag"}
    try:
        return {name: [word[place].decode("utf-8") for word in words] for name, place in (("tokens", 0), ("ner_tags", -1))} if words else None
    except UnicodeDecodeError:
        return {"_error": "not valid UTF-8"}
