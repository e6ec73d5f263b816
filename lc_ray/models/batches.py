"""Columns of prepared rows → tensors for a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lc_ray.spec import module_name


def collate(rows: dict[str, list[Any]], columns: dict[str, Any]) -> dict[str, Tensor]:
    """Padded tensors named `column.tensor`.

    Args:
        rows: prepared lists named `column.part`.
        columns: a `Modality` per column.
    """
    batch: dict[str, Tensor] = {}
    for column, modality in columns.items():
        prefix = f"{module_name(column)}."
        parts = {k.removeprefix(prefix): v for k, v in rows.items() if k.startswith(prefix)}
        batch |= {f"{prefix}{name}": tensor for name, tensor in modality.collate(parts).items()}
    return batch


def prepare(values: dict[str, list[Any]], columns: dict[str, Any]) -> dict[str, list[Any]]:
    """Clean values by column → prepared lists named `column.part`, and `_size`, each row's cost."""
    rows: dict[str, list[Any]] = {}
    sizes: list[list[int]] = []
    for column, modality in columns.items():
        parts = modality.prepare(values[column])
        rows |= {f"{module_name(column)}.{name}": part for name, part in parts.items()}
        sizes.append(modality.sizes(parts))
    rows["_size"] = [sum(of_row) for of_row in zip(*sizes, strict=True)]
    return rows
