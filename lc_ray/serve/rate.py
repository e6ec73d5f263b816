"""How many requests a key may make: a token bucket for each, in each replica."""

from __future__ import annotations

import time
from collections.abc import Callable

from lc_ray.serving import RateSpec


class Rate:
    """A bucket per key, full at first, that fills steadily.

    Args:
        spec: how many requests it holds, and in what time it fills.
        clock: seconds.
    """

    def __init__(self, spec: RateSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec, self.clock = spec, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # of each key: requests that were left, and when

    def take(self, key: str) -> float:
        """Count a request.

        Args:
            key: digest of the key that it carries, which is one of the endpoint's.

        Returns:
            0, or the seconds after which there is room for it.
        """
        now, speed = self.clock(), self.spec.requests / self.spec.per
        left, before = self._buckets.get(key, (float(self.spec.requests), now))
        left = min(float(self.spec.requests), left + (now - before) * speed)
        taken = left >= 1
        self._buckets[key] = (left - taken, now)
        return 0.0 if taken else (1 - left) / speed
