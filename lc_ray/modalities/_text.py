"""Texts and lists, as cells of every kind of file hold them, and cells that hold nothing."""

from __future__ import annotations

import ast
import codecs
import datetime
import json
import re
from collections.abc import Callable, Iterator, Sized
from decimal import Decimal
from itertools import islice, pairwise
from typing import Any

import numpy as np
import regex

from lc_ray.errors import DataError

# NumPy writes lists without commas, and Python reads neighbouring strings as one.
_NO_COMMA = re.compile(r"""(['"])\s+['"]""")
_WRITTEN = 2**16  # characters of a list as Python writes it: reading one takes hundreds of times its size
BAR = "|"  # between the names of columns that are one
LONG = 64  # characters, or words, per token, from which on a text is not read whole: it hardly ever has so few tokens
GROUPED = re.compile(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")  # as tables write thousands
_COMMA = re.compile(r"[-+]?([0-9]{1,3}(\.[0-9]{3})+|[0-9]+),[0-9]+")  # where a comma is what a point is elsewhere
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # and kana: written without blanks between words
APART, _BETWEEN = regex.compile(r"\S+"), re.compile(rf"(?<=[{_HAN}]) +(?=[{_HAN}])")
_ALONE = rf"{_HAN}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}\p{{Tibetan}}"  # likewise; a letter's marks are above, below or beside it
_BLANK = r"\s\p{Cc}\u200b\ufeff"  # and what is seen as little
_LETTER = rf"[[\w\p{{M}}\p{{Cf}}]--[{_ALONE}{_BLANK}]]"
WORD = regex.compile(rf"(?V1)(?:\p{{L}}\.){{2,}}|[{_ALONE}]\p{{M}}*|{_LETTER}+(?:[-.,:&@+·\u05f3\u05f4]{_LETTER}+)*|(?![{_BLANK}])\X")
_BARE = regex.compile(rf"(?V1)^[{_BLANK}]+|[{_BLANK}]+$")


def _windows(error: UnicodeError) -> tuple[str, int]:
    """What is not UTF-8 as old programs of Windows wrote it, whose characters are Latin-1's and some more."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("windows-1252", "replace"), error.end


codecs.register_error("windows-1252", _windows)


def missing(value: Any) -> bool:
    """Whether a cell is null, or not a number."""
    return value is None or (isinstance(value, float) and value != value)


def absent(value: Any) -> bool:
    """Whether a cell is missing, or blank."""
    return missing(value) or (isinstance(value, str | bytes) and not value.strip())


def together(cells: dict[str, Any]) -> dict[str, Any] | None:
    """The cells of several columns that are one, by their names; None where none of them has anything."""
    return None if all(map(absent, cells.values())) else cells


def written(value: Any) -> Any:
    """A number, a date, or true and false, as the text that a table would have; other cells as they are."""
    return str(value) if isinstance(value, int | float | Decimal | datetime.date) else value


def unicode(value: str | bytes, errors: str = "strict") -> str:
    """A cell as text.

    Raises:
        DataError: not UTF-8, or half of a surrogate pair, which JSON can write and neither tokenizers nor Arrow can.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise DataError("not valid UTF-8") from None
    if not value.isascii() and HALF.search(value):
        raise DataError("not valid Unicode: half of a surrogate pair")
    return value


def words(text: str) -> Iterator[regex.Match[str]]:
    """A text's words: what blanks and punctuation part; each letter of languages without blanks between words, unless they part words of Chinese."""
    found: Iterator[regex.Match[str]] = (APART if _BETWEEN.search(text) else WORD).finditer(text)
    return found


def pieces(text: str, most: int | None = None) -> list[str]:
    """A text's words, each with what is behind it up to the next, so that together they are the text; the last of so many with all the rest."""
    starts = [word.start() for word in islice(words(text), most)]
    return [text[start:end] for start, end in pairwise([0, *starts[1:], len(text)])] if starts else []


def joined(words: list[str]) -> list[str]:
    """Words of a list as pieces of a text: each with the blank that is behind it, of which Chinese and Japanese have none."""
    return [f"{word}{'' if _BETWEEN.search(f'{word[-1:]} {after[:1]}') else ' '}" for word, after in pairwise(words)] + words[-1:]


def bare(piece: str) -> str:
    """The word, or words, of a piece."""
    return str(_BARE.sub("", piece))


def dotted(lower: str) -> str:
    """Small letters of a text, of which the Turkish İ's is an i as any other: Python's has a second dot, as a mark that no vocabulary knows."""
    return lower.replace("i\u0307", "i")


def enough(text: str, most: int, read: Callable[[str], Sized], last: bool = False) -> str:
    """Of a very long text a part that has more than twice as many tokens as are kept, any other one whole.

    To read a book's tokens takes half a minute, for which others wait. Where the part ends its tokens are other ones than the whole text's; they are
    not among those that are kept.

    Args:
        text: any.
        most: tokens that are kept.
        read: its tokens.
        last: whether they are the last.
    """
    part = text[-LONG * most :] if last else text[: LONG * most]
    return part if len(part) < len(text) and len(read(part)) > 2 * most else text


def number(text: str) -> float:
    """The number that a table writes so, with a decimal point or comma.

    Raises:
        ValueError: it is none, such as 2020_01, which Python reads as one, or 1,234, which is one or the other.
    """
    if "_" in text:
        raise ValueError
    if _COMMA.fullmatch(text.strip()) and not GROUPED.fullmatch(text.strip()):
        text = text.replace(".", "").replace(",", ".")
    return float(text)


def listed(value: Any, starts: tuple[str, ...] = ("[",)) -> Any:
    """A list as one, be it an array, or the text that JSON or Python writes of it; what is none stays as it is.

    Args:
        value: a cell.
        starts: what such a text begins with.

    Raises:
        DataError: not UTF-8, or a text that begins as a list and is neither's.
    """
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        value = unicode(value)
    if not isinstance(value, str) or not value.lstrip().startswith(starts):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        if len(value) > _WRITTEN or _NO_COMMA.search(value):
            raise ValueError
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError("a list that is not valid JSON") from None
