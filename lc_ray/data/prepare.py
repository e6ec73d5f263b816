"""Read, check, split and prepare a dataset once; keep it as Parquet under a name made of all that it depends on.

    storage/prepared/KEY/train/part-*.parquet        rows in an order drawn by a hash of their content, so any prefix is a fair sample
    storage/prepared/KEY/validation/part-*.parquet
    storage/prepared/KEY/blobs/*/*.bin               pixels and sounds, whose places the rows hold
    storage/prepared/KEY/rejects/*.parquet           file, row, column, reason, value
    storage/prepared/KEY/data.json                   what is there, and the task's labels. Written last
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from lc_ray import family, memory
from lc_ray.data import blobs, cells, split
from lc_ray.data.batch import joined
from lc_ray.data.files import files
from lc_ray.errors import DataError, SpecError
from lc_ray.models import batches
from lc_ray.models.batches import TARGET
from lc_ray.models.load import find
from lc_ray.spec import JobSpec, digest

_LEAST_PARTS, _ROWS_PER_PART, _BYTES_PER_PART, _ROWS_PER_GROUP = 16, 2048, 2**26, 512
_BLOBS = "blobs"
_TARGETS, _SAMPLE = 65536, 64  # rows at a time, and by which the size of all is judged


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset on disk.

    Attributes:
        path: its folder.
        record: what `data.json` holds.
    """

    path: Path
    record: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name."""
        return self.path.name

    def count(self, split: str) -> int:
        """Rows of a split."""
        return sum(part["rows"] for part in self.record[split])

    def parts(self, split: str) -> list[str]:
        """Files of a split, in order."""
        return [str(self.path / split / part["file"]) for part in self.record[split]]

    def first(self, split: str, limit: int) -> list[tuple[str, int]]:
        """Files that hold the first rows of a split, and how many of each file's rows."""
        found = []
        for path, part in zip(self.parts(split), self.record[split], strict=True):
            if limit > 0:
                found.append((path, min(limit, part["rows"])))
            limit -= part["rows"]
        return found

    def rows(self, split: str, limit: int | None = None) -> dict[str, list[Any]]:
        """The first rows of a split by column: a fair sample, since the order is drawn by hash."""
        first = self.first(split, self.count(split) if limit is None else limit)
        return self.values(joined(pq.read_table(file).slice(0, rows) for file, rows in first))

    def values(self, table: pa.Table) -> dict[str, list[Any]]:
        """Rows of parts by column, with their pixels and sounds."""
        return self._blobs.values(table)

    @functools.cached_property
    def _blobs(self) -> blobs.Reader:
        return blobs.Reader(self.path / _BLOBS)

    def task(self) -> Any:
        """The task, fitted to the training rows' targets."""
        config = dict(self.record["task"])
        return family.load("tasks", config.pop("kind")).Task(**config)


def open_prepared(path: str | Path) -> Prepared:
    """Open a prepared dataset by its folder."""
    return Prepared(Path(path), json.loads((Path(path) / "data.json").read_text("utf-8")))


def key(job: JobSpec) -> str:
    """Name of the prepared dataset: the data section, the tokenizer's source, and every file's size and time of change."""
    sources = [job.data.train] + ([job.data.validation] if isinstance(job.data.validation, str) else [])
    stats = [(str(f), f.stamp()) for source in sources for f in files(source)]
    bases = [find(i.base) if i.base else None for i in job.inputs()]
    preparing = [i.model_dump(exclude={"rate", "weights", "augment"}) for i in job.inputs()]
    return digest(job.data.model_dump(mode="json", exclude={"inputs"}), preparing, job.task, bases, job.seed, stats)


def prepare(job: JobSpec) -> tuple[Prepared, bool]:
    """Prepare the job's data, or find it prepared.

    Returns:
        The dataset, and whether it was there already.

    Raises:
        DataError: a file or column is missing, nothing is left, too many rows are rejected, or validation has a label that training lacks.
    """
    folder = Path(job.storage).resolve() / "prepared" / key(job)
    if (folder / "data.json").exists():
        return open_prepared(folder), True
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        record = _prepare(job, partial)
        (partial / "data.json").write_text(json.dumps(record, indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        fix = "free some space, or give a `storage` that can be written, then run again"
        raise DataError(f"can't write the prepared data: {error.strerror}", str(folder), fix) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # of no use to another try, and as large as the data
    return Prepared(folder, record), False


def _prepare(job: JobSpec, folder: Path) -> dict[str, Any]:
    kind = family.load("tasks", job.task.kind).Task  # an unknown one is found before any work is done
    options, columns = kind.options(job.task), cells.columns(tuple(job.inputs()))
    if job.data.stratify and (job.data.target is None or kind.TYPE in (pa.binary(), pa.float64())):
        raise SpecError(f"data.stratify: rows of the task '{job.task.kind}' have no labels")
    if kind.LABELLED and job.data.target is None:
        raise SpecError(f"data.target: the task '{job.task.kind}' needs a column with the label")
    train, validation, reasons = _sides(job, folder)
    for name, side in (("training", train), ("validation", validation)):
        if not side.index.num_rows:
            raise DataError(f"no {name} rows are left", job.data.train, "give more rows, or another `data.validation`")
    task = kind.fit((t for t, _ in train.targets()), options, columns).bind(columns)
    if unseen := validation.unseen(task):
        if isinstance(job.data.validation, str) or job.data.split or len(unseen) == validation.index.num_rows:
            raise next(iter(unseen.values()))
        # Of a label so rare that chance left training without it, all rows are for training.
        rare = np.isin(np.arange(validation.index.num_rows), list(unseen))
        train = replace(train, index=cells.settled(pa.concat_tables([train.index, validation.index.filter(pa.array(rare))])))
        validation = replace(validation, index=validation.index.filter(pa.array(~rare)))
        task = kind.fit((t for t, _ in train.targets()), options, columns).bind(columns)
    record = {
        "task": {"kind": job.task.kind, **task.config},
        "train": _write(train, job, folder / "train"),
        "validation": _write(validation, job, folder / "validation"),
        "rejected": reasons.total(),
        "reasons": dict(reasons.most_common()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    for used in {train.cells, validation.cells}:
        shutil.rmtree(used)
    return record


@dataclass(frozen=True)
class _Side:
    """Training or validation rows.

    Attributes:
        index: where they are, in order.
        cells: the folder that they are in.
        media: their pixels and sounds.
    """

    index: pa.Table
    cells: Path
    media: blobs.Reader

    def targets(self) -> Iterator[tuple[Any, str]]:
        """Each row's clean target, and where it is from."""
        for start in range(0, self.index.num_rows, _TARGETS):
            table = cells.gather(self.index.slice(start, _TARGETS), self.cells, [TARGET, "_file", "_row"])
            for target, file, row in zip(*self.media.values(table).values(), strict=True):
                yield target, f"{file}, row {row}"

    def unseen(self, task: Any) -> dict[int, DataError]:
        """Why the task can't encode a row's target, by the row's place."""
        found = {}
        for place, (target, where) in enumerate(self.targets()):
            try:
                task.encode(target)
            except DataError as error:
                found[place] = DataError(error.what, where, error.fix)
        return found


def _sides(job: JobSpec, folder: Path) -> tuple[_Side, _Side, Counter[str]]:
    """Training rows, validation rows, and how many rows were rejected by reason. The rejected ones are kept in `rejects`."""
    data, found = job.data, dict[str, _Side]()
    seen, reasons = 0, Counter[str]()
    (folder / "rejects").mkdir()
    for name, source in ({"train": data.train} | ({"validation": data.validation} if isinstance(data.validation, str) else {})).items():
        place, limit = folder / f"{name}-cells", data.rows if name == "train" else None
        index, rejected = cells.check(job, source, place, (folder / _BLOBS, name), limit)
        found[name] = _Side(index, place, blobs.Reader(folder / _BLOBS))
        seen += index.num_rows + rejected.num_rows
        if rejected.num_rows:
            pq.write_table(rejected, folder / "rejects" / f"{name}.parquet")
        reasons.update(f"{c}: {r}" for c, r in zip(rejected["column"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    if reasons.total() > data.reject.limit * seen:
        common = "\n  ".join(f"{n} × {reason}" for reason, n in reasons.most_common(5))
        kept = folder.parent / f"rejects-{folder.name.strip('.').split('.')[0]}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "rejects", kept)
        raise DataError(
            f"{reasons.total()} of {seen} rows can't be used, more than data.reject.limit ({data.reject.limit:.1%}):\n  {common}",
            fix=f"they are kept in {kept}; correct them, or raise data.reject.limit",
        )
    train = replace(found["train"], index=found["train"].index.slice(0, data.rows))
    if "validation" in found:
        return train, found["validation"], reasons
    order = train.index["_order"].to_numpy()
    if data.stratify and len(order):
        held = split.stratified(order, (t for t, _ in train.targets()), data)
    else:
        held = np.arange(len(order)) < split.cut(order, data, data.rows is not None)
    return *(replace(train, index=train.index.filter(pa.array(mask))) for mask in (~held, held)), reasons  # type: ignore[return-value]


def _write(side: _Side, job: JobSpec, folder: Path) -> list[dict[str, Any]]:
    """Parts in order. A task prepares a share of the rows and writes it in as many parts as make enough of them for all workers."""
    folder.mkdir()
    index, rows = side.index, side.index.num_rows
    sample = cells.gather(index.slice(0, _SAMPLE), side.cells)  # a fair one, since the order is drawn by hash
    tasks = max(-(-rows // _ROWS_PER_PART), -(-rows * sample.nbytes // (sample.num_rows * _BYTES_PER_PART)))
    shares = [index.slice(share[0], len(share)) for share in np.array_split(np.arange(rows), min(tasks, rows))]
    write = functools.partial(_write_parts, parts=-(-_LEAST_PARTS // tasks), job=job, cell_folder=side.cells, folder=folder)
    written = cells.spread(ray.data.from_arrow(shares), write, batch_size=None, batch_format="pyarrow").take_all()
    return sorted(({"file": w["file"], "rows": int(w["rows"])} for w in written), key=lambda w: w["file"])


def _write_parts(index: pa.Table, parts: int, job: JobSpec, cell_folder: Path, folder: Path) -> dict[str, Any]:
    """A part after the other, in the same memory."""
    memory.keep_freed()
    shares = np.array_split(np.arange(index.num_rows), min(parts, index.num_rows))
    names = [_write_part(index.slice(rows[0], len(rows)), job, cell_folder, folder) for rows in shares]
    return {"file": np.array(names), "rows": np.array([len(rows) for rows in shares])}


def _write_part(index: pa.Table, job: JobSpec, cell_folder: Path, folder: Path) -> str:
    _, columns = cells.parted(cells.columns(tuple(job.inputs())))
    table = cells.gather(index, cell_folder)
    if columns:
        prepared = batches.prepare({name: table[name].to_pylist() for name in columns}, columns)
        if "_size" in table.column_names:
            prepared["_size"] = [a + b for a, b in zip(prepared["_size"], table["_size"].to_pylist(), strict=True)]
        table = table.drop_columns([name for name in (*columns, "_size") if name in table.column_names])
        for name, values in prepared.items():
            table = table.append_column(name, pa.array(values))
    name = f"part-{index['_order'][0].as_py():019d}-{index['_row'][0].as_py():09d}.parquet"
    pq.write_table(table, folder / name, _ROWS_PER_GROUP, write_statistics=False)
    return name
