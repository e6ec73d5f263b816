"""Keys and values that a model is given: those of tokens before, as an engine keeps them, beside those of new tokens.

A model that is run token by token has a method `remember(batch, past)`: its outputs, and the new tokens' keys and values; or, of an encoder's states
alone, the first of what is heard in them, and the others. Engines have one, too, with which `Kept` goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

_NAME = "past_beside_new"
_LOCK = threading.RLock()


class _Pair(NamedTuple):
    """Keys or values (rows, heads, tokens, width) of tokens before, and of new ones."""

    past: Tensor
    new: Tensor


class Past(Cache):  # type: ignore[misc]
    """Keys and values that are given, and those that are new.

    Joining the two for each token would copy all that is kept, and repeating them for each head that shares them would several times over.

    Args:
        past: keys and values of each layer, (rows, heads, tokens before, width); none if there are no tokens before.
        join: whether the two are joined: for attention that is a model's own, and can't be `beside`'s.

    Attributes:
        new: as `past`, of the tokens that the model was called with.
    """

    def __init__(self, past: list[Tensor], join: bool = False) -> None:
        super().__init__(layers=[])
        self.past, self.join = past, join
        self.new: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Those of a layer, for its attention."""
        self.new += [key_states, value_states]
        if not self.past:
            return key_states, value_states
        pairs = zip(self.past[2 * layer_idx :], (key_states, value_states), strict=False)
        keys, values = (torch.cat(pair, 2) if self.join else _Pair(*pair) for pair in pairs)
        return keys, values

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
        self.layers = [SimpleNamespace(keys=keys, values=values) for keys, values in zip(known[::2], known[1::2], strict=True)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """That there are any."""
        return 1


def attended(layers: Iterable[Any], states: Tensor) -> list[Tensor]:
    """What `Heard` takes: keys and values that a decoder's layers make of an encoder's states (rows, positions, width)."""
    attentions = [layer.encoder_attn for layer in layers]
    made = [(attention.num_heads, projection(states)) for attention in attentions for projection in (attention.k_proj, attention.v_proj)]
    return [tensor.unflatten(-1, (heads, tensor.shape[-1] // heads)).transpose(1, 2) for heads, tensor in made]


def begun(heard: list[Tensor], new: list[Tensor]) -> dict[str, Tensor]:
    """Inputs of an engine's stage that goes on, here after nothing: what is heard, and of the kind of `new` keys and values of no tokens."""
    return {f"past.{number}": tensor for number, tensor in enumerate([*heard, *(tensor[:, :, :0] for tensor in new)])}


def whole(run: Any, states: dict[str, Tensor], told: dict[str, Tensor]) -> Tensor:
    """What a model makes of whole sequences.

    Args:
        run: an engine, or a forward that keeps nothing.
        states: of the encoder, by name.
        told: the sequences.
    """
    if keeps(run):
        return cast(Tensor, run.remember(told, _heard(run, states))[0])
    return torch.from_numpy(run(states | told))


def _heard(engine: Any, states: dict[str, Tensor]) -> list[Tensor]:
    """What `Heard` takes, as an engine makes it of an encoder's states."""
    first, others = engine.remember(states, [])
    return [first, *others]


def keeps(run: Any) -> bool:
    """Whether it is an engine, that goes on with keys and values."""
    return hasattr(run, "remember")


class Kept:
    """Keys and values that an engine goes on with.

    Args:
        engine: see above.
        states: of the encoder, by name.
    """

    def __init__(self, engine: Any, states: dict[str, Tensor]) -> None:
        self.engine, self.heard = engine, _heard(engine, states)
        self.said: list[Tensor] = []

    def __call__(self, told: dict[str, Tensor]) -> Tensor:
        """What the model makes of further tokens."""
        found, new = self.engine.remember(told, [*self.heard, *self.said])
        if self.said:
            self.said = [_joined(*pair) for pair in zip(self.said, new, strict=True)]
        else:
            self.said, self.heard = new, [tensor.to(new[0]).contiguous() for tensor in self.heard]  # as, and where, the engine wants them
        return cast(Tensor, found)

    def select(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self.heard, self.said = ([tensor[rows] for tensor in tensors] for tensors in (self.heard, self.said))


def _joined(before: Tensor, new: Tensor) -> Tensor:
    """As `torch.cat` has tokens, but on one thread: torch's others would wait for milliseconds until OpenVINO's leave them a core."""
    if before.is_cuda:
        return torch.cat([before, new], 2)
    halves = np.concatenate([tensor.view(torch.int16).numpy() for tensor in (before, new)], 2)  # NumPy has no bf16
    return torch.from_numpy(halves).view(new.dtype)


@contextmanager
def beside(model: Any) -> Iterator[None]:
    """Have a model of transformers take `Past`, or that and `Heard`, as its cache. One thread at a time, as all share its configuration."""
    with _LOCK:
        before, model.config._attn_implementation = model.config._attn_implementation, _NAME
        try:
            yield
        finally:
            model.config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor | _Pair,
    value: Tensor | _Pair,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of heads that may share keys and values; (rows, new tokens, heads, width)."""
    (past_keys, keys), (past_values, values) = (x if isinstance(x, _Pair) else (None, x) for x in (key, value))
    rows, heads, tokens, width = query.shape
    shared = keys.shape[1]
    # Heads that share keys are rows of one product, so that keys are read once.
    grouped = query.reshape(rows, shared, heads // shared * tokens, width) * (width**-0.5 if scaling is None else scaling)
    scores = grouped @ keys.transpose(2, 3)
    before = 0
    if past_keys is not None:
        before = past_keys.shape[2]
        scores = torch.cat([grouped @ past_keys.transpose(2, 3), scores], -1)
    if attention_mask is not None:
        scores = scores.reshape(rows, heads, tokens, -1).masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    odds = scores.softmax(-1).reshape(rows, shared, heads // shared * tokens, -1)
    found = odds[..., before:] @ values
    if past_values is not None:
        found = odds[..., :before] @ past_values + found
    return found.reshape(rows, heads, tokens, -1).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)
