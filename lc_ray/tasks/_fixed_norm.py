"""Batch normalisation by statistics that training leaves as they are, of which channels can be pruned."""

from __future__ import annotations

from typing import Self

from torch import nn


class FixedNorm(nn.BatchNorm2d):
    """Batch normalisation by statistics that training leaves as they are."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def thaw(module: nn.Module) -> None:
    """Put layers that can be pruned in place of frozen batch normalisation, whose statistics stay as they are."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("FrozenBatchNorm2d"):
            setattr(module, name, _fixed(child, len(child.state_dict()["weight"])))
        else:
            thaw(child)


def fix(module: nn.Module, eps: float) -> None:
    """Put layers whose statistics stay as they are in place of batch normalisation."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _fixed(child, child.num_features, eps))
        else:
            fix(child, eps)


def _fixed(norm: nn.Module, channels: int, eps: float = 1e-5) -> FixedNorm:
    known = norm.state_dict()
    fixed = FixedNorm(channels, eps, device=known["weight"].device)
    fixed.load_state_dict(known, strict=False)  # all but a count of batches
    return fixed.eval()
