"""Who inherited from whom."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lc_ray.train.segment import SegmentResult


def best(results: list[SegmentResult], objective: str) -> SegmentResult:
    """The winner: the best of the last segments, of equals the first member's, whichever ended first."""
    last = max(r.number for r in results)
    return max((r for r in results if r.number == last), key=lambda r: (r.metrics[objective], -r.member))


def table(results: list[SegmentResult]) -> list[dict[str, Any]]:
    """Segments as plain rows, in order, each saying whether its parent belongs to another member (an exploit)."""
    rows: list[dict[str, Any]] = []
    member = {r.key: r.member for r in results}
    for r in sorted(results, key=lambda r: (r.number, r.member)):
        row = asdict(r)
        rows.append(row | {"segment": row.pop("number"), "inherited": r.parent is not None and member[r.parent] != r.member})
    return rows
