"""Classification: one label per row, cross-entropy."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_ray.errors import DataError
from lc_ray.modalities import _text
from lc_ray.tasks import _labels, _task

_FEW = 100  # labels of which each may have but a row
_ROWS = 1024  # at a time: those of thousands of labels would fill the memory
_WHOLE = re.compile(r"^(-?\d+)\.0+$")


class Task(_labels.Task):
    """One of several labels. See `_labels.Task`."""

    TYPE = pa.string()
    objective = "accuracy"
    STRATIFIES = True

    @staticmethod
    def clean(value: Any) -> str:
        """A target cell as the name of a label, composed as Unicode's NFC has it: folders made on a Mac have another form than what is typed.

        Whole numbers have no decimals: a column of them that lacks some is of floats to pandas.

        Raises:
            DataError: the label is missing, not UTF-8, or not one but several.
        """
        if isinstance(value, str | bytes):
            value = _text.unicode(value)
        if isinstance(value, list | tuple | dict | set | np.ndarray):
            several = "; of several labels a row there is the task 'multilabel'" if isinstance(value, list) else ""
            raise DataError(f"not a label but {type(value).__name__}{several}")
        if value is None or value != value or not str(value).strip():
            raise DataError("label missing")
        return _WHOLE.sub(r"\1", unicodedata.normalize("NFC", str(value).strip()))

    @classmethod
    def fit(cls, targets: Iterable[str], options: Any, columns: dict[str, Any]) -> Self:
        """Labels of the training rows, sorted. Balanced weights are inversely proportional to how often a label occurs.

        Raises:
            DataError: fewer than two of them, or so many that most rows have one of their own.
        """
        counts = Counter(targets)
        labels = sorted(counts)
        if len(labels) < 2:
            raise DataError(f"classification needs at least 2 labels; the training rows have {labels}", fix="check `data.target`")
        if len(labels) > max(_FEW, counts.total() / 2):
            fix = "check `data.target`: it seems to name rows, or to be a text or a number; for numbers there is the task 'regression'"
            raise DataError(f"the {counts.total():,} training rows have {len(labels):,} labels, too many for any to be learned", fix=fix)
        balanced = [counts.total() / len(labels) / counts[label] for label in labels]
        return cls(labels, balanced if options.class_weights == "balanced" else None)

    def encode(self, target: str) -> int:
        """See `index`."""
        return self.index(target)

    def collate(self, encoded: list[int]) -> Tensor:
        """Label indices (batch,)."""
        return torch.tensor(encoded)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of outputs (batch, labels) against targets (batch,)."""
        return self.cross_entropy(outputs, targets)

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """See `_task.divergence`."""
        return _task.divergence(outputs, teacher, temperature)

    def metrics(self, scores: list[NDArray[np.float32]], encoded: list[int]) -> dict[str, float]:
        """Accuracy, macro F1, log loss in nats, and expected calibration error in 15 bins (Guo et al. 2017); top-5 accuracy above 5 labels.

        Args:
            scores: logits of each row, (labels,).
            encoded: each row's label index.
        """
        each = [_judged(np.stack(scores[i : i + _ROWS]), np.array(encoded[i : i + _ROWS])) for i in range(0, len(scores), _ROWS)]
        predicted, confidence, log_probability, five = (np.concatenate(part) for part in zip(*each, strict=True))
        targets = np.array(encoded)
        correct = predicted == targets
        true_positive, counted = (np.bincount(kinds, minlength=len(self.labels)) for kinds in (targets[correct], np.append(predicted, targets)))
        present = counted > 0
        f1 = (2 * true_positive[present] / counted[present]).mean()
        bins = np.minimum((confidence * 15).astype(int), 14)
        gaps = [abs(correct[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
        return {
            "accuracy": float(correct.mean()),
            **({"top5_accuracy": float(five.mean())} if len(self.labels) > 5 else {}),
            "macro_f1": float(f1),
            "log_loss": float(-log_probability.mean()),
            "calibration_error": float(np.sum(gaps)),
        }

    def decode(self, output: NDArray[np.float32], parts: dict[str, Any]) -> dict[str, Any]:
        """Logits (labels,) → the label and every label's probability."""
        probability = torch.from_numpy(np.asarray(output)).double().softmax(-1).tolist()
        best = int(np.argmax(probability))
        return {"label": self.labels[best], "probabilities": dict(zip(self.labels, probability, strict=True))}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        probabilities = {"type": "object", "additionalProperties": _task.PROBABILITY}
        return _task.fields(label={"enum": self.labels}, probabilities=probabilities)

    def mistake(self, answer: dict[str, Any], target: str) -> float | None:
        """Probability of a wrong label."""
        return None if answer["label"] == self.shown(target) else float(answer["probabilities"][answer["label"]])


def _judged(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """Of logits (rows, labels): the likeliest label, its probability, the target's logarithm of it, and whether that is among the five likeliest."""
    log_probability = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    probability = np.exp(log_probability)
    five = (np.argsort(-probability, -1)[:, :5] == targets[:, None]).any(1)
    return probability.argmax(-1), probability.max(-1), log_probability[np.arange(len(targets)), targets], five
