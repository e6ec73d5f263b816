"""Rows of files → checked and decoded cells in Arrow files, and an index that says where each row is.

Cells go to disk once, so what is sorted, split and sent about is the index, some 40 bytes a row. Pixels and sounds go to blobs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lc_ray import family, memory
from lc_ray.data import blobs, read
from lc_ray.data.files import File, files
from lc_ray.data.stored import joined
from lc_ray.errors import DataError
from lc_ray.modalities import _conversation, _text
from lc_ray.models import batches
from lc_ray.models.batches import TARGET
from lc_ray.models.load import modalities
from lc_ray.spec import UNREAD, InputSpec, JobSpec, TaskSpec, digest
from lc_ray.storage import StoragePath

ORDERS = 2**63  # places in the shuffled order
_SPARE = 16  # rows
GROUP = 32  # bits of an order that are left to rows of the same group
_READERS = 8  # tasks, at most, that share a file of small cells: of CSV and some other kinds each reads all of it
_SOME = 4  # tasks for each of these, at least, if there are as many files
_OPENERS = 16  # files at a time
_SMALL = 128  # rows at a time where a cell takes long to decode
_PLACE = ("_order", "_source", "_task", "_chunk", "_place", "_row")  # columns of the index
_WRONG = ("_column", "_reason", "_value")  # and of its rejected rows


def write(job: JobSpec, source: str, folder: StoragePath, blob: tuple[StoragePath, str], limit: int | None = None) -> tuple[pa.Table, pa.Table]:
    """Write the cells of a source's rows into a folder.

    Args:
        job: says which columns, and what they are.
        source: files.
        folder: for them.
        blob: the folder of all blobs, and the one in it for those of this source.
        limit: how many rows will be used; not many more are decoded.

    Returns:
        The index of the usable rows in the order of their hash, and the rejected rows: file, row, column, reason, value.

    Raises:
        DataError: a file can't be read or lacks a column.
    """
    found = files(source)
    require(job, found)
    media = pa.binary() == family.load("tasks", job.task.kind).Task.TYPE or any(parted(columns(job))[0])
    most, size = int(ray.cluster_resources().get("CPU", 1)), _SMALL if media else read.CHUNK
    sizes = {f: 1 + sum(each for _, each, _ in f.stamp()) for f in found}
    whole = sum(sizes.values()) / (most if media else min(most, _READERS))  # of a task; no smaller file is read to know how often it can be shared
    shares = {f: read.Reader(f, job.data.columns).shards(wanted(job), math.ceil(sizes[f] / whole), size) for f in found}
    work = dealt({str(f): (count, sizes[f] / count) for f, count in shares.items()}, whole / _SOME)
    last = _last(_shared(functools.partial(_places, job=job, size=size), work), job, limit) if limit else ORDERS
    tables = _shared(functools.partial(_write, job=job, folder=folder, blob=blob, size=size, last=last), work)
    index = pa.concat_tables([_schema(_PLACE, _WRONG).empty_table(), *tables])
    usable = pc.equal(index["_reason"], "")
    rejected = index.filter(pc.invert(usable)).sort_by([("_source", "ascending"), ("_row", "ascending")])
    names = pa.array([str(f) for f in found], pa.string()).take(rejected["_source"])
    rejected = pa.table([names, *(rejected[name] for name in ("_row", *_WRONG))], ["file", "row", "column", "reason", "value"])
    return settled(index.filter(usable).select(_PLACE), job.data.duplicates == "drop"), rejected


def spread(shares: ray.data.Dataset, work: Callable[..., Any], **options: Any) -> ray.data.Dataset:
    """What tasks yield, one CPU each, for batches of shares: all tasks that there is room for at once.

    Ray Data's reservation of resources between operators knows of none in its first second and lets one task run. There is one operator here.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs each step, and the traceback of what it raises
    shares.context.op_resource_reservation_enabled = False
    return shares.map_batches(work, num_cpus=1, **options)


def dealt(files: dict[str, tuple[int, float]], most: float) -> list[list[dict[str, Any]]]:
    """Shares of files by task: small neighbours are read one after the other, as a task takes longer to begin than to read a few rows.

    Args:
        files: by name, into how many shares each is parted, and the size of one of them.
        most: size of what is read by one task, if it is several shares.
    """
    work, room = list[list[dict[str, Any]]](), 0.0
    for source, (file, (shards, size)) in enumerate(files.items()):
        for shard in range(shards):
            if (room := room - size) < 0:
                work.append([])
                room = most - size
            work[-1].append({"file": file, "source": source, "shard": shard, "shards": shards, "task": len(work) - 1})
    return work


def require(job: JobSpec, found: list[File]) -> None:
    """Raise DataError if one of a job's files lacks a column. Several are opened at a time: in a bucket each takes a while."""
    with ThreadPoolExecutor(_OPENERS) as threads:
        list(threads.map(lambda file: read.Reader(file, job.data.columns).require(wanted(job)), found))


def _shared(work: Callable[[dict[str, Any]], Iterator[pa.Table]], shares: list[list[dict[str, Any]]]) -> Iterator[pa.Table]:
    """What tasks yield, one for some shares each, as it comes."""
    tables = spread(ray.data.from_arrow([pa.Table.from_pylist(some) for some in shares]), work, batch_size=None)
    yield from tables.iter_batches(batch_format="pyarrow", batch_size=None)


def _last(tables: Iterator[pa.Table], job: JobSpec, limit: int) -> int:
    """Up to which place by the hash of their raw cells rows are worth decoding: some more than will be used, as a few will be rejected."""
    places = np.concatenate([np.zeros(0, np.int64), *(table["place"].to_numpy() for table in tables)])
    places = np.unique(places) if job.data.duplicates == "drop" else np.sort(places)
    wanted = round(limit * (1 + 2 * job.data.reject.limit)) + _SPARE
    return int(places[wanted]) if wanted < len(places) else ORDERS


def gather(index: pa.Table, folder: StoragePath, names: list[str] | None = None) -> pa.Table:
    """The cells of an index's rows, in its order; all columns, or those named."""
    where = index["_task"].to_numpy().astype(np.int64) << 32 | index["_chunk"].to_numpy()
    place, by_chunk = index["_place"].to_numpy(), np.argsort(where, kind="stable")
    chunks, starts = np.unique(where[by_chunk], return_index=True)
    tables = []
    for chunk, rows in zip(chunks.tolist(), np.split(by_chunk, starts[1:]), strict=True):
        with pa.memory_map(_near(folder, _name(chunk >> 32, chunk & 0xFFFFFFFF))) as file:
            table = pa.ipc.open_file(file).read_all()
            tables.append((table.select(names) if names else table).take(place[rows]))
    return joined(tables).combine_chunks().take(np.argsort(by_chunk))


def settled(index: pa.Table, drop: bool = False) -> pa.Table:
    """Sorted, equal rows in the order of their source, or only the first of them."""
    index = index.combine_chunks().sort_by([("_order", "ascending"), ("_source", "ascending"), ("_row", "ascending")])
    order = index["_order"].to_numpy()
    return index.filter(pa.array(np.append(True, order[1:] != order[:-1]))) if drop and len(order) else index


def _schema(*groups: tuple[str, ...]) -> pa.Schema:
    types = {"_order": pa.int64(), "_row": pa.int64(), **dict.fromkeys(_WRONG, pa.string())}
    return pa.schema([(name, types.get(name, pa.int32())) for group in groups for name in group])


def _name(task: int, chunk: int) -> str:
    return f"{task:05d}-{chunk:06d}.arrow"


def _near(folder: StoragePath, name: str) -> str:
    """A file of cells on this machine: each is needed for many parts, so that one of a bucket is copied, and kept."""
    if not folder.remote:
        return f"{folder}/{name}"
    target = _copies(folder) / name
    target.parent.mkdir(mode=0o700, exist_ok=True)
    if (about := target.parent.lstat()).st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode):  # anybody may have made it, with rows of theirs
        raise DataError("the folder for copies of rows is somebody else's", str(target.parent), "remove it, or set TMPDIR to a folder of your own")
    if not target.exists():
        partial = target.with_name(f".{uuid.uuid4().hex}")
        (folder / name).get(partial)
        partial.rename(target)
    return str(target)


def _copies(folder: StoragePath) -> Path:
    return Path(tempfile.gettempdir()) / f"lc_ray-{os.getuid()}-{digest(folder.path)}"


def forget(folder: StoragePath) -> None:
    """Remove cells, and the copies of them on all machines."""
    folder.remove()
    if folder.remote:
        task = ray.remote(num_cpus=0)(shutil.rmtree)
        alive = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=True) for node in ray.nodes() if node["Alive"]]
        ray.get([task.options(scheduling_strategy=node).remote(_copies(folder), ignore_errors=True) for node in alive])


def wanted(job: JobSpec) -> list[str]:
    """Columns of the files that are read."""
    return [i.column for i in job.data.inputs if i.modality not in UNREAD] + [name for name in (job.data.target, job.data.split) if name]


def unread(job: JobSpec) -> list[str]:
    """What is to be known of columns beside conversations that no input names, in sentences."""
    chats = [i.column for i in job.data.inputs if i.modality == "chat"]
    there = read.Reader(files(job.data.train)[0], job.data.columns).columns() if chats else []
    named = {part for name in wanted(job) for part in name.split(_text.BAR)}
    others = [name for name in there if _conversation.beside(name) and name not in named]
    return [f"{', '.join(others)} of the data is not read; it is with `column: {_text.BAR.join([chats[0], *others])}`"] if others else []


def _read(batch: dict[str, Any], job: JobSpec, size: int) -> Iterator[tuple[File, int, dict[str, Any]]]:
    """Raw rows of shares of files, each with its file and that file's number, read `size` at a time."""
    for path, source, shard, shards in zip(*(batch[k].tolist() for k in ("file", "source", "shard", "shards")), strict=True):
        file = File(path)
        yield from ((file, source, row) for some in read.Reader(file, job.data.columns).rows(wanted(job), shard, shards, size) for row in some)


def _places(batch: dict[str, Any], job: JobSpec, size: int) -> Iterator[pa.Table]:
    for some in read.batched((_raw_order(row, job) for *_, row in _read(batch, job, size)), size):
        yield pa.table({"place": pa.array(some, pa.int64())})


def _raw_order(row: dict[str, Any], job: JobSpec) -> int:
    cells = [value for name, value in row.items() if name != "_row" or "_error" in row]  # lines that are broken alike are not alike
    return order(job.seed, cells, None, _group(row, job))


def _group(row: dict[str, Any], job: JobSpec) -> Any:
    """With whose rows a row stays; None where its cell says nothing: such rows are not alike."""
    value = row.get(job.data.split) if job.data.split else None
    return None if _text.absent(value) else value


def _write(batch: dict[str, Any], job: JobSpec, folder: StoragePath, blob: tuple[StoragePath, str], size: int, last: int) -> Iterator[pa.Table]:
    """Read shares of files; decode each cell of the rows up to a place and keep it; say per row where it is, or what is wrong with it."""
    memory.keep_freed()
    kind, inputs, reader = reading(job)
    task = int(batch["task"][0])
    used = (one for one in _read(batch, job, size) if last == ORDERS or _raw_order(one[-1], job) <= last)
    rows = ({"_file": str(file), "_source": source} | cleaned(row, file, inputs, kind, reader, job) for file, source, row in used)
    with blobs.Writer(blob[0], f"{blob[1]}/{task:05d}") as writer:
        for number, chunk in enumerate(read.batched(rows, size)):
            found = [row | {"_task": task, "_chunk": number} for row in chunk]
            if usable := [row for row in found if not row["_reason"]]:
                _keep(folder / _name(task, number), usable, inputs, kind, writer)
            yield pa.Table.from_pylist([row | {"_place": place} for place, row in enumerate(usable)], _schema(_PLACE, _WRONG))
            yield pa.Table.from_pylist([row | {"_place": 0} for row in found if row["_reason"]], _schema(_PLACE, _WRONG))


def _keep(path: StoragePath, rows: list[dict[str, Any]], inputs: dict[str, Any], kind: Any, writer: blobs.Writer) -> None:
    """A file of cells: clean ones, and what is prepared of pixels and sounds, with places in blobs for what is large."""
    media, others = parted(inputs)
    types = {"_file": pa.string(), "_row": pa.int64(), "_order": pa.int64(), **{name: modality.TYPE for name, modality in others.items()}}
    cells = {name: pa.array([row[name] for row in rows], type) for name, type in types.items()}
    target = [row[TARGET] for row in rows]
    cells[TARGET] = writer.put(target) if pa.binary() == kind.TYPE else pa.array(target, kind.TYPE)
    if media:
        cells |= {name: writer.put(values) for name, values in batches.prepare({n: [row[n] for row in rows] for n in media}, media).items()}
    table = pa.table(cells)
    with path.create() as out, pa.ipc.new_file(out, table.schema) as file:
        file.write_table(table)


def parted(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of pixels or sounds, and the others."""
    media = {name: modality for name, modality in inputs.items() if hasattr(modality, "MEDIA")}
    return media, {name: modality for name, modality in inputs.items() if name not in media}


def cleaned(row: dict[str, Any], file: File, inputs: dict[str, Any], kind: Any, reader: Any, job: JobSpec) -> dict[str, Any]:
    """Clean values, target and order of a row, or why it can't be used."""
    out = {"_row": row["_row"], "_column": "", "_reason": row.get("_error", ""), "_value": "", "_order": 0}
    if out["_reason"]:
        return out
    column = ""
    try:
        values = batches.decode(row, inputs, job.data.encoding_errors, file.folder)
        column = job.data.target or ""
        cell = kind.placed(row[column], [row.get(name) for name in inputs]) if column else None
        target = kind.read(cell, file.folder, reader) if column else None
        kind.check(target, values)
        return out | values | {TARGET: target, "_order": order(job.seed, list(values.values()), target, _group(row, job))}
    except DataError as error:
        column = column or error.where
        return out | {"_column": column, "_reason": error.what, "_value": repr(_short(row.get(column)))[:200]}


def _short(value: Any) -> Any:
    return value[:200] if isinstance(value, str | bytes) else value


def order(seed: int, values: list[Any], target: Any, group: Any = None) -> int:
    """A row's place in the shuffled order: a 63-bit hash of its content, so equal rows fall on the same side of a split.

    With a group, its hash makes the upper 31 bits, so that its rows are neighbours.
    """
    own = _hashed([seed, values, target])
    return own if group is None else (_hashed([seed, group]) >> GROUP << GROUP) | (own >> 63 - GROUP)


def _hashed(content: Any) -> int:
    return int.from_bytes(hashlib.blake2b(_JSON(content).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)  # for which processors have instructions


_JSON = json.JSONEncoder(ensure_ascii=False, default=_fingerprint).encode


def columns(job: JobSpec) -> dict[str, Any]:
    """A job's modalities, loaded once per process."""
    return _columns(tuple(job.inputs()), job.task)


@functools.lru_cache(maxsize=8)
def _columns(inputs: tuple[InputSpec, ...], task: TaskSpec) -> dict[str, Any]:
    """For one task: it may have them cut texts at their beginning, or refuse what another cuts."""
    return modalities(list(inputs))


def reading(job: JobSpec) -> tuple[Any, dict[str, Any], Any]:
    """A job's task; its columns, of which the task may say what of a long cell is kept; and what the task reads targets with."""
    kind, inputs = family.load("tasks", job.task.kind).Task, columns(job)
    return kind, inputs, kind.reader(kind.options(job.task), inputs)
