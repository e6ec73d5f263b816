"""Work that no request waits for: done on a thread of its own, for several requests at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from operator import length_hint
from typing import Generic, TypeVar

from lc_ray.serve import metrics

_MOST = 8192  # requests that may wait
_EVERY, _LAST = 0.2, 5.0  # seconds
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Background(Generic[T]):
    """Hands over what it is given a moment later. What comes faster than it is done is dropped and counted.

    Args:
        name: of the thread, and of what is dropped.
        work: called with all that came since it was called last, in order. Where it raises, the one that it took last is lost, and it is called again
            with those that it did not take yet; where it took none, all are lost.
        most: how much may wait.
    """

    def __init__(self, name: str, work: Callable[[Iterable[T]], None], most: int = _MOST) -> None:
        self.name, self.work, self.most = name, work, most
        self._items: deque[tuple[T, int]] = deque()
        self._held, self._lock = 0, threading.Lock()
        self._closed = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T, size: int = 1) -> None:
        """Take an item, of some size, from any thread, without waiting."""
        with self._lock:
            fits = self._held + size <= self.most and not self._closed.is_set()
            if fits:
                self._items.append((item, size))
                self._held += size
        if not fits:
            metrics.dropped(self.name, 1)

    def close(self) -> None:
        """End the thread once all that was taken is done, which may take some seconds, but no longer."""
        self._closed.set()
        self._thread.join(_LAST)

    def _run(self) -> None:
        while not self._closed.wait(_EVERY):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        with self._lock:
            items, self._held = iter([item for item, _ in self._items]), 0
            self._items.clear()
        if not length_hint(items):
            return
        lost, why = 0, ""
        while left := length_hint(items):
            try:
                self.work(items)
            except Exception as error:  # a full disk, say: requests are answered all the same
                lost += 1 if length_hint(items) < left else left
                why = why or str(error)
            if length_hint(items) == left:
                break
        if lost:
            metrics.dropped(self.name, lost)
        if lost and not self._failing:
            _log.warning("%s: %d lost: %s", self.name, lost, why)
        self._failing = bool(lost)
