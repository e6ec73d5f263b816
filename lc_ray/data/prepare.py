"""Read, check, split and prepare a dataset once; keep it as Parquet under a name made of all that it depends on.

    storage/prepared/KEY/train/part-*.parquet        rows in an order drawn by a hash of their content, so any prefix is a fair sample
    storage/prepared/KEY/validation/part-*.parquet
    storage/prepared/KEY/rejects/*.parquet           file, row, column, reason, value
    storage/prepared/KEY/data.json                   what is there, and the task's labels. Written last
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from lc_ray import family
from lc_ray.data import read
from lc_ray.errors import DataError
from lc_ray.models import batches
from lc_ray.models.load import find, modalities
from lc_ray.spec import InputSpec, JobSpec, digest

TARGET = "_target"
_ORDERS = 2**63
_LEAST_PARTS, _ROWS_PER_PART = 16, 2048


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

    def rows(self, split: str, limit: int | None = None) -> dict[str, list[Any]]:
        """The first rows of a split by column: a fair sample, since the order is drawn by hash."""
        tables, have = [], 0
        for file in self.parts(split):
            if limit is not None and have >= limit:
                break
            tables.append(pq.read_table(file))
            have += tables[-1].num_rows
        return pa.concat_tables(tables).slice(0, limit).to_pydict()  # type: ignore[no-any-return]

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
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for source in sources for f in read.files(source)]
    return digest(job.data, job.task, find(job.model.base), job.seed, stats)


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
    partial.mkdir(parents=True)
    try:
        record = _prepare(job, partial)
        (partial / "data.json").write_text(json.dumps(record, indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise DataError(f"can't write the prepared data: {error.strerror}", str(folder), "free some space, then run again") from error
    return Prepared(folder, record), False


def _prepare(job: JobSpec, folder: Path) -> dict[str, Any]:
    data, held_out = job.data, isinstance(job.data.validation, str)
    kind = family.load("tasks", job.task.kind)  # an unknown one is found before any work is done
    train, rejected = _checked(job, data.train, folder)
    if held_out:
        validation, rejected_too = _checked(job, str(data.validation), folder)
        rejected = rejected + rejected_too
        train = train.limit(data.rows) if data.rows else train
    else:
        validation, train = _split(train, data.validation, data.rows)  # type: ignore[arg-type]
    seen = train.count() + validation.count() + sum(rejected.values())
    if sum(rejected.values()) > data.reject.limit * seen:
        common = "\n  ".join(f"{n} × {reason}" for reason, n in rejected.most_common(5))
        kept = folder.parent / f"rejects-{folder.name.strip('.').split('.')[0]}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "rejects", kept)
        raise DataError(
            f"{sum(rejected.values())} of {seen} rows can't be used, more than data.reject.limit ({data.reject.limit:.1%}):\n  {common}",
            fix=f"they are kept in {kept}; correct them, or raise data.reject.limit",
        )
    for name, split in (("training", train), ("validation", validation)):
        if split.count() == 0:
            raise DataError(f"no {name} rows are left", data.train, "give more rows, or another `data.validation`")
    labels: set[str] = set(train.unique(TARGET))
    task = kind.Task.fit(list(labels))
    for target in sorted(set(validation.unique(TARGET)) - labels):
        row = validation.filter(lambda r, t=target: r[TARGET] == t).take(1)[0]
        try:
            task.encode(target)
        except DataError as error:
            raise DataError(error.what, f"{row['_file']}, row {row['_row']}", error.fix) from None
    return {
        "task": {"kind": job.task.kind, **task.config},
        "train": _write(train, job, folder / "train"),
        "validation": _write(validation, job, folder / "validation"),
        "rejected": sum(rejected.values()),
        "reasons": dict(rejected.most_common()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _checked(job: JobSpec, source: str, folder: Path) -> tuple[ray.data.Dataset, Counter[str]]:
    """Usable rows in the order of their hash, and the count of rejected rows by reason. The rejected ones are written."""
    wanted = [i.column for i in job.data.inputs] + [job.data.target]
    found = read.files(source)
    for file in found:
        read.require(file, wanted)
    dataset = ray.data.from_items([{"file": str(f)} for f in found], override_num_blocks=len(found))
    dataset = dataset.map_batches(functools.partial(_check_files, job=job), batch_size=1, num_cpus=1).materialize()
    rejects = dataset.filter(expr="_reason != ''").select_columns(["_file", "_row", "_column", "_reason", "_value"])
    reasons: Counter[str] = Counter()
    (folder / "rejects").mkdir(exist_ok=True)
    for number, table in enumerate(rejects.iter_batches(batch_format="pyarrow", batch_size=65536)):
        named = table.rename_columns(["file", "row", "column", "reason", "value"])
        pq.write_table(named, folder / "rejects" / f"{Path(source).name}-{number:05d}.parquet")
        reasons.update(f"{c}: {r}" for c, r in zip(table["_column"].to_pylist(), table["_reason"].to_pylist(), strict=True))
    good = dataset.filter(expr="_reason == ''").drop_columns(["_reason", "_column", "_value"])
    if not good.count():
        return good, reasons
    settle = functools.partial(_settle, drop=job.data.duplicates == "drop")
    return good.sort("_order").map_batches(settle, batch_size=None, batch_format="pyarrow").materialize(), reasons


def _settle(table: pa.Table, drop: bool) -> pa.Table:
    """A sorted block with equal rows, which all fall into one block, in the order of their source, or only the first of them."""
    table = table.sort_by([("_order", "ascending"), ("_file", "ascending"), ("_row", "ascending")])
    place = table["_order"].to_numpy()
    return table.filter(pa.array(np.append(True, place[1:] != place[:-1]))) if drop and len(place) else table


def _check_files(batch: dict[str, Any], job: JobSpec) -> Iterator[dict[str, Any]]:
    """Read files; decode each cell; say per row what is wrong with it."""
    columns = _columns(tuple(job.data.inputs), find(job.model.base))
    clean = family.load("tasks", job.task.kind).Task.clean
    decoders: dict[str, Callable[[Any], Any]] = {
        name: functools.partial(modality.decode, errors=job.data.encoding_errors) for name, modality in columns.items()
    }
    target = job.data.target
    for file in batch["file"]:
        for chunk in read.rows(Path(str(file)), [*columns, target]):
            table = [_check(row, str(file), decoders, target, clean, job) for row in chunk]
            yield {name: _cells([row[name] for row in table]) for name in table[0]} if table else {}


def _check(row: dict[str, Any], file: str, decoders: dict[str, Any], target: str, clean: Any, job: JobSpec) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(decoders)
    out = {"_file": file, "_row": row["_row"], "_column": "", "_reason": row.get("_error", ""), "_value": "", TARGET: "", "_order": 0}
    column = ""
    try:
        for column, decode in () if out["_reason"] else decoders.items():
            values[column] = decode(row[column])
        if not out["_reason"]:
            column, out[TARGET] = target, clean(row[target])
            out["_order"] = order(job.seed, [values[c] for c in decoders], out[TARGET])
    except DataError as error:
        out |= {"_column": column, "_reason": error.what, "_value": repr(row[column])[:200]}
    return out | {name: "" if out["_reason"] else value for name, value in values.items()}


def order(seed: int, values: list[Any], target: str) -> int:
    """A row's place in the shuffled order: a 63-bit hash of its content, so equal rows fall on the same side of a split."""
    content = json.dumps([seed, values, target], ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def _split(rows: ray.data.Dataset, held_out: int | float, limit: int | None) -> tuple[ray.data.Dataset, ray.data.Dataset]:
    """Validation and training rows. A fraction of all rows is cut at a hash value, so a row keeps its side when others are added."""
    rows = rows.limit(limit) if limit else rows
    if isinstance(held_out, int):
        cut = held_out
    elif limit:
        cut = round(held_out * rows.count())
    else:
        cut = rows.filter(expr=f"_order < {int(held_out * _ORDERS)}").count()
    total = rows.count()
    validation, train = rows.split_at_indices([min(cut, total)]) if total else (rows, rows)
    return validation, train


def _write(rows: ray.data.Dataset, job: JobSpec, folder: Path) -> list[dict[str, Any]]:
    """Parts in order. A task prepares a block and writes it in as many parts as make enough of them for all workers."""
    folder.mkdir()
    tasks = -(-rows.count() // _ROWS_PER_PART)
    write = functools.partial(_write_parts, parts=-(-_LEAST_PARTS // tasks), job=job, folder=str(folder))
    written = rows.repartition(tasks).map_batches(write, batch_size=None, batch_format="pyarrow", num_cpus=1).take_all()
    return sorted(({"file": w["file"], "rows": int(w["rows"])} for w in written), key=lambda w: w["file"])


def _write_parts(table: pa.Table, parts: int, job: JobSpec, folder: str) -> dict[str, Any]:
    columns = _columns(tuple(job.data.inputs), find(job.model.base))
    prepared = batches.prepare({name: table[name].to_pylist() for name in columns}, columns)
    for name, values in prepared.items():
        table = table.append_column(name, pa.array(values))
    written: dict[str, list[Any]] = {"file": [], "rows": []}
    for rows in np.array_split(np.arange(table.num_rows), min(parts, table.num_rows)):
        part = table.slice(rows[0], len(rows))
        written["file"].append(f"part-{part['_order'][0].as_py():019d}-{part['_row'][0].as_py():09d}.parquet")
        written["rows"].append(len(rows))
        pq.write_table(part, Path(folder) / written["file"][-1])
    return {name: np.array(values) for name, values in written.items()}


@functools.lru_cache(maxsize=8)
def _columns(inputs: tuple[InputSpec, ...], source: str) -> dict[str, Any]:
    """Modalities, loaded once per process."""
    return modalities(list(inputs), source)


def _cells(values: list[Any]) -> Any:
    return np.array(values, dtype=object if isinstance(values[0], str) else None)
