"""Going on with sequences token by token, in a batch that they join and leave at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class Decoder(Protocol):
    """Running sequences, numbered from 0. One thread uses it."""

    def keep(self, tokens: int) -> None:
        """Keep sequences that ended, of so many tokens together, for prompts that begin as they do. Without this, none are kept."""

    def begin(self, ids: list[int], owner: str = "") -> Any:
        """A prompt, yet to be read; only sequences of the same owner's help it."""

    def known(self, prompt: Any) -> int:
        """Tokens of a prompt that need not be read: before any are, those that it shares with a sequence that was kept."""

    def read(self, prompts: list[Any]) -> list[Tensor | None]:
        """Read the next part of the first prompt, and maybe of others. Logits (vocabulary,) after the last token of each; None where more is left."""

    def join(self, prompt: Any) -> None:
        """Have a sequence begin with a prompt that is read, as the last one. A prompt may begin several."""

    def step(self, tokens: list[int]) -> Tensor:
        """Add a token to each sequence. Logits (rows, vocabulary) after them."""

    def leave(self, row: int) -> None:
        """Drop a sequence; the last one takes its place."""


class Whole:
    """A decoder for engines that keep nothing between calls: whole sequences are run for each token.

    Args:
        run: sequences → logits (rows, vocabulary) after them.
    """

    def __init__(self, run: Callable[[list[list[int]]], Tensor]) -> None:
        self.run = run
        self.rows: list[list[int]] = []

    def keep(self, tokens: int) -> None:
        """See `Decoder`. Nothing that could be kept would help."""

    def begin(self, ids: list[int], owner: str = "") -> list[int]:
        """See `Decoder`."""
        return ids

    def known(self, prompt: list[int]) -> int:
        """See `Decoder`."""
        return 0

    def read(self, prompts: list[list[int]]) -> list[Tensor | None]:
        """See `Decoder`."""
        return [self.run(prompts[:1])[0], *([None] * (len(prompts) - 1))]

    def join(self, prompt: list[int]) -> None:
        """See `Decoder`."""
        self.rows.append(list(prompt))

    def step(self, tokens: list[int]) -> Tensor:
        """See `Decoder`."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        return self.run(self.rows)

    def leave(self, row: int) -> None:
        """See `Decoder`."""
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
