"""Parquet, ORC and Arrow's files, of which no more is read than is asked for: several tasks share one, and each has only some of its rows."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from pyarrow import orc


class Later:
    """Rows that are read once they are asked for.

    Args:
        rows: how many they are.
        read: gives them.
    """

    def __init__(self, rows: int, read: Callable[[], Iterable[dict[str, Any]]]) -> None:
        self._rows, self._read = rows, read

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._read())


def columns(content: Any, kind: str) -> list[str]:
    """Names of the columns of a file of a kind, as `files.KINDS` has it."""
    match kind:
        case "parquet":
            return list(pq.read_schema(content).names)
        case "orc":
            return list(orc.ORCFile(content).schema.names)
        case _:
            return list(_arrow(content)[0].names)


def chunks(content: Any, kind: str, wanted: Sequence[str], size: int) -> Iterator[Later]:
    """Rows of such a file, up to `size` at a time, with names where a Hugging Face dataset keeps numbers of classes."""
    names = list(wanted)
    match kind:
        case "parquet":
            table = pq.ParquetFile(content)
            for groups, rows in _joined([table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)], size):
                part = _Part(lambda groups=groups: table.iter_batches(size, groups, names), size)  # type: ignore[misc]
                yield from _each(table.schema_arrow, part.chunk, rows, size)
        case "orc":
            file = orc.ORCFile(content)
            for stripe in (file.read_stripe(number, names) for number in range(file.nstripes)):
                yield from _each(file.schema, _slices(stripe, names, size), stripe.num_rows, size)
        case _:
            schema, batches = _arrow(content)
            for batch in batches:
                yield from _each(schema, _slices(batch, names, size), batch.num_rows, size)


def _joined(groups: list[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Row groups by number, and their rows: neighbours that have no more than `size` together are read as one."""
    start, rows = 0, 0
    for number, more in enumerate(groups):
        if rows and rows + more > size:
            yield list(range(start, number)), rows
            start, rows = number, 0
        rows += more
    if rows:
        yield list(range(start, len(groups))), rows


def _each(schema: pa.Schema, chunk: Callable[[int], Any], rows: int, size: int) -> Iterator[Later]:
    classes = _classes(schema)
    for start in range(0, rows, size):
        yield Later(min(size, rows - start), lambda number=start // size: _named(chunk(number), classes))  # type: ignore[misc]


def _slices(batch: pa.RecordBatch, names: list[str], size: int) -> Callable[[int], Any]:
    return lambda number: batch.select(names).slice(number * size, size)


class _Part:
    """Row groups that are read in order from their beginning, or not at all if none of their rows is asked for."""

    def __init__(self, batches: Callable[[], Iterator[pa.RecordBatch]], size: int) -> None:
        self._batches, self._size = batches, size
        self._rest: Iterator[pa.Table] = iter(())
        self._next = 0

    def chunk(self, number: int) -> pa.Table:
        """Rows `number * size` to `(number + 1) * size`."""
        if not 0 < self._next <= number:
            self._rest, self._next = recut(self._batches(), self._size), 0
        found = next(itertools.islice(self._rest, number - self._next, None))
        self._next = number + 1
        return found


def recut(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows, the last maybe of fewer, of batches of up to as many: those of very large cells are smaller than was asked for."""
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(pa.Table.from_batches([batch]))
        if sum(table.num_rows for table in waiting) >= size:
            whole = joined(waiting)
            yield whole.slice(0, size)
            waiting = [whole.slice(size)]
    if any(table.num_rows for table in waiting):
        yield joined(waiting)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Rows of several tables. One whose rows all lack a value does not know its type."""
    return pa.concat_tables(tables, promote_options="permissive")


def _classes(schema: pa.Schema) -> dict[str, Any]:
    """Columns that a Hugging Face dataset keeps as numbers of classes, with what tells their names."""
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {column: feature for column, feature in known.items() if '"ClassLabel"' in json.dumps(feature)}


def _named(batch: Any, classes: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows, with names of classes in place of numbers."""
    rows: list[dict[str, Any]] = batch.to_pylist()
    for column in classes.keys() & set(batch.schema.names):
        for row in rows:
            row[column] = _renamed(row[column], classes[column])
    return rows


def _renamed(value: Any, feature: Any) -> Any:
    """A cell, or what is in it, with names in place of numbers of classes."""
    if value is None or not isinstance(feature, dict | list):
        return value
    if isinstance(feature, list):
        feature = {"feature": feature[0]}
    if isinstance(value, list):
        inner = feature.get("feature", feature)
        return [_renamed(item, inner) for item in value]
    if isinstance(value, dict):  # a list of structs may be kept as a struct of lists
        inner = feature.get("feature", feature)
        return {name: _renamed(item, inner.get(name)) for name, item in value.items()}
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return value if not names else names[value] if 0 <= value < len(names) else None


def _arrow(content: Any) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    """Schema and batches of an Arrow stream, as Hugging Face datasets are saved, or of an Arrow file, or of Feather's first version."""
    sign = content.read(6)
    content.seek(0)
    if isinstance(getattr(content, "raw", None), io.FileIO):  # what is passed over then costs nothing
        content = pa.memory_map(content.name)
    if sign.startswith(b"FEA1"):
        table = pyarrow.feather.read_table(content)
        return table.schema, table.to_batches()
    if sign != b"ARROW1":
        stream = pa.ipc.open_stream(content)
        return stream.schema, stream
    file = pa.ipc.open_file(content)
    return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
