"""Where a worker's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up wall seconds by part of the work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time a block as `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def move(self, seconds: float, source: str, part: str) -> None:
        """Book seconds that were timed as `source` as `part`."""
        moved = min(seconds, self.seconds[source])
        self.seconds[source] -= moved
        self.seconds[part] += moved

    def total(self) -> dict[str, float]:
        """Seconds by part, with `other` and `total`."""
        total = time.perf_counter() - self._start
        return {**self.seconds, "other": max(0.0, total - sum(self.seconds.values())), "total": total}
