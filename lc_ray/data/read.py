"""Labelled rows of a file, read as raw cells that know the row they came from."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lc_ray.data.files import IMAGES, File
from lc_ray.errors import DataError

CHUNK = 4096  # rows at a time
_FIRST = 128  # rows among which the first that can be read is looked for


class Reader:
    """Reads labelled rows of one file.

    Args:
        file: CSV, TSV, JSON Lines, JSON (a list of objects or of lists), Parquet, Arrow (of a Hugging Face dataset that was saved to disk), a
            WebDataset's tar, or a folder with a subfolder per label.
        names: of the columns, for a file without a header.
    """

    def __init__(self, file: File, names: Sequence[str] | None = None) -> None:
        self.file, self.names, self.kind = file, list(names) if names else None, file.kind
        if self.kind == "jsonl" and file.name.lower().endswith(".json") and _starts_with(file, b"["):
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
                    with self.file.open() as content:
                        return list(pq.read_schema(content).names)
                case "arrow":
                    with self.file.open() as content:
                        return list(pa.ipc.open_stream(content).schema.names)
                case "labels":
                    return list(self._labelled([]))
                case "json" | "jsonl" | "tar":
                    rows = [row for chunk in itertools.islice(self._chunks([], 1), _FIRST) for row in chunk]
                    if rows and all("_error" in row for row in rows):
                        raise ValueError(rows[0]["_error"])
                    return list(next((row for row in rows if "_error" not in row), []))
                case _ if self.names:
                    return self.names
                case kind:
                    with self.file.open() as lines:
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

    def shards(self, wanted: Sequence[str], most: int, size: int = CHUNK) -> int:
        """How many tasks are worth sharing the file in chunks of `size` rows, at least one: none would be left without rows."""
        return max(1, sum(1 for _ in itertools.islice(self._chunks(wanted, size), most))) if most > 1 else 1

    def rows(self, wanted: Sequence[str], shard: int = 0, shards: int = 1, size: int = CHUNK) -> Iterator[list[dict[str, Any]]]:
        """Chunks of raw rows: the wanted cells, `_row` (from 0, the header not counted), and `_error` where the line itself is broken.

        Cells of CSV files are bytes, so that one that is not UTF-8 costs a row and not the file. Of several shards, each has every so many
        chunks of `size` rows.
        """
        number = 0
        for place, chunk in enumerate(self._chunks(wanted, size)):
            found: list[dict[str, Any]] = []
            if place % shards != shard and not self._ragged:
                number += len(chunk)
                continue
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
                with self.file.open() as content:
                    table = pq.ParquetFile(content)
                    yield from _named(table.schema_arrow, table.iter_batches(size, columns=list(wanted)))
            case "arrow":
                with self.file.open() as content:
                    stream = pa.ipc.open_stream(content)
                    pieces = (batch.slice(start, size) for batch in stream for start in range(0, batch.num_rows, size))
                    yield from _named(stream.schema, (piece.select(list(wanted)) for piece in pieces))
            case "labels":
                rows = self._labelled(self.file.media())
                every = list(zip(*rows.values(), strict=True))
                yield from _batched((dict(zip(rows, cells, strict=True)) for cells in every), size)
            case "tar":
                yield from _batched((self._row(row, wanted) for row in self._samples()), size)
            case "json":
                yield from _batched((self._row(row, wanted) for row in self._list()), size)
            case "jsonl":
                with self.file.open() as lines:
                    yield from _batched((self._line(line, wanted) for line in lines if line.strip()), size)
            case kind:
                read, parse = pyarrow.csv.ReadOptions(column_names=self.names, use_threads=False), _csv(kind)
                parse.invalid_row_handler = self._skip
                types = dict.fromkeys(wanted, pa.binary())
                convert = pyarrow.csv.ConvertOptions(include_columns=list(wanted), column_types=types, strings_can_be_null=False)
                try:
                    for batch in pyarrow.csv.open_csv(self.file.open(), read_options=read, parse_options=parse, convert_options=convert):
                        yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))
                except pa.ArrowException as error:
                    raise DataError(f"not valid {kind.upper()}: {error}", str(self.file)) from None

    def _skip(self, row: Any) -> str:
        """Note a CSV row of another length than the header's, and go on with the next."""
        header = 0 if self.names else 1
        self._ragged[row.number - 1 - header] = f"{row.actual_columns} fields where the header has {row.expected_columns}"
        return "skip"

    def _labelled(self, media: list[str]) -> dict[str, list[str]]:
        """Columns of a folder with a subfolder per label: `image` or `audio`, paths from the folder's own, and `label`."""
        first = next(iter(media or self.file.media()), "")
        kind = "image" if any(first.lower().endswith(ending) for ending in IMAGES) else "audio"
        return {kind: media, "label": [path.split("/")[1] for path in media]}

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Samples of a WebDataset: neighbouring members whose names are equal up to the first dot; a column per ending, or key of a .json.

        Raises:
            DataError: not a tar file, or one that is cut off.
        """
        sample: dict[str, Any] = {}
        try:
            with self.file.open() as content, tarfile.open(fileobj=content, mode="r|") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    if sample and sample["__key__"] != f"{folder}/{stem}":
                        yield sample
                        sample = {}
                    data = cast(Any, tar.extractfile(member)).read()
                    sample |= {"__key__": f"{folder}/{stem}"} | _parsed(ending, data)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"not a whole tar file: {error}", str(self.file)) from None
        if sample:
            yield sample

    def _list(self) -> list[Any]:
        try:
            with self.file.open() as content:
                return list(json.load(content))
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
        if isinstance(row, dict) and "_error" in row:
            return {"_error": row["_error"]}
        if not isinstance(row, dict):
            return {"_error": "not a JSON object" if not self.names else "neither a JSON object nor a list"}
        return {name: row.get(name) for name in wanted} if wanted else row


def _batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(rows)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _parsed(ending: str, data: bytes) -> dict[str, Any]:
    """A member of a WebDataset's sample as cells by column."""
    if ending == "json":
        try:
            if isinstance(found := json.loads(data), dict):
                return found
        except ValueError:
            return {"_error": "a .json of the sample is not valid JSON"}
    return {ending: data}


def _named(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[list[dict[str, Any]]]:
    """Rows, those columns as names that a Hugging Face dataset keeps as numbers of classes."""
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = {column: f["names"] for column, f in known.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel" and f.get("names")}
    for batch in batches:
        rows = batch.to_pylist()
        for column in classes.keys() & set(batch.schema.names):
            for row in rows:
                number = row[column]
                row[column] = classes[column][number] if number is not None and 0 <= number < len(classes[column]) else None
        yield rows


def _starts_with(file: File, sign: bytes) -> bool:
    with file.open() as lines:
        return lines.read(64).lstrip().startswith(sign)


def _csv(kind: str) -> Any:
    return pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True)
