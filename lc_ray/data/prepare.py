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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from lc_ray import family
from lc_ray.data import read
from lc_ray.data.files import File, files
from lc_ray.errors import DataError, SpecError
from lc_ray.models import batches
from lc_ray.models.batches import TARGET
from lc_ray.models.load import find, modalities
from lc_ray.spec import UNREAD, DataSpec, InputSpec, JobSpec, digest

_ORDERS = 2**63
_GROUP = 32  # bits of an order that are left to rows of the same group
_SPARE = 16  # rows
_LEAST_PARTS, _ROWS_PER_PART, _BYTES_PER_PART, _ROWS_PER_GROUP = 16, 2048, 2**26, 512


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
        return pa.concat_tables(pq.read_table(file).slice(0, rows) for file, rows in first).to_pydict()  # type: ignore[no-any-return]

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
    return Prepared(folder, record), False


def _prepare(job: JobSpec, folder: Path) -> dict[str, Any]:
    data, held_out = job.data, isinstance(job.data.validation, str)
    kind = family.load("tasks", job.task.kind).Task  # an unknown one is found before any work is done
    options, columns = kind.options(job.task), _columns(tuple(job.inputs()))
    if data.stratify and (data.target is None or kind.TYPE in (pa.binary(), pa.float64())):
        raise SpecError(f"data.stratify: rows of the task '{job.task.kind}' have no labels")
    if kind.LABELLED and data.target is None:
        raise SpecError(f"data.target: the task '{job.task.kind}' needs a column with the label")
    train, rejected = _checked(job, data.train, folder / "rejects", "train")
    if held_out:
        validation, rejected_too = _checked(job, str(data.validation), folder / "rejects", "validation")
        rejected = rejected + rejected_too
        train = train.limit(data.rows) if data.rows else train
    else:
        validation, train = _split(train, data)
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
    task = kind.fit((t for t, _ in _targets(train)), options, columns).bind(columns)
    if unseen := _unseen(task, validation):
        if held_out or data.split or len(unseen) == validation.count():
            where, error = next(iter(unseen.items()))
            raise DataError(error.what, where, error.fix)
        # Of a label so rare that chance left training without it, all rows are for training.
        moved, validation = (validation.map_batches(_named, batch_format="pyarrow", fn_args=(set(unseen), there)) for there in (True, False))
        train, validation = train.union(moved).sort("_order").materialize(), validation.materialize()
        task = kind.fit((t for t, _ in _targets(train)), options, columns).bind(columns)
    return {
        "task": {"kind": job.task.kind, **task.config},
        "train": _write(train, job, folder / "train"),
        "validation": _write(validation, job, folder / "validation"),
        "rejected": sum(rejected.values()),
        "reasons": dict(rejected.most_common()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _targets(rows: ray.data.Dataset) -> Iterator[tuple[Any, str]]:
    """Each row's clean target, and where it is from."""
    for table in rows.select_columns([TARGET, "_file", "_row"]).iter_batches(batch_format="pyarrow", batch_size=65536):
        for target, file, row in zip(*(table[name].to_pylist() for name in (TARGET, "_file", "_row")), strict=True):
            yield target, f"{file}, row {row}"


def _unseen(task: Any, rows: ray.data.Dataset) -> dict[str, DataError]:
    """Rows with a target that the task can't encode, by where they are from."""
    found = {}
    for target, where in _targets(rows):
        try:
            task.encode(target)
        except DataError as error:
            found[where] = error
    return found


def _named(table: pa.Table, names: set[str], there: bool) -> pa.Table:
    """The rows whose name, as `_targets` gives it, is among some or, if not `there`, is not."""
    rows = zip(table["_file"].to_pylist(), table["_row"].to_pylist(), strict=True)
    return table.filter(pa.array([(f"{file}, row {row}" in names) == there for file, row in rows], pa.bool_()))


def _checked(job: JobSpec, source: str, folder: Path, split: str) -> tuple[ray.data.Dataset, Counter[str]]:
    """Usable rows in the order of their hash, and the count of rejected rows by reason. The rejected ones are written to a folder."""
    found = files(source)
    for file in found:
        read.Reader(file, job.data.columns).require(_wanted(job))
    # Where a cell takes long to decode, several tasks share a file, each with chunks of its own.
    types = [family.load("tasks", job.task.kind).Task.TYPE, *(m.TYPE for m in _columns(tuple(job.inputs())).values())]
    media = any(pa.binary() == t or pa.types.is_struct(t) for t in types)
    most = int(ray.cluster_resources().get("CPU", 1)) if media else 1
    shards = {f: read.Reader(f, job.data.columns).shards(_wanted(job), most) for f in found}
    work = [{"file": str(f), "shard": n, "shards": count} for f, count in shards.items() for n in range(count)]
    shares = ray.data.from_items(work, override_num_blocks=len(work))
    last = _last(shares, job) if split == "train" and job.data.rows else _ORDERS
    dataset = shares.map_batches(functools.partial(_check_files, job=job, last=last), batch_size=1, num_cpus=1).materialize()
    rejects = dataset.filter(expr="_reason != ''").select_columns(["_file", "_row", "_column", "_reason", "_value"])
    reasons: Counter[str] = Counter()
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(rejects.iter_batches(batch_format="pyarrow", batch_size=65536)):
        named = table.rename_columns(["file", "row", "column", "reason", "value"])
        pq.write_table(named.sort_by([("file", "ascending"), ("row", "ascending")]), folder / f"{split}-{number:05d}.parquet")
        reasons.update(f"{c}: {r}" for c, r in zip(table["_column"].to_pylist(), table["_reason"].to_pylist(), strict=True))
    good = dataset.filter(expr="_reason == ''").drop_columns(["_reason", "_column", "_value"])
    if not good.count():
        return good, reasons
    settle = functools.partial(_settle, drop=job.data.duplicates == "drop")
    return good.sort("_order").map_batches(settle, batch_size=None, batch_format="pyarrow").materialize(), reasons


def _last(shares: ray.data.Dataset, job: JobSpec) -> int:
    """Up to which place by the hash of their raw cells rows are worth decoding, where not all are used: some more, as a few will be rejected."""
    assert job.data.rows is not None
    found = shares.map_batches(functools.partial(_places, job=job), batch_size=1, num_cpus=1)
    places = np.concatenate([table["place"].to_numpy() for table in found.iter_batches(batch_format="pyarrow", batch_size=None)])
    places = np.unique(places) if job.data.duplicates == "drop" else np.sort(places)
    wanted = round(job.data.rows * (1 + 2 * job.data.reject.limit)) + _SPARE
    return int(places[wanted]) if wanted < len(places) else _ORDERS


def _places(batch: dict[str, Any], job: JobSpec) -> Iterator[pa.Table]:
    for _, chunk in _read(batch, job):
        yield pa.table({"place": pa.array([_place(row, job) for row in chunk], pa.int64())})


def _place(row: dict[str, Any], job: JobSpec) -> int:
    cells = [value for name, value in row.items() if name != "_row" or "_error" in row]  # lines that are broken alike are not alike
    return order(job.seed, cells, None, row.get(job.data.split) if job.data.split else None)


def _settle(table: pa.Table, drop: bool) -> pa.Table:
    """A sorted block with equal rows, which all fall into one block, in the order of their source, or only the first of them."""
    table = table.sort_by([("_order", "ascending"), ("_file", "ascending"), ("_row", "ascending")])
    place = table["_order"].to_numpy()
    return table.filter(pa.array(np.append(True, place[1:] != place[:-1]))) if drop and len(place) else table


def _wanted(job: JobSpec) -> list[str]:
    """Columns of the files that are read."""
    return [i.column for i in job.data.inputs if i.modality not in UNREAD] + [name for name in (job.data.target, job.data.split) if name]


def _read(batch: dict[str, Any], job: JobSpec) -> Iterator[tuple[File, list[dict[str, Any]]]]:
    """Chunks of raw rows of a share of a file."""
    for name, shard, shards in zip(batch["file"], batch["shard"], batch["shards"], strict=True):
        file = File(str(name))
        for chunk in read.Reader(file, job.data.columns).rows(_wanted(job), int(shard), int(shards)):
            yield file, chunk


def _check_files(batch: dict[str, Any], job: JobSpec, last: int) -> Iterator[pa.Table]:
    """Read a share of a file; decode each cell of the rows up to a place; say per row what is wrong with it."""
    columns = _columns(tuple(job.inputs()))
    task = family.load("tasks", job.task.kind).Task
    fields = [("_file", pa.string()), ("_row", pa.int64()), ("_column", pa.string()), ("_reason", pa.string()), ("_value", pa.string())]
    fields += [("_order", pa.int64()), (TARGET, task.TYPE), *((name, modality.TYPE) for name, modality in columns.items())]
    for file, chunk in _read(batch, job):
        rows = chunk if last == _ORDERS else [row for row in chunk if _place(row, job) <= last]
        yield pa.Table.from_pylist([_check(row, file, columns, task, job) for row in rows], pa.schema(fields))


def _check(row: dict[str, Any], file: File, columns: dict[str, Any], task: Any, job: JobSpec) -> dict[str, Any]:
    out = {"_file": str(file), "_row": row["_row"], "_column": "", "_reason": row.get("_error", ""), "_value": "", "_order": 0}
    if out["_reason"]:
        return out
    column = ""
    try:
        values = batches.decode(row, columns, job.data.encoding_errors, file.folder)
        column = job.data.target or ""
        target = task.read(row[column], file.folder, task.options(job.task)) if column else None
        task.check(target, values)
        group = row[job.data.split] if job.data.split else None
        return out | values | {TARGET: target, "_order": order(job.seed, list(values.values()), target, group)}
    except DataError as error:
        column = column or error.where
        return out | {"_column": column, "_reason": error.what, "_value": repr(_short(row.get(column)))[:200]}


def _short(value: Any) -> Any:
    return value[:200] if isinstance(value, str | bytes) else value


def order(seed: int, values: list[Any], target: Any, group: Any = None) -> int:
    """A row's place in the shuffled order: a 63-bit hash of its content, so equal rows fall on the same side of a split.

    With a group, its hash makes the upper 31 bits, so that its rows are neighbours.
    """

    def hashed(content: Any) -> int:
        text = json.dumps(content, ensure_ascii=False, default=_fingerprint).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

    own = hashed([seed, values, target])
    return own if group is None else (hashed([seed, group]) >> _GROUP << _GROUP) | (own >> 63 - _GROUP)


def _fingerprint(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)


def _split(rows: ray.data.Dataset, data: DataSpec) -> tuple[ray.data.Dataset, ray.data.Dataset]:
    """Validation and training rows. A fraction of all rows is cut at a hash value, so a row keeps its side when others are added."""
    held_out, limit = data.validation, data.rows
    assert not isinstance(held_out, str)
    rows = rows.limit(limit) if limit else rows
    total = rows.count()
    if not total:
        return rows, rows
    if data.stratify:
        return _stratified(rows, held_out / total if isinstance(held_out, int) else held_out)
    if isinstance(held_out, int):
        cut = held_out
    elif limit:
        cut = round(held_out * total)
    else:
        cut = rows.filter(expr=f"_order < {int(held_out * _ORDERS)}").count()
    if 0 < cut < total and (data.split or limit or isinstance(held_out, int)):
        last = int(rows.limit(cut).max("_order"))  # to the end of the group, or of the equal rows, that the cut falls into
        cut = rows.filter(expr=f"_order < {(last >> _GROUP) + 1 << _GROUP if data.split else last + 1}").count()
    validation, train = rows.split_at_indices([min(cut, total)])
    return validation, train


def _stratified(rows: ray.data.Dataset, held_out: float) -> tuple[ray.data.Dataset, ray.data.Dataset]:
    """The first part by hash of every target's rows, and the rest."""
    places: dict[str, list[int]] = {}
    for table in rows.select_columns([TARGET, "_order"]).iter_batches(batch_format="pyarrow", batch_size=65536):
        for target, place in zip(table[TARGET].to_pylist(), table["_order"].to_pylist(), strict=True):
            places.setdefault(json.dumps(target), []).append(place)
    cuts = {target: sorted(found)[min(len(found) - 1, round(held_out * len(found)))] for target, found in places.items()}

    def side(table: pa.Table, held: bool) -> pa.Table:
        places = zip(table[TARGET].to_pylist(), table["_order"].to_pylist(), strict=True)
        return table.filter(pa.array([(place < cuts[json.dumps(target)]) == held for target, place in places], pa.bool_()))

    validation, train = (rows.map_batches(side, batch_size=None, batch_format="pyarrow", fn_args=(held,)) for held in (True, False))
    return validation.materialize(), train.materialize()


def _write(rows: ray.data.Dataset, job: JobSpec, folder: Path) -> list[dict[str, Any]]:
    """Parts in order. A task prepares a block and writes it in as many parts as make enough of them for all workers."""
    folder.mkdir()
    tasks = max(-(-rows.count() // _ROWS_PER_PART), -(-rows.size_bytes() // _BYTES_PER_PART))
    write = functools.partial(_write_parts, parts=-(-_LEAST_PARTS // tasks), job=job, folder=str(folder))
    written = rows.repartition(tasks).map_batches(write, batch_size=None, batch_format="pyarrow", num_cpus=1).take_all()
    return sorted(({"file": w["file"], "rows": int(w["rows"])} for w in written), key=lambda w: w["file"])


def _write_parts(table: pa.Table, parts: int, job: JobSpec, folder: str) -> dict[str, Any]:
    columns = _columns(tuple(job.inputs()))
    prepared = batches.prepare({name: table[name].to_pylist() for name in columns}, columns)
    table = table.drop_columns(list(columns))
    for name, values in prepared.items():
        table = table.append_column(name, pa.array(values))
    written: dict[str, list[Any]] = {"file": [], "rows": []}
    for rows in np.array_split(np.arange(table.num_rows), min(parts, table.num_rows)):
        part = table.slice(rows[0], len(rows))
        written["file"].append(f"part-{part['_order'][0].as_py():019d}-{part['_row'][0].as_py():09d}.parquet")
        written["rows"].append(len(rows))
        pq.write_table(part, Path(folder) / written["file"][-1], row_group_size=_ROWS_PER_GROUP)
    return {name: np.array(values) for name, values in written.items()}


@functools.lru_cache(maxsize=8)
def _columns(inputs: tuple[InputSpec, ...]) -> dict[str, Any]:
    """Modalities, loaded once per process."""
    return modalities(list(inputs))
