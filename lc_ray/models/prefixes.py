"""Sequences that ended, so that a prompt which begins as one of them is read from where they part.

A conversation is sent again with each turn, and an agent's with each call of a tool. vLLM keeps pages by their hash for the same end (Kwon et al.
2023, arXiv:2309.06180); here it is whole sequences, as they lie in the cache that they ran in. Each belongs to whoever asked: how soon an answer
comes, and what it says of known tokens, must not tell what others have said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

LEAST = 64  # tokens: fewer are read again as quickly, and together with other prompts


@dataclass(eq=False, slots=True)
class _Ended:
    """A sequence: whose it is, its tokens, and keys and values of each layer, (1, heads, tokens, width)."""

    owner: str
    ids: NDArray[np.int32]
    layers: list[tuple[Tensor, Tensor]]


class Prefixes:
    """Keys and values of sequences that ended, the last used last.

    Attributes:
        room: tokens that all of them may have together; those that were used last stay.
    """

    def __init__(self) -> None:
        self.room = 0
        self._kept: list[_Ended] = []

    def limit(self, room: int) -> None:
        """Have room for so many tokens."""
        self.room = room
        while sum(len(one.ids) for one in self._kept) > room:
            self._kept.pop(0)

    def wants(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens is kept."""
        return LEAST <= tokens <= self.room

    def add(self, owner: str, ids: list[int], layers: list[tuple[Tensor, Tensor]]) -> None:
        """Keep a sequence, see `_Ended`. What it begins with is not kept twice."""
        new = _Ended(owner, np.asarray(ids, np.int32), layers)
        self._kept = [old for old in self._kept if old.owner != owner or _alike(old.ids, new.ids) < len(old.ids)] + [new]
        self.limit(self.room)

    def find(self, owner: str, ids: list[int]) -> tuple[DynamicCache, int]:
        """A cache with the tokens that a prompt shares with a kept sequence of its owner's, and how many they are.

        Never all of the prompt's, since the last one is to be run.
        """
        prompt, cache = np.asarray(ids, np.int32), DynamicCache()
        own = [(min(_alike(old.ids, prompt), len(ids) - 1), i) for i, old in enumerate(self._kept) if old.owner == owner]
        shared, best = max(own, default=(0, 0))
        if shared < LEAST:
            return cache, 0
        self._kept.append(self._kept.pop(best))
        for number, (keys, values) in enumerate(self._kept[-1].layers):
            cache.update(keys[:, :, :shared], values[:, :, :shared], number)
        return cache, shared


def _alike(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
