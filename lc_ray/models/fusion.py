"""One encoder per input column, joined, and a head. One text column is its simplest case."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_ray.errors import ModelError
from lc_ray.modalities import _encoders
from lc_ray.modalities._encoders import pool
from lc_ray.spec import FusionSpec, InputSpec, ModelSpec, module_name

_LAYERS, _HEADS = 2, 4  # of the attention fusion


class FusionModel(nn.Module):
    """Encoders by column → fused vector → dropout → head.

    A column's tensors may include `present` (batch,), 0 where a row lacks it: its positions are then hidden from everything behind.

    Args:
        encoders: one per input column, in order; see `lc_ray.modalities`.
        fusion: how they are joined.
        task: gives the head; its `POSITIONS` says whether it is for each position of the only column instead of the row.
        dropout: before the head.

    Raises:
        ModelError: several columns for a task of positions.
    """

    def __init__(self, encoders: dict[str, nn.Module], fusion: FusionSpec, task: Any, dropout: float) -> None:
        super().__init__()
        self.columns = list(encoders)
        self.fusion = fusion
        self.positions = bool(task.POSITIONS)
        if self.positions and len(encoders) > 1:
            raise ModelError("this task labels each position of one input column; there are several", ", ".join(encoders), "leave one in data.inputs")
        widths = [int(e.width) for e in encoders.values()]  # type: ignore[arg-type]
        self.encoders = nn.ModuleDict({module_name(c): e for c, e in encoders.items()})
        kind = {"concat": Concat, "gated": Gated, "attention": Attention}[fusion.kind]
        self.join = nn.Identity() if len(encoders) == 1 else kind(widths, fusion.width)
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Module = task.head(widths[0] if len(encoders) == 1 else self.join.width)
        self.keep = [self.head]

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Any) -> Self:
        """The base model's encoder for each column, what joins them, and a new head for the task."""
        return cls(_encoders.pretrained(inputs, sources), spec.fusion, task, spec.dropout)

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(_encoders.rebuild(config["encoders"]), FusionSpec(**config["fusion"]), task, config["dropout"])

    @property
    def config(self) -> dict[str, Any]:
        """What `rebuild` needs, as JSON."""
        encoders = {c: self.encoders[module_name(c)] for c in self.columns}
        return {"encoders": _encoders.config(encoders), "fusion": self.fusion.model_dump(mode="json"), "dropout": self.dropout.p}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Outputs of the head for a batch of tensors named `column.tensor`: (batch, ...), or (batch, positions, ...) for a task of positions."""
        hidden, masks, present = [], [], []
        apart = _encoders.by_column(batch)
        for name, encoder in self.encoders.items():
            tensors = apart[name]
            there = tensors.pop("present", None)
            states, mask = encoder(**tensors)  # (batch, positions, width), (batch, positions)
            if there is None:
                there = mask.new_ones(mask.shape[:1])
            hidden.append(states)
            masks.append(mask * there.unsqueeze(-1).to(mask.dtype))
            present.append(there)
        if self.positions:
            outputs: Tensor = self.head(self.dropout(hidden[0]))
        elif len(hidden) == 1:
            outputs = self.head(self.dropout(pool(hidden[0], masks[0])))
        else:
            outputs = self.head(self.dropout(self.join(hidden, masks, torch.stack(present, 1))))
        return outputs


class Concat(nn.Module):
    """Pooled vectors, normalised so that none drowns the others, side by side; then a layer in which they can interact."""

    def __init__(self, widths: list[int], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.mix = nn.Linear(sum(widths), width)
        self.width = width

    def forward(self, hidden: list[Tensor], masks: list[Tensor], present: Tensor) -> Tensor:
        """→ (batch, width)."""
        pooled = [
            norm(pool(h, m)) * present[:, i : i + 1].to(h.dtype) for i, (norm, h, m) in enumerate(zip(self.norms, hidden, masks, strict=True))
        ]
        return torch.relu(self.mix(torch.cat(pooled, -1)))


class Gated(nn.Module):
    """Gated multimodal units (Arevalo et al. 2017, arXiv:1702.01992): a sum of the columns' vectors, weighted by what all of them say."""

    def __init__(self, widths: list[int], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.gates = nn.ModuleList(nn.Linear(sum(widths), width) for _ in widths)
        self.width = width

    def forward(self, hidden: list[Tensor], masks: list[Tensor], present: Tensor) -> Tensor:
        """→ (batch, width)."""
        there = [present[:, i : i + 1].to(hidden[0].dtype) for i in range(len(hidden))]
        pooled = [norm(pool(h, m)) * t for norm, h, m, t in zip(self.norms, hidden, masks, there, strict=True)]
        joined = torch.cat(pooled, -1)
        gated = [
            torch.sigmoid(gate(joined)) * torch.tanh(project(p)) * t
            for gate, project, p, t in zip(self.gates, self.project, pooled, there, strict=True)
        ]
        return torch.stack(gated).sum(0)


class Attention(nn.Module):
    """A transformer over the positions of all columns, each marked with its column, read at a position of its own."""

    def __init__(self, widths: list[int], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.project = nn.ModuleList(nn.Linear(w, width) for w in widths)
        self.column = nn.Parameter(0.02 * torch.randn(len(widths), width))
        self.read = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(Block(width, _HEADS) for _ in range(_LAYERS))
        self.width = width

    def forward(self, hidden: list[Tensor], masks: list[Tensor], present: Tensor) -> Tensor:
        """→ (batch, width)."""
        parts = [p(n(h)) + c for p, n, h, c in zip(self.project, self.norms, hidden, self.column, strict=True)]
        rows = present.shape[0]  # len() would be a constant where the model is traced
        read = self.read.expand(rows, 1, -1).to(parts[0].dtype)
        mask = torch.cat([masks[0].new_ones(rows, 1), *(m.to(masks[0].dtype) for m in masks)], 1)  # (batch, 1 + positions)
        mixed, seen = torch.cat([read, *parts], 1), mask[:, None, None].bool()
        for block in self.blocks:
            mixed = block(mixed, seen)
        return mixed[:, 0]


class Block(nn.Module):
    """A transformer layer, normalised before each part (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (batch, positions, width), seen (batch, 1, 1, positions) → (batch, positions, width)."""
        normal = self.before(x)
        q, k, v = (part(normal).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)  # (batch, positions, width)
        x = x + self.out(attended)
        up: Tensor = self.down(F.gelu(self.up(self.between(x))))
        return x + up
