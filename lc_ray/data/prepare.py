"""Read, check, split and prepare a dataset once; keep it as Parquet under a name made of all that it depends on.

    storage/prepared/KEY/data.json                       what is there, and the task's labels. Written last
    storage/prepared/KEY/TRY/train/part-*.parquet        rows in an order drawn by a hash of their content, so any prefix is a fair sample
    storage/prepared/KEY/TRY/validation/part-*.parquet
    storage/prepared/KEY/TRY/blobs/*/*.bin               pixels and sounds, whose places the rows hold
    storage/prepared/KEY/TRY/rejects/*.parquet           file, row, column, reason, value

A try has a name of its own, so that two runs that prepare the same data at once don't meet; `data.json` names the one that was first.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from lc_ray import family, memory
from lc_ray.data import blobs, cells, classes, sides
from lc_ray.data.files import files
from lc_ray.data.sides import Side
from lc_ray.data.stored import joined
from lc_ray.errors import DataError, SpecError
from lc_ray.modalities._conversation import SAID
from lc_ray.models import batches
from lc_ray.models.load import find
from lc_ray.runs import PREPARED
from lc_ray.spec import InputSpec, JobSpec, digest, module_name
from lc_ray.storage import StoragePath, storage_path

_LEAST_PARTS, _ROWS_PER_PART, _BYTES_PER_PART, _ROWS_PER_GROUP = 16, 2048, 2**26, 512
_RECORD = "data.json"
_FORMAT = 11  # of what is kept, and how it is read
_STALE = 86400  # seconds after which a try to which nobody has written is one that was killed
_TASKS = 256  # that write parts, if their rows are small: each opens all files of cells
_FAIR = 1024  # rows that stand for all
_TOLD = 0.01  # fraction of the rows: fewer texts that are cut matter to nobody
_SAMPLE = 64  # rows by which the size of all is judged


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset on disk.

    Attributes:
        path: its folder.
        record: what `data.json` holds.
    """

    path: StoragePath
    record: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name."""
        return self.path.name

    def count(self, split: str) -> int:
        """Rows of a split."""
        return sum(part["rows"] for part in self.record[split])

    @property
    def folder(self) -> StoragePath:
        """The folder of the try that made it."""
        return self.path / str(self.record["try"])

    def parts(self, split: str) -> list[StoragePath]:
        """Files of a split, in order."""
        return [self.folder / split / part["file"] for part in self.record[split]]

    def first(self, split: str, limit: int, some: slice = slice(None)) -> list[tuple[StoragePath, int]]:
        """Some files that hold the first rows of a split, and how many of each file's rows."""
        found = []
        for path, part in list(zip(self.parts(split), self.record[split], strict=True))[some]:
            if limit > 0:
                found.append((path, min(limit, part["rows"])))
            limit -= part["rows"]
        return found

    def held_out(self, job: JobSpec, comparing: bool = False) -> list[tuple[StoragePath, int]]:
        """Files that hold the validation rows that a job measures on, and how many of each file's rows.

        Where it searches, it is comparing members on half of the files, and measures models on the others: the best of several members is in part
        the luckiest, so that the rows by which it was chosen flatter it.
        """
        halved = job.search is not None and len(self.record["validation"]) > 1
        return self.first("validation", job.evaluate.rows, slice(0 if comparing else 1, None, 2) if halved else slice(None))

    def rows(self, split: str, limit: int | None = None) -> dict[str, list[Any]]:
        """The first rows of a split by column: a fair sample, since the order is drawn by hash."""
        return self.read(self.first(split, self.count(split) if limit is None else limit))

    def read(self, found: list[tuple[StoragePath, int]]) -> dict[str, list[Any]]:
        """So many rows of each of some files, by column."""
        return self.values(joined(pq.read_table(file.open()).slice(0, rows) for file, rows in found))

    def values(self, table: pa.Table) -> dict[str, list[Any]]:
        """Rows of parts by column, with their pixels and sounds."""
        return self._blobs.values(table)

    @functools.cached_property
    def _blobs(self) -> blobs.Reader:
        return blobs.Reader(self.folder / sides.BLOBS)

    def notes(self, inputs: Sequence[InputSpec]) -> list[str]:
        """What whoever gave the data should know of it, in sentences."""
        full = {} if self.record["divided"] else self._full(inputs)
        what = "of the rows fill its max_length, beyond which texts are cut"
        notes = [f"{column}: {share:.0%} {what}" for column, share in full.items() if share >= _TOLD]
        if self.record["task"].get("labelled") is False and (share := self._unsaid()) >= _TOLD:
            notes.append(f"{share:.0%} of the conversations teach nothing: what the assistant says is cut off, or changed by the chat template")
        notes += classes.alike(self.record["task"].get("labels", ()))
        if shared := self.record["shared"]:
            rows = self.count("validation")
            notes.append(f"validation: {shared:,} of its {rows:,} rows are training rows too, of which a model is right more often than of new ones")
        return notes

    def _full(self, inputs: Sequence[InputSpec]) -> dict[str, float]:
        """Of columns of texts, the fraction of the training rows that fill their `max_length`. By the first rows."""
        ids = {f"{module_name(i.column)}.input_ids": i for i in inputs}
        first = [(pq.ParquetFile(file.open()), rows) for file, rows in self.first("train", _FAIR)]
        names = [name for name in first[0][0].schema_arrow.names if name in ids]
        lengths = {name: [len(row) for file, rows in first for row in file.read([name])[name].slice(0, rows).to_pylist()] for name in names}
        return {ids[name].column: float(np.mean([tokens >= ids[name].max_length for tokens in found])) for name, found in lengths.items()}

    def _unsaid(self) -> float:
        """The fraction of the training rows that are conversations, and of which nothing that the assistant says is learned. By the first rows."""
        masks = [mask for name, cells in self.rows("train", _FAIR).items() if name.endswith(".mask") for mask in cells]
        return float(np.mean([SAID not in mask for mask in masks])) if masks else 0.0

    def task(self) -> Any:
        """The task, fitted to the training rows' targets."""
        config = dict(self.record["task"])
        return family.load("tasks", config.pop("kind")).Task(**config)


def open_prepared(path: StoragePath) -> Prepared:
    """Open a prepared dataset by its folder."""
    return Prepared(path, json.loads((path / _RECORD).read_text()))


def stamps(job: JobSpec) -> list[Any]:
    """Size and time of change of every file that the job names: of its data, and of base models in folders of this machine; and names of classes.

    Raises:
        DataError: there is no such data.
    """
    listed = {name: files(source) for name, source in job.data.sources.items()}
    found = [[str(file), file.stamp()] for some in listed.values() for file in some]
    found += [[place, known] for place, known in classes.candidates(listed["train"], job.data.target).items()]
    named = [Path(name) for i in job.inputs() for name in (i.base, i.weights) if name]
    bases = [file for path in dict.fromkeys(named) for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return found + [[str(file), [file.stat().st_size, file.stat().st_mtime_ns]] for file in bases]


def key(job: JobSpec) -> str:
    """Name of the prepared dataset: the data section, the tokenizer's source, and every file's size and time of change."""
    bases = [find(i.base) if i.base else None for i in job.inputs()]
    preparing = [i.model_dump(exclude={"rate", "weights", "augment"}) for i in job.inputs()]
    return digest(_FORMAT, job.data.model_dump(mode="json", exclude={"inputs"}), preparing, job.task, bases, job.seed, stamps(job))


def prepare(job: JobSpec) -> tuple[Prepared, bool]:
    """Prepare the job's data, or find it prepared.

    Returns:
        The dataset, and whether it was there already.

    Raises:
        DataError: a file or column is missing, nothing is left, too many rows are rejected, or validation has a label that training lacks.
    """
    folder = storage_path(job.storage) / PREPARED / key(job)
    if (folder / _RECORD).exists():
        return open_prepared(folder), True
    try:
        _sweep(folder)
        _try(job, folder, f"{time.time():.0f}-{uuid.uuid4().hex[:8]}")
    except OSError as error:
        fix = "free some space, or give a `storage` that can be written, then run again"
        cause = getattr(error, "cause", None) or error  # without Ray's traceback of a task
        told = str(cause.strerror or cause).splitlines()[0]
        raise DataError(f"can't write the prepared data: {told}", str(folder), fix) from error
    return open_prepared(folder), False


def _sweep(folder: StoragePath) -> None:
    """Remove tries that were killed."""
    written: dict[str, int] = {}
    for file, (_, changed) in folder.files().items():
        name = file.partition("/")[0]
        written[name] = max(written.get(name, 0), changed)
    for name, last in written.items():
        if last < (time.time() - _STALE) * 1e9:
            (folder / name).remove()


def named(task: Any, job: JobSpec) -> Any:
    """A fitted task with the names of its classes, where they lie beside the training data; a task without classes does not look for them."""
    return task.named(lambda labels: classes.names(classes.candidates(files(job.data.train), job.data.target), labels))


def task_kind(job: JobSpec) -> Any:
    """The class of the job's task.

    Raises:
        SpecError: there is none, or it needs a label, which the job's rows lack.
    """
    kind = family.load("tasks", job.task.kind).Task
    if job.data.stratify and not kind.STRATIFIES:
        raise SpecError(f"data.stratify: rows of the task '{job.task.kind}' have no labels")
    if kind.LABELLED and job.data.target is None:
        raise SpecError(f"data.target: the task '{job.task.kind}' needs a column with the label")
    return kind


def _try(job: JobSpec, folder: StoragePath, name: str) -> None:
    """Prepare the data; what is of no use to another try, and as large as the data, is removed however it ends."""
    made, first = folder / name, False
    try:
        record = {"try": name, **_prepare(job, made)}
        if key(job) != folder.name:  # what was read may be of both, or, of a bucket's file that became shorter, of neither
            raise DataError("a file of the data was changed while it was read", job.data.train, "give the same command again")
        if first := not (folder / _RECORD).exists():
            (folder / _RECORD).write_text(json.dumps(record, indent=1))
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is worth more
            for side in ("train", "validation"):
                cells.forget(sides.cells_of(made, side))
            if not first:
                made.remove()


def _prepare(job: JobSpec, folder: StoragePath) -> dict[str, Any]:
    kind = task_kind(job)  # what is wrong with it is found before any work is done
    options, columns = kind.options(job.task), cells.columns(job)
    train, validation, reasons = sides.read(job, folder)
    held_out = job.data.sources.get("validation", job.data.train)
    for name, side, source in (("training", train, job.data.train), ("validation", validation, held_out)):
        if not side.index.num_rows:
            group = f"; all rows of one {job.data.split} are on one side" if job.data.split else ""
            raise DataError(f"no {name} rows are left", source, f"give more rows, or another `data.validation`{group}")

    fixed = "validation" in job.data.sources or job.data.split  # which rows are on which side

    def fitted() -> Any:
        task = kind.fit((t for t, _ in train.targets()), options, columns)
        return named(task, job).bind(columns)

    try:
        task = fitted()
        unseen = dict(itertools.islice(validation.unseen(task), 1 if fixed else None))
    except DataError as error:  # perhaps of chance, which left training with one label alone
        if not (unseen := dict.fromkeys(validation.others(train), error)):
            raise
    if unseen:
        if fixed or len(unseen) == validation.index.num_rows:
            raise next(iter(unseen.values()))
        # Of a label so rare that chance left training without it, all rows are for training.
        rare = np.isin(np.arange(validation.index.num_rows), list(unseen))
        train = replace(train, index=cells.settled(pa.concat_tables([train.index, validation.index.filter(pa.array(rare))])))
        validation = replace(validation, index=validation.index.filter(pa.array(~rare)))
        task = fitted()
    return {
        "task": {"kind": job.task.kind, **task.config},
        "train": _write(train, job, folder / "train"),
        "validation": _write(validation, job, folder / "validation"),
        "divided": kind.divides(job.data.target, columns),
        "shared": int(np.isin(validation.index["_order"].to_numpy(), train.index["_order"].to_numpy()).sum()),
        "rejected": reasons.total(),
        "reasons": dict(reasons.most_common()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _write(side: Side, job: JobSpec, folder: StoragePath) -> list[dict[str, Any]]:
    """Parts in order. A task prepares a share of the rows and writes it in parts that are small, and enough for all workers."""
    index, rows = side.index, side.index.num_rows
    sample = cells.gather(index.slice(0, _SAMPLE), side.cells)  # a fair one, since the order is drawn by hash
    tasks = max(min(-(-rows // _ROWS_PER_PART), _TASKS), -(-rows * sample.nbytes // (sample.num_rows * _BYTES_PER_PART)))
    shares = [index.slice(share[0], len(share)) for share in np.array_split(np.arange(rows), min(tasks, rows))]
    parts = max(-(-_LEAST_PARTS // tasks), -(-rows // (tasks * _ROWS_PER_PART)))
    write = functools.partial(_write_parts, parts=parts, job=job, cell_folder=side.cells, folder=folder)
    written = cells.spread(ray.data.from_arrow(shares), write, batch_size=None, batch_format="pyarrow").take_all()
    return sorted(({"file": w["file"], "rows": int(w["rows"])} for w in written), key=lambda w: w["file"])


def _write_parts(index: pa.Table, parts: int, job: JobSpec, cell_folder: StoragePath, folder: StoragePath) -> Iterator[dict[str, Any]]:
    """A part after the other, in the same memory; only their cells are gathered at once. What is returned and not yielded hides what it raises."""
    memory.keep_freed()
    table = cells.gather(index, cell_folder)
    shares = np.array_split(np.arange(index.num_rows), min(parts, index.num_rows))
    names, rows = zip(*(_write_part(table.slice(share[0], len(share)), job, folder) for share in shares), strict=True)
    yield {"file": np.array(names), "rows": np.array(rows)}


def _write_part(table: pa.Table, job: JobSpec, folder: StoragePath) -> tuple[str, int]:
    """Returns the part's name, and its rows."""
    kind, inputs, _ = cells.reading(job)
    _, columns = cells.parted(inputs)
    file_name = f"part-{table['_order'][0].as_py():019d}-{table['_row'][0].as_py():09d}.parquet"
    divided = kind.divides(job.data.target, inputs)
    if columns:
        values = {name: table[name].to_pylist() for name in columns}
        numbers, prepared = batches.learned(values, columns, divided)
        table = table.take(numbers) if divided else table
        if "_size" in table.column_names:
            prepared["_size"] = [a + b for a, b in zip(prepared["_size"], table["_size"].to_pylist(), strict=True)]
        table = table.drop_columns([name for name in (*columns, "_size") if name in table.column_names])
        for name, parts in prepared.items():
            table = table.append_column(name, pa.array(parts))
    if divided:  # rows of one text are not to meet in one batch
        table = table.take(np.random.default_rng(job.seed).permutation(table.num_rows))
    with (folder / file_name).create() as file:
        pq.write_table(table, file, _ROWS_PER_GROUP, write_statistics=False)
    return file_name, table.num_rows
