"""CoNLL's files of tagged sentences (Tjong Kim Sang and De Meulder 2003): a word on each line, its tag last, an empty line after each sentence.

CoNLL-U's are those of Universal Dependencies, whose ten columns have names.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

COLUMNS = {"tokens", "ner_tags"}
SENTENCE = {"sentence #", "sentence_id", "sentence_idx"}  # in small letters, columns of tables that have a word in each row, such as Kaggle's
_DOCUMENT = b"-DOCSTART-"  # a word that begins a document, and is in none
_TAG = re.compile(rb"O|[BIESLU]-.*")
UNIVERSAL = {"tokens": 1, "lemmas": 2, "upos": 3, "xpos": 4, "feats": 5, "head": 6, "deprel": 7}  # as Hugging Face names CoNLL-U's columns


def rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """A row for each sentence, as Hugging Face names them: `tokens`, the first of each line, and `ner_tags`, the last."""
    columns = (line.removeprefix(codecs.BOM_UTF8).split() for line in lines)  # at ASCII's blanks alone: a word may have others, such as 10 000
    for some, sentence in groupby(columns, bool):
        if some and (row := _row(list(sentence))):
            yield row


def universal(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """A row for each sentence of CoNLL-U, whose cells are lists of what each word has in a column; no row of what several words are together."""
    columns = (line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").split(b"\t") for line in lines)
    for some, sentence in groupby(columns, lambda cells: bool(cells[0].strip())):
        words = [word for word in sentence if not word[0].startswith(b"#")] if some else []
        if any(len(word) < len(UNIVERSAL) + 1 for word in words):
            yield {"_error": "a line that has not CoNLL-U's 10 columns"}
        elif words := [word for word in words if word[0].isdigit()]:
            try:
                yield {name: [word[place].decode("utf-8") for word in words] for name, place in UNIVERSAL.items()}
            except UnicodeDecodeError:
                yield {"_error": "not valid UTF-8"}


def _row(words: list[list[bytes]]) -> dict[str, Any] | None:
    if words[0][0] == _DOCUMENT or (words[0][0] == b"#" and len(words[0]) > 2 and not _TAG.fullmatch(words[0][-1])):  # or a comment
        words = words[1:]
    if any(len(word) < 2 for word in words):
        return {"_error": "a word without a tag"}
    try:
        return {name: [word[place].decode("utf-8") for word in words] for name, place in (("tokens", 0), ("ner_tags", -1))} if words else None
    except UnicodeDecodeError:
        return {"_error": "not valid UTF-8"}


def are_words(rows: list[dict[str, Any]], sentence: str) -> bool:
    """Whether rows of a table are words: neighbours are of one sentence, which only its first need tell, and no cell has several words."""
    shared = any(after[sentence] in (b"", before[sentence]) for before, after in pairwise(rows))
    return shared and not any(len(cell.split()) > 1 for row in rows for name, cell in row.items() if name != sentence)


def sentences(words: Iterable[dict[str, Any]], sentence: str, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each sentence, whose cells are lists; the sentence's own as it is."""
    for name, rows in groupby(_named(words, sentence), lambda row: row[sentence]):
        cells = list(rows)
        yield {column: name if column == sentence else [row[column] for row in cells] for column in wanted}


def _named(words: Iterable[dict[str, Any]], sentence: str) -> Iterator[dict[str, Any]]:
    name = b""
    for row in words:
        name = row[sentence] or name
        yield row | {sentence: name}
