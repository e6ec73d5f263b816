"""Multi-label classification: any number of labels per row, each decided by itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lc_ray.errors import DataError
from lc_ray.modalities import _text
from lc_ray.tasks import _labels, _task, classification

_SEPARATOR = "|"
_OTHERS = re.compile("[,;]")
_NUMBERS = re.compile(r"\s*\d+(\s*[,;]\s*\d+)+\s*")  # as GoEmotions has them


class Task(_labels.Task):
    """Zero or more of several labels. See `_labels.Task`; weights are of the rows that have a label, against those that lack it."""

    TYPE = pa.list_(pa.string())
    objective = "micro_f1"
    STRATIFIES = True

    @staticmethod
    def clean(value: Any) -> list[str]:
        """A list of labels, its JSON, or a text of labels separated by "|", or of numbers by commas, an empty one has none; or 0 or 1 by label.

        Labels of a list may be objects that have their `name` or `label`.

        Raises:
            DataError: missing, something else, or a 0 or 1 per label without its name.
        """
        if isinstance(value, dict):
            return sorted(classification.Task.clean(label) for label, has in value.items() if _has(label, has))
        value = _text.listed(value)
        if isinstance(value, bytes):
            value = _text.unicode(value)
        if isinstance(value, str):
            numbers = _NUMBERS.fullmatch(value) is not None
            value = [int(part) for part in _OTHERS.split(value)] if numbers else [part for part in value.split(_SEPARATOR) if part.strip()]
        if not isinstance(value, list):
            raise DataError("labels missing" if _text.missing(value) else f"not a list of labels but {type(value).__name__}")
        if all(isinstance(label, int | float) and label in (0, 1) for label in value) and len(set(value)) < len(value):  # none is twice among names
            raise DataError("a 0 or 1 per label; give the names of those that a row has")
        named = [label.get("name", label.get("label", label)) if isinstance(label, dict) else label for label in value]
        return sorted({classification.Task.clean(label) for label in named})

    @classmethod
    def fit(cls, targets: Iterable[list[str]], options: Any, columns: dict[str, Any]) -> Self:
        """Labels of the training rows, sorted.

        Raises:
            DataError: there are none, or some are several, as their parts between commas or semicolons show.
        """
        rows, counts = 0, Counter[str]()
        for target in targets:
            rows += 1
            counts.update(target)
        if not counts:
            raise DataError("no training row has a label", fix="check `data.target`")
        for label in counts:
            if len(parts := [part.strip() for part in _OTHERS.split(label)]) > 1 and all(part in counts or part.isdigit() for part in parts):
                raise DataError(f"label '{label}' seems to be {len(parts)} labels", fix=f"write lists of labels, or '{_SEPARATOR.join(parts)}'")
        labels = sorted(counts)
        balanced = [max(1.0, (rows - counts[label]) / counts[label]) for label in labels]
        return cls(labels, balanced if options.class_weights == "balanced" else None)

    def encode(self, target: list[str]) -> NDArray[np.float32]:
        """1 for each label that the row has.

        Raises:
            DataError: a label never seen in training.
        """
        there = np.zeros(len(self.labels), np.float32)
        there[[self.index(label) for label in target]] = 1
        return there

    def collate(self, encoded: list[NDArray[np.float32]]) -> Tensor:
        """(batch, labels)."""
        return torch.from_numpy(np.stack(encoded))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over rows and labels."""
        weight = torch.tensor(self.weights, device=outputs.device) if self.weights else None
        return F.binary_cross_entropy_with_logits(outputs.float(), targets, pos_weight=weight)

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Binary cross-entropy against the teacher's softened probabilities."""
        soft = torch.sigmoid(teacher.float() / temperature)
        return F.binary_cross_entropy_with_logits(outputs.float() / temperature, soft) * temperature**2

    def metrics(self, scores: list[NDArray[np.float32]], encoded: list[NDArray[np.float32]]) -> dict[str, float]:
        """Micro and macro F1 at probability 0.5, accuracy of whole rows, and log loss in nats per label."""
        logits, truth = np.stack(scores), np.stack(encoded) > 0.5  # (rows, labels)
        chosen = logits > 0
        hit, either = (chosen & truth).sum(0), chosen.sum(0) + truth.sum(0)
        each = 2 * hit[either > 0] / either[either > 0]
        return {
            "micro_f1": float(2 * hit.sum() / max(1, either.sum())),
            "macro_f1": float(each.mean()) if len(each) else 0.0,
            "exact_match": float((chosen == truth).all(1).mean()),
            "log_loss": float(np.mean([np.logaddexp(0, np.where(t, -s, s).astype(np.float64)).mean() for s, t in zip(logits, truth, strict=True)])),
        }

    def decode(self, output: NDArray[np.float32], parts: dict[str, Any]) -> dict[str, Any]:
        """Logits (labels,) → the labels above probability 0.5, and every label's probability."""
        probability = torch.from_numpy(np.asarray(output)).double().sigmoid().tolist()
        chosen = [label for label, p in zip(self.labels, probability, strict=True) if p > 0.5]
        return {"labels": chosen, "probabilities": dict(zip(self.labels, probability, strict=True))}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        probabilities = {"type": "object", "additionalProperties": _task.PROBABILITY}
        return _task.fields(labels={"type": "array", "items": {"enum": self.labels}}, probabilities=probabilities)

    def mistake(self, answer: dict[str, Any], target: list[str]) -> float | None:
        """The largest distance of a wrong label's probability from the truth."""
        right = {self.shown(label) for label in target}
        wrong = set(answer["labels"]) ^ right
        return max(abs(answer["probabilities"].get(label, 0.0) - (label in right)) for label in wrong) if wrong else None


def _has(label: str, value: Any) -> bool:
    """Whether a row has a label, by a cell that says 0 or 1, or false or true."""
    text = (_text.unicode(value) if isinstance(value, bytes) else str(value)).strip().lower()
    if text in ("0", "0.0", "false", "1", "1.0", "true"):
        return text in ("1", "1.0", "true")
    raise DataError(f"'{label}' is neither 0 nor 1")
