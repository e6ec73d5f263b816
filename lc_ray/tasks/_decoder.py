"""Going on with sequences token by token, in a batch that they join and leave at any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

PART = 256  # tokens of prompts that are read at once, while running sequences wait


@dataclass(eq=False, slots=True)
class Prompt:
    """A prompt that is being read.

    Args:
        ids: its tokens.
        every: whether logits are given after each of them, or only after the last.
        done: how many of them are read.
    """

    ids: list[int]
    every: bool = False
    done: int = 0


class Decoder(Protocol):
    """Running sequences, numbered from 0. One thread uses it."""

    def keep(self, tokens: int) -> None:
        """Keep sequences that ended, of so many tokens together, for prompts that begin as they do. Without this, none are kept."""

    def begin(self, ids: list[int], owner: str = "", every: bool = False) -> Any:
        """A `Prompt`, of which is done what it shares with a kept sequence of the same owner's, unless logits are to be given after every token."""

    def read(self, prompts: list[Any]) -> list[Tensor | None]:
        """Read the next part of the first prompt, and maybe of others.

        Returns:
            Logits (tokens, vocabulary) after every token of a prompt's part, or after its last, as it was begun. None where there are none yet.
        """

    def join(self, prompt: Any) -> None:
        """Have a sequence begin with a prompt that is read, as the last one. A prompt may begin several."""

    def step(self, tokens: list[int]) -> Tensor:
        """Add a token to each sequence. Logits (rows, vocabulary) after them."""

    def leave(self, row: int) -> None:
        """Drop a sequence; the last one takes its place."""


class Whole:
    """A decoder for engines that keep nothing between calls: whole sequences are run for each token.

    Args:
        run: sequences, and a number of tokens → logits (rows, tokens, vocabulary) after so many of each one's last.
    """

    def __init__(self, run: Callable[[list[list[int]], int], Tensor]) -> None:
        self.run = run
        self.rows: list[list[int]] = []

    def keep(self, tokens: int) -> None:
        """See `Decoder`. Nothing that could be kept would help."""

    def begin(self, ids: list[int], owner: str = "", every: bool = False) -> Prompt:
        """See `Decoder`."""
        return Prompt(ids, every)

    def read(self, prompts: list[Prompt]) -> list[Tensor | None]:
        """See `Decoder`."""
        first, before = prompts[0], prompts[0].done
        first.done = min(before + PART, len(first.ids)) if first.every else len(first.ids)
        logits = self.run([first.ids[: first.done]], first.done - before if first.every else 1)
        return [logits[0], *([None] * (len(prompts) - 1))]

    def join(self, prompt: Prompt) -> None:
        """See `Decoder`."""
        self.rows.append(list(prompt.ids))

    def step(self, tokens: list[int]) -> Tensor:
        """See `Decoder`."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        return self.run(self.rows, 1)[:, 0]

    def leave(self, row: int) -> None:
        """See `Decoder`."""
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
