"""One encoder per input column, pooled, joined, and a head. One text column is its simplest case."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lc_ray.spec import module_name


class FusionModel(nn.Module):
    """Encoders by column → concatenation of their mean-pooled vectors → dropout → head.

    Args:
        encoders: one per input column, in order; see `lc_ray.modalities`.
        head: (batch, sum of widths) → outputs.
        dropout: before the head.
    """

    def __init__(self, encoders: dict[str, nn.Module], head: nn.Module, dropout: float) -> None:
        super().__init__()
        self.columns = list(encoders)
        self.encoders = nn.ModuleDict({module_name(c): e for c, e in encoders.items()})
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Outputs of the head for a batch of tensors named `column.tensor`."""
        pooled = []
        for column in self.columns:
            prefix = f"{module_name(column)}."
            tensors = {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
            hidden, mask = self.encoders[module_name(column)](**tensors)  # (batch, positions, width), (batch, positions)
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled.append((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))  # (batch, width)
        outputs: Tensor = self.head(self.dropout(torch.cat(pooled, dim=-1)))
        return outputs
