"""Metrics on held-out rows, on the engine that will serve."""

from __future__ import annotations

import heapq
from typing import Any

from lc_ray.models.batches import TARGET, parts_of, show
from lc_ray.predictor import Predictor, Rows
from lc_ray.spec import UNREAD, module_name

_COLUMNS = 32  # of which each is hidden, and shown alone


def measure(predictor: Predictor, rows: Rows, mistakes: int = 0) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A model's metrics, and its most confident mistakes.

    Args:
        predictor: the model.
        rows: prepared rows by column, with their targets.
        mistakes: how many to give.
    """
    scores = predictor.scores(rows)
    metrics = predictor.task.metrics(scores, [predictor.task.encode(t) for t in rows[TARGET]])

    def answer(number: int) -> dict[str, Any]:
        return predictor.task.decode(scores[number], parts_of(rows, predictor.columns, number))  # type: ignore[no-any-return]

    # No answer is kept: each has a probability for every label.
    each = enumerate(rows[TARGET] if mistakes and predictor.task.DECODES_SCORES else ())
    wrong = [(-sure, number) for number, target in each if (sure := predictor.task.mistake(answer(number), target)) is not None]
    return metrics, [
        {
            "row": show(parts_of(rows, predictor.columns, number), predictor.columns),
            "target": rows[TARGET][number],
            "predicted": next(iter(answer(number).values())),
            "sure": -unsure,
        }
        for unsure, number in heapq.nsmallest(mistakes, wrong)
    ]


def ablation(predictor: Predictor, rows: Rows) -> dict[str, dict[str, float]]:
    """Metrics with each input column alone, and with each one removed; empty if there is but one, if rows must have all, or if there are so many
    that it would take hours and tell nobody anything.

    Args:
        predictor: the model.
        rows: prepared rows by column, with their targets.
    """
    present = {i.column: f"{module_name(i.column)}.present" for i in predictor.inputs if i.modality not in UNREAD}
    if not 1 < len(present) <= _COLUMNS or not all(i.optional for i in predictor.inputs):
        return {}
    views = {f"only {column}": [column] for column in present}
    if len(present) > 2:
        views |= {f"without {column}": [c for c in present if c != column] for column in present}
    found = {}
    for view, kept in views.items():
        hidden = {name: [0.0] * len(rows[name]) for column, name in present.items() if column not in kept}
        found[view], _ = measure(predictor, rows | hidden)
    return found
