"""Which rows run together: those whose padding costs less than a batch of their own would."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lc_ray.modalities._padding import padded

_USUAL = 64.0  # tokens: what was measured of int8 MiniLM on 2 cores
_TRUST = 5.0  # batches that it takes to doubt it
_LEAST = 16.0
_WORTH = 0.8  # of what all rows cost together: parts that save less are no faster, since one's answers are sent while the other runs


class Grouping:
    """Chooses batches, and learns from them what a batch costs by itself.

    A batch is taken to cost a + b * rows * size of its largest row: its rows are padded to that, and whatever they are, weights are read, kernels are
    launched and threads are woken. a / b, in tokens, is found by least squares of relative errors over all batches that ran. It is small where a core
    computes slowly, and so large on a GPU that rows hardly ever part.

    Args:
        limit: most rows in a batch.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._batches = limit, 0
        self._aa = self._ab = self._bb = self._a = self._b = 0.0  # the sums of the normal equations

    def ran(self, rows: int, size: int, seconds: float) -> None:
        """Learn from a batch.

        Args:
            rows: in it.
            size: of its largest row, in tokens.
            seconds: that it took.
        """
        seconds = max(seconds, 1e-6)
        a, b = 1 / seconds, rows * padded(size) / seconds
        self._batches += 1
        self._aa += a * a
        self._ab += a * b
        self._bb += b * b
        self._a += a
        self._b += b

    @property
    def itself(self) -> float:
        """What a batch costs beside its padded tokens, in tokens."""
        if not self._batches:
            return _USUAL
        usual = _TRUST * self._aa / self._batches  # the weight of a = _USUAL * b beside what was seen
        aa, ab, bb = self._aa + usual, self._ab - usual * _USUAL, self._bb + usual * _USUAL**2
        a, b = bb * self._a - ab * self._b, aa * self._b - ab * self._a
        return max(_LEAST, a / b) if b > 0 else math.inf

    def choose(self, sizes: Sequence[int]) -> list[int]:
        """Indices of the next batch, in ascending order: that which holds the oldest row, where rows are parted so that all together cost the least,
        if that is clearly less than without.

        Args:
            sizes: of the rows that wait, in tokens, the oldest first.
        """
        sizes_padded = [padded(size) for size in sizes]
        known = sorted(Counter(sizes_padded).items())
        itself, costs, begins = self.itself, [0.0], [0]

        def with_group(before: float, rows: int, size: int) -> float:
            return before + itself * max(1.0, rows / self.limit) + rows * size

        for end, (size, _) in enumerate(known, 1):
            rows, best, at = 0, math.inf, 0
            for begin in reversed(range(end)):
                rows += known[begin][1]
                cost = with_group(costs[begin], rows, size)
                if cost < best:
                    best, at = cost, begin
            costs.append(best)
            begins.append(at)
        if costs[-1] > _WORTH * with_group(0.0, len(sizes), max(sizes_padded, default=0)):
            begins[-1] = 0
        end = len(known)
        while end and known[begins[end]][0] > sizes_padded[0]:
            end = begins[end]
        group = {size for size, _ in known[begins[end] : end]}
        near = sorted((i for i, size in enumerate(sizes_padded) if size in group), key=lambda i: abs(sizes[i] - sizes[0]))
        return sorted(near[: self.limit])
