"""Files of labelled rows, read as raw cells that know the file and row they came from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lc_ray.errors import DataError
from lc_ray.models.load import package_path

_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_CHUNK, _SMALL = 4096, 128  # rows at a time, and where tasks share a file


def files(source: str) -> list[Path]:
    """The files of a source, sorted.

    Args:
        source: a file, a folder of files, or `package:NAME/path`.

    Raises:
        DataError: nothing there, or nothing that can be read.
    """
    path = package_path(source) if source.startswith("package:") else Path(source).expanduser().resolve()
    if not path.exists():
        raise DataError("no such file or folder", str(path), "give the path from the folder you run in, or an absolute one")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _ENDINGS) if path.is_dir() else [path]
    if not found or found[0].suffix.lower() not in _ENDINGS:
        raise DataError(f"no file that can be read; endings known: {', '.join(_ENDINGS)}", str(path))
    return found


class Reader:
    """Reads labelled rows of one file.

    Args:
        file: CSV, TSV, JSON Lines, JSON (a list of objects or of lists) or Parquet.
        names: of the columns, for a file without a header.
    """

    def __init__(self, file: Path, names: Sequence[str] | None = None) -> None:
        self.file, self.names, self.kind = file, list(names) if names else None, _ENDINGS[file.suffix.lower()]
        if self.kind == "jsonl" and file.suffix.lower() == ".json" and _starts_with(file, b"["):
            self.kind = "json"
        self._ragged: dict[int, str] = {}  # row number → what is wrong, of CSV rows that were skipped

    def columns(self) -> list[str]:
        """Names of the columns. Those of JSON are taken from the first row.

        Raises:
            DataError: the file has no header or can't be read.
        """
        try:
            match self.kind:
                case "parquet":
                    return list(pq.read_schema(self.file).names)
                case "json" | "jsonl":
                    rows = [row for chunk in itertools.islice(self._chunks([], 1), _SMALL) for row in chunk]
                    if rows and all("_error" in row for row in rows):
                        raise ValueError(rows[0]["_error"])
                    return list(next((row for row in rows if "_error" not in row), []))
                case _ if self.names:
                    return self.names
                case kind:
                    with open(self.file, "rb") as lines:
                        header = lines.readline()
                    return list(pyarrow.csv.read_csv(pa.BufferReader(header), parse_options=_csv(kind)).column_names)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise DataError(f"can't be read: {str(error).splitlines()[0]}", str(self.file)) from None

    def require(self, wanted: Sequence[str]) -> None:
        """Raise DataError if the file lacks one of the columns, listing those it has."""
        there = self.columns()
        for name in wanted:
            if name not in there:
                raise DataError(
                    f"no column '{name}'; there are: {', '.join(there) or 'none'}", str(self.file), "correct `data.inputs` or `data.target`"
                )

    def rows(self, wanted: Sequence[str], shard: int = 0, shards: int = 1) -> Iterator[list[dict[str, Any]]]:
        """Chunks of raw rows: the wanted cells, `_row` (from 0, the header not counted), and `_error` where the line itself is broken.

        Cells of CSV files are bytes, so that one that is not UTF-8 costs a row and not the file. Of several shards, each has every so many
        chunks.
        """
        number = 0
        for place, chunk in enumerate(self._chunks(wanted, _CHUNK if shards == 1 else _SMALL)):
            found: list[dict[str, Any]] = []
            for row in chunk.to_pylist() if isinstance(chunk, pa.RecordBatch) else chunk:
                while number in self._ragged:
                    found.append({"_error": self._ragged.pop(number), "_row": number})
                    number += 1
                found.append(row | {"_row": number})
                number += 1
            if place % shards == shard:
                yield found
        if self._ragged and shard == 0:
            yield [{"_error": reason, "_row": row} for row, reason in sorted(self._ragged.items())]

    def _chunks(self, wanted: Sequence[str], size: int) -> Iterator[Any]:
        """Record batches, or lists of dicts, of `size` rows; all columns of a JSON row where none is wanted."""
        match self.kind:
            case "parquet":
                yield from pq.ParquetFile(self.file).iter_batches(size, columns=list(wanted))
            case "json":
                yield from _batched((self._row(row, wanted) for row in self._list()), size)
            case "jsonl":
                with open(self.file, "rb") as lines:
                    yield from _batched((self._line(line, wanted) for line in lines if line.strip()), size)
            case kind:
                read, parse = pyarrow.csv.ReadOptions(column_names=self.names, use_threads=False), _csv(kind)
                parse.invalid_row_handler = self._skip
                types = dict.fromkeys(wanted, pa.binary())
                convert = pyarrow.csv.ConvertOptions(include_columns=list(wanted), column_types=types, strings_can_be_null=False)
                try:
                    for batch in pyarrow.csv.open_csv(self.file, read_options=read, parse_options=parse, convert_options=convert):
                        yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))
                except pa.ArrowException as error:
                    raise DataError(f"not valid {kind.upper()}: {error}", str(self.file)) from None

    def _skip(self, row: Any) -> str:
        """Note a CSV row of another length than the header's, and go on with the next."""
        header = 0 if self.names else 1
        self._ragged[row.number - 1 - header] = f"{row.actual_columns} fields where the header has {row.expected_columns}"
        return "skip"

    def _list(self) -> list[Any]:
        try:
            return list(json.loads(self.file.read_bytes()))
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", str(self.file)) from None

    def _line(self, line: bytes, wanted: Sequence[str]) -> dict[str, Any]:
        try:
            return self._row(json.loads(line), wanted)
        except ValueError:
            return {"_error": "not valid JSON"}

    def _row(self, row: Any, wanted: Sequence[str]) -> dict[str, Any]:
        if self.names and isinstance(row, list):
            row = dict(zip(self.names, row, strict=False))
        if not isinstance(row, dict):
            return {"_error": "not a JSON object" if not self.names else "neither a JSON object nor a list"}
        return {name: row.get(name) for name in wanted} if wanted else row


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(rows)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _starts_with(file: Path, sign: bytes) -> bool:
    with open(file, "rb") as lines:
        return lines.read(64).lstrip().startswith(sign)


def _csv(kind: str) -> Any:
    return pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True)
