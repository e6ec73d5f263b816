"""Regression: one number per row, squared error of the standardised target."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_ray.errors import DataError
from lc_ray.modalities import _text
from lc_ray.tasks import _task

_LEAST = 1e-12  # variance, in squares of standard deviations, that counts


class Task(_task.Task):
    """One number.

    Args:
        mean: of the training rows' targets.
        std: their standard deviation.
    """

    TYPE = pa.float64()
    objective = "r2"

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    @staticmethod
    def clean(value: Any) -> float:
        """A target cell as a finite number.

        Raises:
            DataError: missing, not a number, or not finite.
        """
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if _text.absent(value):
            raise DataError("target missing")
        try:
            number = _text.number(value) if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError("target is not a number") from None
        if not math.isfinite(number):
            raise DataError("target is not a finite number" if not math.isnan(number) else "target missing")
        return number

    @classmethod
    def fit(cls, targets: Iterable[float], options: Any, columns: dict[str, Any]) -> Self:
        """Mean and standard deviation of the training rows.

        Raises:
            DataError: all targets are equal, or so large or close that their deviation is no number.
        """
        values = np.fromiter(targets, np.float64)
        if not len(values) or values.min() == values.max():  # of equal values, the deviation need not be 0
            raise DataError("all training targets are equal", fix="check `data.target`")
        with np.errstate(over="ignore"):
            mean, std = float(values.mean()), float(values.std())
        if not 0 < std < math.inf:
            raise DataError(f"training targets from {values.min():g} to {values.max():g} can't be standardised", fix="give them in another unit")
        return cls(mean, std)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {"mean": self.mean, "std": self.std}

    def encode(self, target: float) -> float:
        """The standardised target."""
        return (target - self.mean) / self.std

    def collate(self, encoded: list[float]) -> Tensor:
        """(batch,), float32."""
        return torch.tensor(encoded, dtype=torch.float32)

    def head(self, width: int) -> nn.Module:
        """(batch, width) → (batch, 1)."""
        return nn.Linear(width, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of outputs (batch, 1) against targets (batch,)."""
        return F.mse_loss(outputs.float().squeeze(-1), targets)

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Mean squared distance from the teacher."""
        return F.mse_loss(outputs.float(), teacher.float())

    def metrics(self, scores: list[NDArray[np.float32]], encoded: list[float]) -> dict[str, float]:
        """R², 0 or 1 where all targets are equal, as scikit-learn has it; and mean absolute and root mean squared error in the target's unit."""
        error = np.stack(scores).astype(np.float64)[:, 0] - np.array(encoded)  # in standard deviations
        squares, spread = float((error**2).mean()), float(np.var(encoded))
        r2 = 1 - squares / spread if spread > _LEAST else float(squares <= _LEAST)
        return {"r2": r2, "mae": float(np.abs(error).mean()) * self.std, "rmse": math.sqrt(squares) * self.std}

    def decode(self, output: NDArray[np.float32], parts: dict[str, Any]) -> dict[str, Any]:
        """The number."""
        return {"value": float(np.asarray(output)[0]) * self.std + self.mean}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        return _task.fields(value={"type": "number"})

    def mistake(self, answer: dict[str, Any], target: float) -> float | None:
        """How far off it is, in standard deviations, at most 1."""
        return min(1.0, abs(answer["value"] - target) / self.std) or None
