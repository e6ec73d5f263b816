"""Which models' engines are in memory, where not all are to be: those that ran last, as Ray Serve's model multiplexing keeps them."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lc_ray.predictor import Predictor

_PATIENCE = 30.0  # seconds that a batch may take for which another engine waits


class Resident:
    """Lets go of the engine that ran longest ago when there are too many. A predictor loads its own again when it runs.

    Language models are not among them: their engines hold the answers that are being made.

    Args:
        most: engines that stay in memory. While an endpoint starts, one more is there.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock, self._loading = most, threading.Lock(), threading.Lock()
        self._used: list[weakref.ref[Predictor]] = []  # the latest last
        self._engines: list[weakref.ref[Any]] = []  # that are in memory, also those that were let go while they run

    def used(self, predictor: Predictor, engine: Any) -> None:
        """Take note of a predictor whose engine is about to run: `Predictor.used`."""
        with self._lock:
            self._used = [*self._others(predictor), weakref.ref(predictor)]
            self._engines = [*(kept for kept in self._engines if kept() not in (None, engine)), weakref.ref(engine)]
        self._let_go(self._most)

    @contextmanager
    def room(self, predictor: Predictor) -> Iterator[None]:
        """For one engine, which none other is loaded beside: `Predictor.room`. What is let go for it may have a batch to end."""
        with self._loading:
            with self._lock:
                self._used = self._others(predictor)
            self._let_go(self._most - 1)
            until = time.monotonic() + _PATIENCE
            while sum(engine() is not None for engine in self._engines) >= self._most and time.monotonic() < until:
                time.sleep(0.005)
            yield

    def _others(self, predictor: Predictor) -> list[weakref.ref[Predictor]]:
        return [kept for kept in self._used if kept() not in (None, predictor)]

    def _let_go(self, most: int) -> None:
        with self._lock:
            many = max(0, len(self._used) - most)
            gone, self._used = self._used[:many], self._used[many:]
        for kept in gone:
            if oldest := kept():
                oldest.unload()
