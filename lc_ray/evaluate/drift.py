"""How far rows are from those that a model was trained on: the population stability index of what can be measured of each column.

PSI = Σ (seen - expected) · ln(seen / expected) over the shares of a feature's bins (Siddiqi, Credit Risk Scorecards, 2006). Below 0.1 nothing
much has changed, above 0.25 a lot has. Of two samples of the same rows it is about (bins - 1) · (1 / rows + 1 / rows) (Yurdakul and Naranjo,
Statistical properties of the population stability index, 2020), so that it tells nothing of few rows, now or in training, nor of many bins.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lc_ray.artifact import Feature
from lc_ray.models.batches import parts_of
from lc_ray.predictor import Predictor, Rows

LEAST = 500  # rows of which it is told
ROWS = 1024  # of training, and held out, that are measured
_KNOWN = 100  # values that were measured in training, of which it is told
_BINS = 10  # of numbers, at most, each with as many of the training rows
_CATEGORIES = 30  # at most
_COMMON = 30  # training rows of a bin, at least; and a rare category may be a name or a number that is nobody's business

Measures = dict[str, float | str]  # of a row, by feature: `column.what`


def reference(predictor: Predictor, training: Rows, held_out: Rows) -> dict[str, Feature]:
    """What rows are later compared with: features of training rows, and of the model's answers to held-out rows.

    Args:
        predictor: the model.
        training: prepared rows by column.
        held_out: the same.
    """
    training, held_out = ({name: values[:ROWS] for name, values in rows.items()} for rows in (training, held_out))
    measured = [of_row(training, predictor.columns, i) for i in range(len(training["_size"]))]
    if predictor.task.DECODES_SCORES:  # of all others each answer takes many runs
        measured += map(of_answer, predictor.answered(held_out))
    values: dict[str, list[float | str]] = {}
    for one in measured:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: fit(of) for name, of in values.items() if len(of) >= _KNOWN}


def of_row(rows: Rows, columns: dict[str, Any], number: int) -> Measures:
    """What is measured of a prepared row, and whether it has the columns that it may lack."""
    found: Measures = {}
    for column, parts in parts_of(rows, columns, number).items():
        present = parts.pop("present", None)
        if present is not None:
            found[f"{column}.present"] = "yes" if present else "no"
        if present != 0:
            found |= {f"{column}.{name}": value for name, value in columns[column].measure(parts).items()}
    return found


def of_answer(answer: dict[str, Any]) -> Measures:
    """What is measured of an answer, of whichever task."""
    found: Measures = {}
    if "label" in answer:
        found["answer.label"] = answer["label"]
    if "labels" in answer:
        found["answer.labels"] = ", ".join(sorted(map(str, answer["labels"])))
    if "probabilities" in answer:
        found["answer.confidence"] = max(answer["probabilities"].values())
    if "value" in answer:
        found["answer.value"] = answer["value"]
    if "text" in answer:
        found["answer.characters"] = float(len(answer["text"]))
    return found


def fit(values: Sequence[float | str]) -> Feature:
    """A feature's bins, and how many values each has: of numbers between quantiles, or of categories the most common."""
    numbers = [value for value in values if not isinstance(value, str)]
    if 2 * len(numbers) >= len(values):
        cuts = np.linspace(0, 1, 1 + max(1, min(_BINS, len(numbers) // _COMMON)))
        edges = np.unique(np.quantile(numbers, cuts))
        below = np.nextafter(edges[0], -np.inf)  # what is less than the least has a bin of its own
        feature = Feature(edges=[float(below), *(edges[1:] if len(edges) > 1 else edges).tolist()])
    else:
        feature = Feature(categories=[name for name, rows in Counter(map(str, values)).most_common(_CATEGORIES) if rows >= _COMMON])
    bins = Counter(place(feature, value) for value in values)
    return feature.model_copy(update={"counts": [bins[i] for i in range(size(feature))]})


def size(feature: Feature) -> int:
    """How many bins it has: those of its values, one for all others, and with numbers one below the least and one above the most."""
    return len(feature.edges) + 2 if feature.edges else len(feature.categories) + 1


def place(feature: Feature, value: float | str) -> int:
    """The bin of a value; the last is for all that has none."""
    if not feature.edges:
        return feature.categories.index(str(value)) if str(value) in feature.categories else len(feature.categories)
    return len(feature.edges) + 1 if isinstance(value, str) or math.isnan(value) else bisect.bisect_left(feature.edges, value)


def names(feature: Feature) -> list[str]:
    """What the bins hold, for people."""
    if not feature.edges:
        return [*feature.categories, "others"]
    edges = [f"{edge:.6g}" for edge in feature.edges]
    return [f"< {edges[0]}", *(f"{low} to {high}" for low, high in itertools.pairwise(edges)), f"> {edges[-1]}", "no number"]


def psi(expected: Sequence[int], seen: Sequence[int]) -> float:
    """The population stability index of two counts of the same bins. Half a row is added to each, so that none is empty."""
    before, now = (np.asarray(counts, np.float64) + 0.5 for counts in (expected, seen))
    before, now = before / before.sum(), now / now.sum()
    return float(((now - before) * np.log(now / before)).sum())
