"""Classification: one label per row, cross-entropy."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_ray.errors import DataError


class Task:
    """One of several labels.

    Args:
        labels: their names; a label's index is its position.
    """

    objective = "accuracy"

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self._index = {label: i for i, label in enumerate(labels)}

    @staticmethod
    def clean(value: Any) -> str:
        """A target cell as the name of a label.

        Raises:
            DataError: the label is missing or not UTF-8.
        """
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError("label is not valid UTF-8") from None
        if value is None or (isinstance(value, float) and np.isnan(value)) or not str(value).strip():
            raise DataError("label missing")
        return str(value).strip()

    @classmethod
    def fit(cls, targets: list[str]) -> Task:
        """Labels of the training rows, sorted.

        Raises:
            DataError: fewer than two of them.
        """
        labels = sorted(set(targets))
        if len(labels) < 2:
            raise DataError(f"classification needs at least 2 labels; the training rows have {labels}", fix="check `data.target`")
        return cls(labels)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {"labels": self.labels}

    def encode(self, target: str) -> int:
        """Index of a label.

        Raises:
            DataError: a label never seen in training.
        """
        if target not in self._index:
            near = difflib.get_close_matches(target, self.labels, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(
                f"label '{target}' was never seen in training (labels: {', '.join(self.labels[:20])})",
                fix=f"{hint}correct the row, or add training rows with that label",
            )
        return self._index[target]

    def head(self, width: int) -> nn.Module:
        """(batch, width) → (batch, labels)."""
        return nn.Linear(width, len(self.labels))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of outputs (batch, labels) against targets (batch,)."""
        return F.cross_entropy(outputs.float(), targets)

    def distill(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Kullback-Leibler divergence from the teacher's softened labels (Hinton et al. 2015, arXiv:1503.02531)."""
        student, parent = (F.log_softmax(x.float() / temperature, dim=-1) for x in (outputs, teacher))
        return F.kl_div(student, parent, log_target=True, reduction="batchmean") * temperature**2

    def metrics(self, outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> dict[str, float]:
        """Accuracy, macro F1, log loss in nats, and expected calibration error in 15 bins (Guo et al. 2017).

        Args:
            outputs: logits (rows, labels).
            targets: label indices (rows,).
        """
        logits = torch.from_numpy(outputs).double()
        probability = logits.softmax(-1).numpy()  # (rows, labels)
        predicted, rows = probability.argmax(-1), np.arange(len(targets))
        true_positive = np.array([((predicted == k) & (targets == k)).sum() for k in range(len(self.labels))])
        counted = np.array([(predicted == k).sum() + (targets == k).sum() for k in range(len(self.labels))])
        present = counted > 0
        f1 = (2 * true_positive[present] / counted[present]).mean()
        confidence, correct = probability.max(-1), predicted == targets
        bins = np.minimum((confidence * 15).astype(int), 14)
        gaps = [abs(correct[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
        return {
            "accuracy": float(correct.mean()),
            "macro_f1": float(f1),
            "log_loss": float(-np.log(np.maximum(probability[rows, targets], 1e-12)).mean()),
            "calibration_error": float(np.sum(gaps)),
        }

    def decode(self, output: NDArray[np.float32]) -> dict[str, Any]:
        """Logits (labels,) → the label and every label's probability."""
        probability = torch.from_numpy(np.asarray(output)).double().softmax(-1).tolist()
        best = int(np.argmax(probability))
        return {"label": self.labels[best], "probabilities": dict(zip(self.labels, probability, strict=True))}
