"""Mixtures of experts as OpenVINO can run them.

transformers sorts tokens by their experts, for which OpenVINO has no operation. Here each expert sees every token, and the others' shares are 0:
a product of constant weights, which can be int8, and is as large whatever the tokens are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS


@contextmanager
def dense() -> Iterator[None]:
    """Within it all experts of transformers' models see all tokens."""
    names = list(ALL_EXPERTS_FUNCTIONS)
    for name in names:
        ALL_EXPERTS_FUNCTIONS[name] = _forward
    try:
        yield
    finally:
        for name in names:
            del ALL_EXPERTS_FUNCTIONS[name]


def _forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The forward of transformers' experts: (tokens, width), (tokens, chosen), (tokens, chosen) → (tokens, width)."""
    share = torch.zeros(hidden_states.shape[0], self.num_experts, dtype=top_k_weights.dtype).scatter(1, top_k_index, top_k_weights)
    first = _linear(self, "gate_up_proj" if self.has_gate else "up_proj", hidden_states.expand(self.num_experts, -1, -1))
    made = _linear(self, "down_proj", self._apply_gate(first) if self.has_gate else self.act_fn(first))  # (experts, tokens, width)
    if self.has_post_expert_norm:
        made = self.post_expert_norm(made)
    return (made * share.T.unsqueeze(-1)).sum(0)


def _linear(experts: Any, name: str, given: Tensor) -> Tensor:
    """(experts, tokens, inputs) → (experts, tokens, outputs)."""
    weight: Tensor = getattr(experts, name)
    found: Tensor = given @ (weight if experts.is_transposed else weight.transpose(1, 2))
    return found + cast(Tensor, getattr(experts, f"{name}_bias")).unsqueeze(1) if experts.has_bias else found
