"""Which rows are held out: decided on their places in the hashed order, so that a row keeps its side when others are added."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lc_ray.data.cells import GROUP, ORDERS
from lc_ray.spec import DataSpec


def cut(order: NDArray[np.int64], data: DataSpec, limited: bool) -> int:
    """How many of the first rows are held out. A fraction of all rows is cut at a hash value, of limited ones at a count.

    Args:
        order: of the rows, sorted.
        data: `validation` is a count or a fraction; neither equal rows nor, with `split`, a group are divided: what the cut falls into is
            held out, the last one never. Of few groups or rows a fraction may have none, and then has the first.
        limited: whether the rows are the first of more.
    """
    held_out, total = data.validation, len(order)
    assert not isinstance(held_out, str)
    if isinstance(held_out, int):
        found = min(held_out, total)
    else:
        found = round(held_out * total) if limited else int(np.searchsorted(order, int(held_out * ORDERS)))
    between = np.flatnonzero(np.diff(order >> GROUP if data.split else order)) + 1
    if not len(between) or (found == total and isinstance(held_out, int)):
        return found and total
    return int(between[min(int(np.searchsorted(between, found)), len(between) - 1)])


def stratified(order: NDArray[np.int64], targets: Iterable[Any], data: DataSpec) -> NDArray[np.bool_]:
    """Which rows are held out: the first part by hash of every target's rows, or of all where no target has enough."""
    held_out = data.validation
    assert not isinstance(held_out, str)
    part = held_out / len(order) if isinstance(held_out, int) else held_out
    places: dict[str, list[int]] = {}
    for row, target in enumerate(targets):
        places.setdefault(json.dumps(target), []).append(row)
    held = np.zeros(len(order), np.bool_)
    for found in places.values():
        first = order[found[min(len(found) - 1, round(part * len(found)))]]
        held[found] = order[found] < first
    return held if held.any() else np.arange(len(order)) < cut(order, data, True)
