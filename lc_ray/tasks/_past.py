"""Attention over keys and values that are given apart: those of tokens before, as an engine keeps them, and those of new tokens.

A model that is run token by token has a method `remember(batch, past)`: its outputs, and the new tokens' keys and values. Engines have one, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

_NAME = "past_beside_new"


class _Pair(NamedTuple):
    """Keys or values (rows, heads, tokens, width) of tokens before, if there may be any, and of new ones."""

    past: Tensor | None
    new: Tensor


class Past(Cache):  # type: ignore[misc]
    """Keys and values that are given, and those that are new.

    Joining the two for each token would copy all that is kept, and repeating them for each head that shares them would several times over.

    Args:
        past: keys and values of each layer, (rows, heads, tokens before, width); none if there are no tokens before.

    Attributes:
        new: as `past`, of the tokens that the model was called with.
    """

    def __init__(self, past: list[Tensor]) -> None:
        super().__init__(layers=[])
        self.past = past
        self.new: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[_Pair, _Pair]:  # type: ignore[override]
        """Those of a layer, for `_attend`."""
        self.new += [key_states, value_states]
        keys, values = self.past[2 * layer_idx : 2 * layer_idx + 2] or (None, None)
        return _Pair(keys, key_states), _Pair(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before."""
        return self.past[0].shape[2] if self.past else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Positions that are seen, and the first of them."""
        return self.get_seq_length() + query_length, 0


class Heard(Cache):  # type: ignore[misc]
    """Keys and values of what a decoder attends to beside its own tokens, which are always the same.

    Args:
        known: keys and values of each layer, (rows, heads, positions, width).
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__(layers=[])
        pairs = [_Pair(None, tensor) for tensor in known]
        self.layers = [SimpleNamespace(keys=keys, values=values) for keys, values in zip(pairs[::2], pairs[1::2], strict=True)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """That there are any."""
        return 1


@contextmanager
def beside(model: Any) -> Iterator[None]:
    """Have a model of transformers take `Past`, or that and `Heard`, as its cache."""
    before, model.config._attn_implementation = model.config._attn_implementation, _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attend(
    module: nn.Module, query: Tensor, key: _Pair, value: _Pair, attention_mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of heads that may share keys and values; (rows, new tokens, heads, width)."""
    rows, heads, tokens, width = query.shape
    shared = key.new.shape[1]
    # Heads that share keys are rows of one product, so that keys are read once.
    grouped = query.reshape(rows, shared, heads // shared * tokens, width) * (width**-0.5 if scaling is None else scaling)
    scores = grouped @ key.new.transpose(2, 3)
    before = 0
    if key.past is not None:
        before = key.past.shape[2]
        scores = torch.cat([grouped @ key.past.transpose(2, 3), scores], -1)
    if attention_mask is not None:
        scores = scores.reshape(rows, heads, tokens, -1).masked_fill(~attention_mask, torch.finfo(torch.float32).min)
    odds = scores.softmax(-1).reshape(rows, shared, heads // shared * tokens, -1)
    found = odds[..., before:] @ value.new
    if value.past is not None:
        found = odds[..., :before] @ value.past + found
    return found.reshape(rows, heads, tokens, -1).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)
