"""The encoders of a model, by input column: made, told, and made again, with what each reads; and a row's positions as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lc_ray import family
from lc_ray.spec import InputSpec


def pretrained(inputs: list[InputSpec], sources: dict[str, str]) -> dict[str, Any]:
    """With pretrained weights; `sources` has each column's base folder or name."""
    return {i.column: family.load("modalities", i.modality).Encoder.pretrained(i, sources[i.column]) for i in inputs}


def rebuild(config: dict[str, Any]) -> dict[str, Any]:
    """With weights yet to be loaded, from what `config` gave."""
    return {column: family.load("modalities", known["modality"]).Encoder.rebuild(known["config"]) for column, known in config.items()}


def config(encoders: dict[str, Any]) -> dict[str, Any]:
    """What `rebuild` needs, as JSON."""
    return {column: {"modality": type(e).__module__.rpartition(".")[2], "config": e.config} for column, e in encoders.items()}


def by_column(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is named `column.part`, by column and part: looked through once for all, as a table may have hundreds of columns."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in named.items():
        column, _, part = name.partition(".")
        found.setdefault(column, {})[part] = value
    return found


def pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions that a mask leaves: (batch, positions, width), (batch, positions) → (batch, width); 0 where it leaves none."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
