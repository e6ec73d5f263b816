"""The last rows that a model was asked about, in the bins of those that it was trained on."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from typing import Any

from lc_ray.artifact import Feature
from lc_ray.evaluate import drift
from lc_ray.predictor import Predictor, Rows

_WINDOW = 4096  # rows
_log = logging.getLogger(__name__)


class Window:
    """Counts of the last rows by feature and bin.

    Args:
        predictor: the model, whose artifact says what is compared with what.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.columns = predictor.columns
        self.features: dict[str, Feature] = predictor.artifact.manifest.statistics
        self._places: dict[str, deque[int]] = {name: deque(maxlen=_WINDOW) for name in self.features}
        self._lock = threading.Lock()

    def add(self, rows: Rows, answers: list[dict[str, Any]]) -> None:
        """Take in prepared rows that were answered. Never fails: they are answered, whether they can be measured or not."""
        try:
            for number, answer in enumerate(answers if self.features else ()):
                measured = drift.of_row(rows, self.columns, number) | drift.of_answer(answer)
                with self._lock:
                    for name, value in measured.items():
                        if name in self.features:
                            self._places[name].append(drift.place(self.features[name], value))
        except Exception:
            _log.exception("rows can't be measured")

    def counts(self) -> dict[str, list[int]]:
        """By feature, how many of the last rows are in each bin."""
        with self._lock:
            last = {name: list(places) for name, places in self._places.items()}
        counted = {name: Counter(places) for name, places in last.items()}
        return {name: [counted[name][i] for i in range(drift.size(self.features[name]))] for name in counted}


def index(feature: Feature, counts: list[int]) -> float | None:
    """The population stability index; None of fewer rows than tell anything."""
    return drift.psi(feature.counts, counts) if sum(counts) >= drift.LEAST else None


def describe(feature: Feature, counts: list[int]) -> dict[str, Any]:
    """A feature for people: its index, and the rows of each bin, in training and now."""
    bins = zip(drift.names(feature), feature.counts, counts, strict=True)
    return {
        "psi": index(feature, counts),
        "rows": sum(counts),
        "needed": drift.LEAST,
        "bins": [{"bin": name, "training": before, "now": now} for name, before, now in bins],
    }
