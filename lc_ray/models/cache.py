"""Keys and values of running sequences: a causal language model reads each token once.

Sequences of any length share one cache, a row each, so that they can join and leave between any two tokens. transformers' own
continuous batching has neither a seed nor a grammar per request, and lays out its pages by the configuration, which a pruned model does not follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

_PART = 256  # tokens of a prompt that are read at once, while running sequences wait
_GROWTH = 256  # positions


@dataclass(eq=False, slots=True)
class Prompt:
    """A prompt, its keys and values, and how many of its tokens are read."""

    ids: list[int]
    cache: Any = field(default_factory=DynamicCache)
    done: int = 0


class Cached:
    """A `Decoder` that keeps keys and values.

    Args:
        model: a `text_generation.Model` in evaluation mode, or what has its `extend`.
        threads: CPU threads.
        device: of the model.
    """

    def __init__(self, model: Any, threads: int, device: torch.device) -> None:
        self.model, self.threads, self.device, self.rows = model, threads, device, Rows()

    def begin(self, ids: list[int]) -> Prompt:
        """See `Decoder`."""
        return Prompt(ids)

    def read(self, prompt: Prompt) -> Tensor | None:
        """See `Decoder`."""
        end = min(prompt.done + _PART, len(prompt.ids))
        logits = self._extend(torch.tensor([prompt.ids[prompt.done : end]]), torch.arange(prompt.done, end)[None], prompt.cache)[0]
        prompt.done = end
        return logits if end == len(prompt.ids) else None

    def join(self, prompt: Prompt) -> None:
        """See `Decoder`."""
        self.rows.join(prompt.cache)

    def step(self, tokens: list[int]) -> Tensor:
        """See `Decoder`."""
        positions = self.rows.advance()
        alike = len(set(self.rows.lengths)) == 1  # then all rows see all positions, and attention is quicker without a mask
        seen = None if alike else (torch.arange(max(self.rows.lengths)) <= positions)[:, None, None].to(self.device)
        return self._extend(torch.tensor(tokens)[:, None], positions, self.rows, seen)

    def leave(self, row: int) -> None:
        """See `Decoder`."""
        self.rows.leave(row)

    def _extend(self, ids: Tensor, positions: Tensor, cache: Any, seen: Tensor | None = None) -> Tensor:
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.model.extend(ids.to(self.device), positions.to(self.device), cache, seen).float().cpu()  # type: ignore[no-any-return]


class Rows(Cache):  # type: ignore[misc]
    """transformers' cache of rows of different lengths, which all get one token at a time.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self._layers: list[list[Tensor]] = []  # keys and values of each layer, (rows, heads, positions, width); there is more room than rows
        self._place: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def join(self, cache: Any) -> None:
        """Add a row with what another cache holds of one."""
        row, length = len(self.lengths), cache.get_seq_length()
        own = [[layer.keys, layer.values] for layer in cache.layers]
        if not self._layers:
            self._layers = [[tensor.new_empty(0, tensor.shape[1], 0, tensor.shape[3]) for tensor in pair] for pair in own]
        self._reserve(row + 1, length + 1)
        for pair, given in zip(self._layers, own, strict=True):
            for room, tensor in zip(pair, given, strict=True):
                room[row, :, :length] = tensor[0]
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = self.lengths.pop()
        if row < len(self.lengths):
            for pair in self._layers:
                for room in pair:
                    room[row, :, :last] = room[len(self.lengths), :, :last]
            self.lengths[row] = last
        if not self.lengths:
            self._layers = []

    def held(self) -> list[Tensor]:
        """Keys and values before the token that is being added, layer by layer."""
        return [room[: len(self.lengths), :, : max(self.lengths) - 1] for pair in self._layers for room in pair]

    def advance(self) -> Tensor:
        """Make room for a token in every row. Its positions, (rows, 1)."""
        self._reserve(len(self.lengths), max(self.lengths) + 1)
        device = self._layers[0][0].device
        positions = torch.tensor(self.lengths)
        self._place = (torch.arange(len(self.lengths), device=device), positions.to(device))
        self.lengths = [length + 1 for length in self.lengths]
        return positions[:, None]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take a token's keys and values (rows, heads, 1, width); those of all positions."""
        rows, positions = self._place
        for room, tensor in zip(self._layers[layer_idx], (key_states, value_states), strict=True):
            room[rows, :, positions] = tensor[:, :, 0]
        keys, values = (room[: len(self.lengths), :, : max(self.lengths)] for room in self._layers[layer_idx])
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest row before the one that is being added."""
        return max(self.lengths) - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Positions that `update` gives, and the first of them."""
        return max(self.lengths), 0

    def _reserve(self, rows: int, positions: int) -> None:
        have_rows, _, have, _ = self._layers[0][0].shape
        if rows <= have_rows and positions <= have:
            return
        rows = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        positions = have if positions <= have else -(-positions // _GROWTH) * _GROWTH
        for pair in self._layers:
            for i, old in enumerate(pair):
                pair[i] = old.new_zeros(rows, old.shape[1], positions, old.shape[3])  # masked positions must not hold NaN
                pair[i][:have_rows, :, :have] = old


def held_by(cache: Any) -> list[Tensor]:
    """Keys and values in a cache before the tokens that are being added, layer by layer."""
    return cache.held() if isinstance(cache, Rows) else [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
