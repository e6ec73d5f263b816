"""Which models' engines are in memory, where not all are to be: those that ran last, as Ray Serve's model multiplexing keeps them."""

from __future__ import annotations

import threading
import weakref

from lc_ray.predictor import Predictor


class Resident:
    """Lets go of the engine that ran longest ago when there are too many. A predictor loads its own again when it runs.

    Language models are not among them: their engines hold the answers that are being made.

    Args:
        most: engines that stay in memory. One more is there while it takes another's place.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._used: list[weakref.ref[Predictor]] = []  # the latest last

    def used(self, predictor: Predictor) -> None:
        """Take note of a predictor whose engine is about to run: `Predictor.used`."""
        with self._lock:
            others = [kept for kept in self._used if kept() not in (None, predictor)]
            self._used = [*others, weakref.ref(predictor)]
            gone, self._used = self._used[: -self._most], self._used[-self._most :]
        for kept in gone:
            if oldest := kept():
                oldest.unload()
