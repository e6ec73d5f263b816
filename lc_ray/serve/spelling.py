"""Text of tokens as they come, up to where a stop string begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PART = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for a part of a character
_CONTEXT = 8  # tokens of a prompt that say how the next is written


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
