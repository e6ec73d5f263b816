"""Metrics on held-out rows, on the engine that will serve."""

from __future__ import annotations

from typing import Any

import numpy as np

from lc_ray.data.prepare import TARGET
from lc_ray.predictor import Predictor

Rows = dict[str, list[Any]]


def prepared_only(rows: Rows) -> Rows:
    """The columns that an engine is fed."""
    return {name: values for name, values in rows.items() if "." in name or name == "_size"}


def measure(predictor: Predictor, rows: Rows, mistakes: int = 0) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A model's metrics, and its most confident mistakes.

    Args:
        predictor: the model.
        rows: prepared rows by column, with their targets.
        mistakes: how many to give.
    """
    outputs = predictor.outputs(prepared_only(rows))
    targets = [predictor.task.encode(t) for t in rows[TARGET]]
    metrics = predictor.task.metrics(outputs, np.array(targets))
    wrong = []
    for number, (output, target) in enumerate(zip(outputs, rows[TARGET], strict=True) if mistakes else ()):
        answer = predictor.task.decode(output)
        if answer.get("label", target) != target:
            row = {i.column: str(rows[i.column][number]) for i in predictor.inputs}
            wrong.append({"row": row, "target": target, "predicted": answer["label"], "probability": answer["probabilities"][answer["label"]]})
    return metrics, sorted(wrong, key=lambda w: -w["probability"])[:mistakes]
