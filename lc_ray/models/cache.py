"""Keys and values of running sequences: a causal language model reads each token once.

Sequences of any length share one cache, a row each, so that they can join and leave between any two tokens. transformers' own
continuous batching has neither a seed nor a grammar per request, and lays out its pages by the configuration, which a pruned model does not follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from lc_ray.models.prefixes import Prefixes
from lc_ray.tasks import _decoder
from lc_ray.tasks._decoder import PART

_STEP = 64  # positions: room is made for so many at once


@dataclass(eq=False, slots=True)
class Prompt(_decoder.Prompt):
    """A prompt, whose it is, and the row of a cache that has keys and values of what is read."""

    owner: str = ""
    cache: Any = field(default_factory=DynamicCache)
    row: int = 0


class Cached:
    """A `Decoder` that keeps keys and values.

    Args:
        model: a `text_generation.Model` in evaluation mode, or what has its `extend`.
        threads: CPU threads.
        device: of the model.
    """

    def __init__(self, model: Any, threads: int, device: torch.device) -> None:
        self.model, self.threads, self.device, self.rows = model, threads, device, Rows()
        self._running: list[tuple[str, list[int]]] = []  # of each row, whose it is, and its tokens
        self._ended = Prefixes()

    def keep(self, tokens: int) -> None:
        """See `Decoder`."""
        self._ended.limit(tokens)

    def begin(self, ids: list[int], owner: str = "", every: bool = False) -> Prompt:
        """See `Decoder`."""
        cache, done = (DynamicCache(), 0) if every else self._ended.find(owner, ids)
        return Prompt(ids, every, done, owner, cache)

    def read(self, prompts: list[Prompt]) -> list[Tensor | None]:
        """See `Decoder`. Those that are short are padded on their right, which nothing before it sees, and read together."""
        first, longest = prompts[0], len(prompts[0].ids) - prompts[0].done
        chosen = [first]
        for prompt in prompts[1:]:
            wide = max(longest, len(prompt.ids))
            if not (first.done or prompt.done) and prompt.every == first.every and (len(chosen) + 1) * wide <= PART:
                chosen, longest = [*chosen, prompt], wide
        parts = [torch.tensor(prompt.ids[prompt.done : prompt.done + PART]) for prompt in chosen]
        ids = pad_sequence(parts, batch_first=True)
        places = torch.arange(ids.shape[1]).expand_as(ids)
        asked = places if first.every else torch.tensor([[len(part) - 1] for part in parts])
        logits = self._extend(ids, first.done + places, asked, first.cache)
        found = {}
        for row, (prompt, part) in enumerate(zip(chosen, parts, strict=True)):
            prompt.cache, prompt.row, prompt.done = first.cache, row, prompt.done + len(part)
            if prompt.every or prompt.done == len(prompt.ids):
                found[id(prompt)] = logits[row, : len(part)]
        return [found.get(id(prompt)) for prompt in prompts]

    def join(self, prompt: Prompt) -> None:
        """See `Decoder`."""
        self.rows.join(prompt.cache, prompt.row, prompt.done)
        self._running.append((prompt.owner, list(prompt.ids)))

    def step(self, tokens: list[int]) -> Tensor:
        """See `Decoder`."""
        positions = self.rows.advance()
        alike = len(set(self.rows.lengths)) == 1  # then all rows see all positions, and attention is quicker without a mask
        seen = None if alike else (torch.arange(max(self.rows.lengths)) <= positions)[:, None, None].to(self.device)
        for (_, ids), token in zip(self._running, tokens, strict=True):
            ids.append(token)
        return self._extend(torch.tensor(tokens)[:, None], positions, torch.zeros_like(positions), self.rows, seen)[:, 0]

    def leave(self, row: int) -> None:
        """See `Decoder`."""
        (owner, ids), self._running[row] = self._running[row], self._running[-1]
        self._running.pop()
        if self._ended.wants(len(ids)):
            self._ended.add(owner, ids, self.rows.row(row))
        self.rows.leave(row)

    def _extend(self, ids: Tensor, positions: Tensor, asked: Tensor, cache: Any, seen: Tensor | None = None) -> Tensor:
        torch.set_num_threads(self.threads)
        given = [tensor.to(self.device) for tensor in (ids, positions, asked)]
        with torch.inference_mode():
            return self.model.extend(*given, cache, seen).float().cpu()  # type: ignore[no-any-return]


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

    def join(self, cache: Any, other: int, length: int) -> None:
        """Add a row with the first `length` positions of another cache's row."""
        row = len(self.lengths)
        own = [[layer.keys, layer.values] for layer in cache.layers]
        if not self._layers:
            self._layers = [[tensor.new_empty(0, tensor.shape[1], 0, tensor.shape[3]) for tensor in pair] for pair in own]
        self._reserve(row + 1, length + 1)
        for pair, given in zip(self._layers, own, strict=True):
            for room, tensor in zip(pair, given, strict=True):
                room[row, :, :length] = tensor[other, :, :length]
        self.lengths.append(length)

    def row(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of a row: keys and values of each layer, (1, heads, positions, width)."""
        length = self.lengths[row]
        return [(keys[row : row + 1, :, :length].clone(), values[row : row + 1, :, :length].clone()) for keys, values in self._layers]

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
        elif 2 * max(self.lengths) + _STEP < self._layers[0][0].shape[2]:
            self._resize(self._layers[0][0].shape[0], max(self.lengths))

    def held(self) -> list[Tensor]:
        """Keys and values before the token that is being added, layer by layer; each row's are followed by such as don't count."""
        return [room[: len(self.lengths)] for pair in self._layers for room in pair]

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
        self._resize(have_rows if rows <= have_rows else max(rows, 2 * have_rows), max(positions, have))

    def _resize(self, rows: int, positions: int) -> None:
        positions = -(-positions // _STEP) * _STEP
        for pair in self._layers:
            for i, old in enumerate(pair):
                pair[i] = old.new_zeros(rows, old.shape[1], positions, old.shape[3])  # masked positions must not hold NaN
                kept = min(positions, old.shape[2])
                pair[i][: len(old), :, :kept] = old[:, :, :kept]


def held_by(cache: Any) -> list[Tensor]:
    """Keys and values in a cache before the tokens that are being added, layer by layer. `Rows.held` says what else."""
    return cache.held() if isinstance(cache, Rows) else [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
