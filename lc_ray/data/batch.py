"""The batches of one worker: parts that Ray Data wrote are dealt to workers, streamed, shuffled and grouped by length within a window.

A worker reads its own parts in its own process: Ray Data's readers would be further processes beside it, and which of them
delivers first would decide the order.

All of it depends on the seed, the epoch and the number of workers alone, never on the size of a block or the speed of a node,
so a run that resumes goes on with the very batch it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lc_ray.data.stored import joined, recut
from lc_ray.errors import DataError
from lc_ray.storage import StoragePath

if TYPE_CHECKING:  # a process that only plans segments need not import torch
    from lc_ray.data.prepare import Prepared

_Item = TypeVar("_Item")
_WINDOW = 16  # batches: wide enough that rows of like length meet, narrow enough to stream


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Steps in which `rows` are seen once; at least one."""
    return max(1, rows // batch_size)


def deal(parts: list[StoragePath], rank: int, world: int, seed: int, epoch: int) -> list[StoragePath]:
    """The parts that one worker reads in an epoch, in order. Every part goes to exactly one worker.

    Raises:
        DataError: fewer parts than workers.
    """
    if len(parts) < world:
        raise DataError(f"{len(parts)} rows or parts can't be shared by {world} workers", fix="use fewer workers, or more training rows")
    shuffled = np.random.default_rng([seed, epoch]).permutation(len(parts))
    return [parts[i] for i in shuffled[rank::world]]


def arrange(sizes: NDArray[np.int64], batch_size: int, seed: list[int]) -> list[NDArray[np.int64]]:
    """Batches of a window, as row numbers: rows of like size together, batches in random order.

    The order is the same on all workers, so that at each step they hold batches of like length and none waits for another.
    The remainder that fills no batch comes last.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(sizes))
    by_size = shuffled[np.argsort(sizes[shuffled], kind="stable")]
    whole = len(sizes) // batch_size
    extra = by_size[np.sort(random.permutation(len(sizes))[whole * batch_size :])]
    kept = by_size[~np.isin(by_size, extra)]
    return [kept[i * batch_size : (i + 1) * batch_size] for i in random.permutation(whole)] + [extra]


def stream(prepared: Prepared, rank: int, world: int, batch_size: int, seed: int, start: int = 0) -> Iterator[dict[str, list[Any]]]:
    """Endless training batches of one worker, from number `start` on, as prepared lists by column.

    Args:
        prepared: the dataset.
        rank: this worker, of `world`.
        world: number of workers.
        batch_size: rows of a batch over all workers.
        seed: of the job.
        start: batches that were had before.
    """
    per_epoch = steps_per_epoch(prepared.count("train"), batch_size)
    tables = _tables(prepared, rank, world, batch_size, seed, *divmod(start, per_epoch))
    batches = map(prepared.values, tables)
    return ahead(batches) if prepared.path.remote else batches


def _tables(prepared: Prepared, rank: int, world: int, batch_size: int, seed: int, epoch: int, skip: int) -> Iterator[pa.Table]:
    """The same with places of pixels and sounds, from an epoch on of which some batches were had before."""
    while True:
        paths = deal(prepared.parts("train"), rank, world, seed, epoch)
        batches = _endless(paths, batch_size // world, [seed, epoch])
        for step in range(steps_per_epoch(prepared.count("train"), batch_size)):
            batch = next(batches)
            if step >= skip:
                yield batch
        epoch, skip = epoch + 1, 0


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Items without end, the next one made on another thread while one is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items)
        while True:
            item = following.result()
            following = thread.submit(next, items)
            yield item


def _endless(paths: list[StoragePath], rows: int, seed: list[int]) -> Iterator[pa.Table]:
    """Batches of `rows` rows. A worker whose parts end before the epoch does starts over with its first."""
    rest, window = None, 0
    while True:
        for table in recut(_batches(paths, rows * _WINDOW), rows * _WINDOW):
            table = (table if rest is None else joined([rest, table])).combine_chunks()  # once, not for each batch
            *whole, extra = arrange(table["_size"].to_numpy(), rows, [*seed, window])
            for chosen in whole:
                yield table.take(chosen)
            rest, window = table.take(extra), window + 1


def _batches(paths: list[StoragePath], rows: int) -> Iterator[pa.RecordBatch]:
    """Up to `rows` rows at a time, each batch of one part."""
    for path in paths:
        with path.open() as file, pq.ParquetFile(file, pre_buffer=path.remote) as part:
            yield from part.iter_batches(batch_size=rows)
