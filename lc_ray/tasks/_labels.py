"""What tasks share whose answers are made of labels that training rows have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lc_ray.errors import DataError
from lc_ray.section import Section, meant
from lc_ray.tasks import _task

_COMPARED = 1000  # labels: more take long, and many rows may have labels that are not there


class Task(_task.Task):
    """Some of several labels.

    Args:
        labels: their names; a label's index is its position.
        weights: of each label in the loss, if they differ.
        keys: what rows have in place of the names, if something else.
    """

    class Options(Section):
        """Fields of the task section."""

        class_weights: Literal["none", "balanced"] = Field("none", description="balanced: rare labels weigh more in the loss")

    def __init__(self, labels: list[str], weights: list[float] | None = None, keys: list[str] | None = None) -> None:
        self.labels, self.weights, self.keys = labels, weights, keys
        self._index = {label: i for known in (labels, keys or ()) for i, label in enumerate(known)}

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        given = {"labels": self.labels, "weights": self.weights, "keys": self.keys}
        return {name: value for name, value in given.items() if value}

    def named(self, find: Callable[[list[str]], dict[str, str]]) -> Self:
        """See `_task.Task`. Rows may go on having the numbers, or have the names."""
        names = find(self.labels)
        return type(self)(**self.config | {"labels": [names[label] for label in self.labels], "keys": self.labels}) if names else self

    def index(self, label: str) -> int:
        """Index of a label.

        Raises:
            DataError: a label never seen in training.
        """
        if label not in self._index:
            hint = meant(label, self.labels) if len(self.labels) <= _COMPARED else ""
            raise DataError(
                f"label '{label}' was never seen in training (labels: {', '.join(self.labels[:20])})",
                fix=f"{hint}correct the row, or add training rows with that label",
            )
        return self._index[label]

    def shown(self, label: str) -> str:
        """The name of a label that a row has."""
        return self.labels[self.index(label)]

    def cross_entropy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over rows of outputs (rows, labels) against targets (rows,), each weighted by its label.

        PyTorch's own is divided by the weights, which then cancel where the rows are of one label, or but one.
        """
        weight = torch.tensor(self.weights, device=outputs.device) if self.weights else None
        return F.cross_entropy(outputs.float(), targets, weight, reduction="sum") / max(1, len(targets))

    def head(self, width: int) -> nn.Module:
        """(..., width) → (..., labels)."""
        return nn.Linear(width, len(self.labels))
