"""What tasks share whose answers are made of labels that training rows have."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field
from torch import nn

from lc_ray.errors import DataError
from lc_ray.spec import Section
from lc_ray.tasks import _task


class Task(_task.Task):
    """Some of several labels.

    Args:
        labels: their names; a label's index is its position.
        weights: of each label in the loss, if they differ.
    """

    class Options(Section):
        """Fields of the task section."""

        class_weights: Literal["none", "balanced"] = Field("none", description="balanced: rare labels weigh more in the loss")

    def __init__(self, labels: list[str], weights: list[float] | None = None) -> None:
        self.labels, self.weights = labels, weights
        self._index = {label: i for i, label in enumerate(labels)}

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {"labels": self.labels} | ({"weights": self.weights} if self.weights else {})

    def index(self, label: str) -> int:
        """Index of a label.

        Raises:
            DataError: a label never seen in training.
        """
        if label not in self._index:
            near = difflib.get_close_matches(label, self.labels, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(
                f"label '{label}' was never seen in training (labels: {', '.join(self.labels[:20])})",
                fix=f"{hint}correct the row, or add training rows with that label",
            )
        return self._index[label]

    def head(self, width: int) -> nn.Module:
        """(..., width) → (..., labels)."""
        return nn.Linear(width, len(self.labels))
