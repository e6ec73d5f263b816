"""What a model costs when it is served: size, latency and throughput, measured side by side with the others."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from lc_ray import artifact
from lc_ray.predictor import Predictor

_SECONDS = 14.0  # all timed rounds of all models together, about
_WARM = 3  # calls before a timing; the first ones allocate, and the model before this one may still hold the cores
_LEAST = 20  # single rows per round, for a 95th percentile


def measure(predictors: dict[str, Predictor], rows: dict[str, list[Any]], batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Cost of each model on the same rows.

    A shared machine's speed drifts, so round k of one model is timed right beside round k of the others, and the median over the
    rounds is reported. How many rows a round takes is chosen once, for all models, from a short trial.

    Args:
        predictors: models by name, loaded with the same number of threads.
        rows: prepared lists named `column.part`, and `_size`; at least one row.
        batch_size: rows per batch for throughput.
        rounds: of timing.

    Returns:
        By model: `parameters`, `bytes`, `latency_ms` and `latency_p95_ms` (50th and 95th percentile, batch of 1), `throughput`
        (rows per second).
    """
    total = len(rows["_size"])
    batch = _first(rows, min(batch_size, total))
    one = sum(_single(p, _spread(rows, _WARM))[-1] for p in predictors.values())  # seconds, all models
    full = sum(min(_batched(p, batch, batch_size) for _ in range(_WARM)) for p in predictors.values())
    share = _SECONDS / rounds / 2  # seconds, for each of the two timings of a round
    singles = _spread(rows, max(_LEAST, int(share / one)))
    batches = _spread(rows, max(1, int(share / full)) * batch_size)
    p50: dict[str, list[float]] = {name: [] for name in predictors}
    p95: dict[str, list[float]] = {name: [] for name in predictors}
    speed: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(rounds):
        for name, predictor in predictors.items():
            _single(predictor, _spread(rows, _WARM))
            seconds = _single(predictor, singles)
            p50[name].append(float(np.percentile(seconds, 50)))
            p95[name].append(float(np.percentile(seconds, 95)))
        for name, predictor in predictors.items():
            _batched(predictor, batch, batch_size)
            speed[name].append(len(batches["_size"]) / _batched(predictor, batches, batch_size))
    return {
        name: {
            "parameters": float(weights(predictor.artifact.path / artifact.WEIGHTS)),
            "bytes": float(predictor.artifact.bytes),
            "latency_ms": 1e3 * float(np.median(p50[name])),
            "latency_p95_ms": 1e3 * float(np.median(p95[name])),
            "throughput": float(np.median(speed[name])),
        }
        for name, predictor in predictors.items()
    }


def weights(file: Path) -> int:
    """Number of weights in a safetensors file, from its header alone."""
    with safe_open(file, "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _first(rows: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    return {part: values[:count] for part, values in rows.items()}


def _spread(rows: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    """`count` rows evenly over all there are; all of them if there are fewer."""
    total = len(rows["_size"])
    chosen = [i * total // count for i in range(count)] if count < total else range(total)
    return {part: [values[i] for i in chosen] for part, values in rows.items()}


def _single(predictor: Predictor, rows: dict[str, list[Any]]) -> list[float]:
    """Seconds for each row alone."""
    seconds = []
    for i in range(len(rows["_size"])):
        row = {part: [values[i]] for part, values in rows.items()}
        start = time.perf_counter()
        predictor.outputs(row, 1)
        seconds.append(time.perf_counter() - start)
    return seconds


def _batched(predictor: Predictor, rows: dict[str, list[Any]], batch_size: int) -> float:
    """Seconds for all rows, in batches."""
    start = time.perf_counter()
    predictor.outputs(rows, batch_size)
    return time.perf_counter() - start
