"""Text of tokens as they come, up to where a stop string begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

PART = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for a part of a character
_CONTEXT = 8  # tokens of a prompt that say how the next is written
_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}  # as bytewise vocabularies spell them
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # as SentencePiece's do


def coded(tokenizer: Any, token: int, text: str) -> list[int] | None:
    """The bytes of a token that is written as `text`; None of a part of a character where the vocabulary does not tell."""
    if PART not in text:
        return list(text.encode())
    name = str(tokenizer.convert_ids_to_tokens(token))
    if one := _BYTE.fullmatch(name):
        return [int(one[1], 16)]
    found = [_BYTES[letter] for letter in name if letter in _BYTES]
    return found if len(found) == len(name) else None


class Spelling:
    """The text of one answer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop: strings that end the text, and are not in it.
        before: tokens that it goes on from, if it is to be written as their continuation.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text, self.stopped = "", False
        self._ids = list(before[-_CONTEXT:])
        self._context = 0  # first of the tokens that are decoded: how a token is written depends on those before it
        self._written = len(self._ids)  # tokens whose text is in `text`
        self._given = 0  # characters that `take` gave

    def add(self, token: int) -> None:
        """Take a token."""
        self._ids.append(token)
        self._write(whole=False)

    def take(self, whole: bool = False) -> str:
        """Text that was not given yet.

        Args:
            whole: whether no more tokens come; else what may be the beginning of a stop string is held back.
        """
        if whole and not self.stopped:
            self._write(whole=True)
        end = len(self.text) - (0 if whole or self.stopped else self._held())
        new, self._given = self.text[self._given : end], max(end, self._given)
        return new

    def _write(self, whole: bool) -> None:
        before = self._decode(self._ids[self._context : self._written])
        now = self._decode(self._ids[self._context :])
        if now.endswith(PART) and not whole:
            return
        begin = len(self.text)
        self.text += now[len(before) :]
        self._context, self._written = self._written, len(self._ids)
        places = [place for stop in self.stop if (place := self.text.find(stop, max(0, begin - len(stop) + 1))) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max(map(len, self.stop), default=1) - 1
        return next((n for n in range(min(longest, len(self.text)), 0, -1) if any(s.startswith(self.text[-n:]) for s in self.stop)), 0)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""
