"""Seed: a number of which a sample is drawn. Data has no such column; a request may have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pyarrow as pa
import torch
from torch import Tensor

from lc_ray.errors import DataError, ModelError
from lc_ray.spec import InputSpec

_MOST = 2**63 - 1


class Modality:
    """One column of seeds.

    Args:
        spec: the column.
        source: not needed.
    """

    TYPE = pa.int64()
    SCHEMA: ClassVar[dict[str, Any]] = {"type": "integer", "minimum": 0, "maximum": _MOST, "description": "the same one draws the same again"}
    example = 0

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        self.spec = spec

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> int:
        """A whole number, or the text of one.

        Raises:
            DataError: something else, or not in [0, 2⁶³).
        """
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError("a seed is a whole number") from None
        if isinstance(value, bool) or number != (float(value) if isinstance(value, float) else number) or not 0 <= number <= _MOST:
            raise DataError("a seed is a whole number from 0 to 2⁶³ - 1")
        return number

    def prepare(self, values: list[int | None]) -> dict[str, list[Any]]:
        """The seed; 0 where there is none."""
        return {"seed": [value or 0 for value in values]}

    def sizes(self, columns: dict[str, list[Any]]) -> list[int]:
        """All seeds cost the same."""
        return [0] * len(columns["seed"])

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`seed` (batch,)."""
        return {"seed": torch.tensor(columns["seed"], dtype=torch.int64)}

    def augment(self, tensors: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Seeds are left as they are."""
        return tensors

    def show(self, parts: dict[str, Any]) -> Any:
        """The seed."""
        return parts["seed"]

    def measure(self, parts: dict[str, Any]) -> dict[str, float | str]:
        """Nothing: one seed is like any other."""
        return {}

    def save(self, folder: Path) -> None:
        """Nothing is needed."""
        folder.mkdir(parents=True, exist_ok=True)


class Encoder:
    """There is none: a task that draws samples keeps seeds from its model."""

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str) -> NoReturn:
        """Raises ModelError: the task has no use for a seed."""
        raise ModelError("a seed is for tasks that draw samples, such as image_generation", spec.column, "leave it out of data.inputs")
