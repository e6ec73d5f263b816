"""How long batches are made by padding: engines prepare themselves for each shape that they see, so that there are to be few."""

from __future__ import annotations


def padded(steps: int) -> int:
    """How many a batch has whose longest sequence has so many tokens or frames."""
    return -(-steps // 8) * 8
