"""What part of the tokens of a batch is padding, with rows of like length together and with rows drawn at random?

The tweets that the demo trains on, an epoch of `stream` on every worker against batches of the same rows at random, both padded as `collate` does.
Workers wait for each other at each step, so what counts at a step is the longest batch of all workers.
Use: python benchmarks/padding.py [--rows 38000]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile

import numpy as np
from numpy.typing import NDArray

from lc_ray import runtime, spec
from lc_ray.data.batch import steps_per_epoch, stream
from lc_ray.data.prepare import Prepared, prepare

Sizes = NDArray[np.int64]


def padded(sizes: Sizes) -> Sizes:
    """Positions of each step's longest batch, for (steps, workers, rows) of tokens."""
    longest = -(-sizes.max(2) // 8) * 8  # (steps, workers)
    return longest.max(1) * sizes.shape[1] * sizes.shape[2]


def grouped(data: Prepared, batch_size: int, workers: int) -> Sizes:
    """Tokens of an epoch's rows as they are streamed, (steps, workers, rows)."""
    steps = steps_per_epoch(data.count("train"), batch_size)
    streams = [itertools.islice(stream(data, rank, workers, batch_size, 0), steps) for rank in range(workers)]
    return np.array([[batch["_size"] for batch in of_step] for of_step in zip(*streams, strict=True)])


def main() -> None:
    """Print the part that is padding, and positions computed per token."""
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=38_000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as storage, runtime.session():
        values = {"storage": storage, "data.rows": chosen.rows, "data.inputs": [{"column": "text", "modality": "text", "max_length": 64}]}
        data, _ = prepare(spec.read("jobs/sentiment_demo.yaml", values))
        print(f"{data.count('train')} rows")
        for batch_size, workers in itertools.product((16, 32, 64), (1, 2)):
            ours = grouped(data, batch_size, workers)
            random = np.random.default_rng(0).permutation(ours.ravel()).reshape(ours.shape)
            parts = [1 - side.sum() / padded(side).sum() for side in (ours, random)]
            saved = 1 - padded(ours).sum() / padded(random).sum()
            print(f"batch {batch_size}, {workers} workers: padding {parts[0]:.1%}, at random {parts[1]:.1%}; {saved:.1%} fewer positions computed")


if __name__ == "__main__":
    main()
