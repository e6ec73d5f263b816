"""Columns of prepared rows → tensors for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lc_ray.errors import DataError
from lc_ray.modalities import _text
from lc_ray.modalities._encoders import by_column
from lc_ray.spec import UNREAD, module_name

TARGET = "_target"  # column of the prepared rows


def collate(rows: dict[str, list[Any]], columns: dict[str, Any]) -> dict[str, Tensor]:
    """Padded tensors named `column.tensor`; `column.present` too, for columns that a row may lack.

    Args:
        rows: prepared lists named `column.part`.
        columns: a `Modality` per column.
    """
    batch, apart = dict[str, Tensor](), by_column(rows)
    for column, modality in columns.items():
        name = module_name(column)
        parts = apart.get(name, {})
        if (present := parts.pop("present", None)) is not None:
            batch[f"{name}.present"] = torch.tensor(present, dtype=torch.float32)
        batch |= {f"{name}.{part}": tensor for part, tensor in modality.collate(parts).items()}
    return batch


def feed(
    rows: dict[str, list[Any]], columns: dict[str, Any], task: Any, random: torch.Generator | None = None, training: bool = False, drop: float = 0.0
) -> tuple[dict[str, Tensor], Any]:
    """Prepared rows as a model takes them, and the targets it is judged by; None where the rows have no target.

    Args:
        rows: prepared lists named `column.part`, and `TARGET`.
        columns: a `Modality` per column.
        task: bound to those.
        random: of all that is drawn; the same each time if not given.
        training: whether columns are augmented and hidden.
        drop: how often a column is hidden.
    """
    random = random or torch.Generator().manual_seed(0)
    inputs = collate(rows, columns)
    if training:
        inputs = hide(vary(inputs, columns, random), drop, random)
    if TARGET not in rows:
        return inputs, None
    return task.teach(inputs, task.collate([task.encode(t) for t in rows[TARGET]]), random, training)  # type: ignore[no-any-return]


def vary(batch: dict[str, Tensor], columns: dict[str, Any], random: torch.Generator) -> dict[str, Tensor]:
    """A training batch with the columns that ask for it augmented."""
    apart, varied = by_column(batch), dict[str, Tensor]()
    for column, modality in columns.items():
        if modality.spec.augment:
            name = module_name(column)
            varied |= {f"{name}.{part}": tensor for part, tensor in modality.augment(apart[name], random).items()}
    return batch | varied


def hide(batch: dict[str, Tensor], drop: float, random: torch.Generator) -> dict[str, Tensor]:
    """Modality dropout (Neverova et al. 2016, arXiv:1501.00102): each column of a row is hidden with probability `drop`, never all of them."""
    names = [name for name in batch if name.endswith(".present")]
    if not drop or len(names) < 2:
        return batch
    present = torch.stack([batch[name] for name in names], 1)  # (batch, columns)
    kept = present * (torch.rand(present.shape, generator=random) >= drop)
    kept = torch.where(kept.any(1, keepdim=True), kept, present)
    return batch | {name: kept[:, i] for i, name in enumerate(names)}


def prepare(values: dict[str, list[Any]], columns: dict[str, Any]) -> dict[str, list[Any]]:
    """Clean values by column, None where a row lacks one → prepared lists named `column.part`, and `_size`, each row's cost."""
    rows: dict[str, list[Any]] = {}
    sizes: list[list[int]] = []
    for column, modality in columns.items():
        parts = modality.prepare(values[column])
        rows |= _named(column, modality, parts, values[column])
        sizes.append(modality.sizes(parts))
    rows["_size"] = [sum(of_row) for of_row in zip(*sizes, strict=True)]
    return rows


def learned(values: dict[str, list[Any]], columns: dict[str, Any], divided: bool) -> tuple[list[int], dict[str, list[Any]]]:
    """As `prepare`, for training and measuring; and the number of the values that each row is of.

    Args:
        values: as for `prepare`.
        columns: a `Modality` per column.
        divided: whether they are one column of texts, each of as many rows as it fills: see `Task.divides`.
    """
    if not divided:
        rows = prepare(values, columns)
        return list(range(len(rows["_size"]))), rows
    ((column, modality),) = columns.items()
    numbers, parts = modality.windows(values[column])
    return numbers, _named(column, modality, parts, parts["text"]) | {"_size": modality.sizes(parts)}


def _named(column: str, modality: Any, parts: dict[str, list[Any]], values: list[Any]) -> dict[str, list[Any]]:
    """A column's prepared lists as `column.part`, and which rows have a value where they may lack one."""
    name = module_name(column)
    present = {f"{name}.present": [float(value is not None) for value in values]} if modality.spec.optional else {}
    return {f"{name}.{part}": cells for part, cells in parts.items()} | present


def parts_of(rows: dict[str, list[Any]], columns: dict[str, Any], number: int) -> dict[str, dict[str, Any]]:
    """One row's prepared parts by column."""
    apart = by_column(rows)
    return {column: {part: values[number] for part, values in apart.get(module_name(column), {}).items()} for column in columns}


def show(parts: dict[str, dict[str, Any]], columns: dict[str, Any]) -> dict[str, Any]:
    """A prepared row as a request may carry it, by column; a missing value is null."""
    return {c: None if parts[c].get("present") == 0 else modality.show(parts[c]) for c, modality in columns.items()}


def decode(row: dict[str, Any], columns: dict[str, Any], errors: str = "strict", folder: Path | str | None = None) -> dict[str, Any]:
    """Clean values of a row by column, None for one that it lacks and may lack.

    Args:
        row: cells by column.
        columns: a `Modality` per column.
        errors: as `data.encoding_errors`.
        folder: in which paths are looked for; None opens no file.

    Raises:
        DataError: a value can't be used, or all are missing; `where` is the column.
    """
    clean: dict[str, Any] = {}
    for name, modality in columns.items():
        if modality.spec.optional and _text.absent(row.get(name)):
            clean[name] = None
            continue
        try:
            clean[name] = modality.decode(row[name], errors, folder)
        except DataError as error:
            raise DataError(error.what, name) from None
    if all(value is None for value in clean.values()) and not any(modality.spec.modality in UNREAD for modality in columns.values()):
        raise DataError("all of them are missing", ", ".join(clean))
    return clean
