"""CoNLL's files of tagged sentences (Tjong Kim Sang and De Meulder 2003): a word on each line, its tag last, an empty line after each sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

COLUMNS = {"tokens", "ner_tags"}
_DOCUMENT = "-DOCSTART-"  # a word that begins a document, and is in none


def rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """A row for each sentence, as Hugging Face names them: `tokens`, the first of each line, and `ner_tags`, the last."""
    for empty, sentence in groupby(lines, lambda line: not line.strip()):
        if not empty and (row := _row(b"".join(sentence))):
            yield row


def _row(sentence: bytes) -> dict[str, Any] | None:
    try:
        words = [line.split() for line in sentence.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        return {"_error": "not valid UTF-8"}
    if words[0][0] == _DOCUMENT:
        words = words[1:]
    if any(len(word) < 2 for word in words):
        return {"_error": "a word without a tag"}
    return {"tokens": [word[0] for word in words], "ner_tags": [word[-1] for word in words]} if words else None
