"""Files of labelled rows, read as raw cells that know the file and row they came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lc_ray.errors import DataError
from lc_ray.models.load import package_path

_ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_CHUNK = 4096  # rows


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


def columns(file: Path) -> list[str]:
    """Names of the columns of a file. Those of JSON Lines are taken from the first row.

    Raises:
        DataError: the file has no header or can't be read.
    """
    try:
        match _ENDINGS[file.suffix.lower()]:
            case "parquet":
                return list(pq.read_schema(file).names)
            case "jsonl":
                with open(file, "rb") as lines:
                    first = next((line for line in lines if line.strip()), b"{}")
                return list(json.loads(first))
            case kind:
                with open(file, "rb") as lines:
                    header = lines.readline()
                return list(pyarrow.csv.read_csv(pa.BufferReader(header), parse_options=_csv(kind)).column_names)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"can't be read: {str(error).splitlines()[0]}", str(file)) from None


def require(file: Path, wanted: list[str]) -> None:
    """Raise DataError if a file lacks one of the columns, listing those it has."""
    there = columns(file)
    for name in wanted:
        if name not in there:
            raise DataError(f"no column '{name}'; there are: {', '.join(there) or 'none'}", str(file), "correct `data.inputs` or `data.target`")


def rows(file: Path, wanted: list[str]) -> Iterator[list[dict[str, Any]]]:
    """Chunks of raw rows: the wanted cells, `_row` (from 0, the header not counted), and `_error` where the line itself is broken.

    Cells of CSV files are bytes, so that one that is not UTF-8 costs a row and not the file.
    """
    number = 0
    for chunk in _chunks(file, wanted):
        for row in chunk:
            row["_row"] = number
            number += 1
        yield chunk


def _chunks(file: Path, wanted: list[str]) -> Iterator[list[dict[str, Any]]]:
    match _ENDINGS[file.suffix.lower()]:
        case "parquet":
            for batch in pq.ParquetFile(file).iter_batches(_CHUNK, columns=wanted):
                yield batch.to_pylist()
        case "jsonl":
            yield from _json_lines(file, wanted)
        case kind:
            convert = pyarrow.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary()), strings_can_be_null=False)
            try:
                for batch in pyarrow.csv.open_csv(file, parse_options=_csv(kind), convert_options=convert):
                    yield batch.to_pylist()
            except pa.ArrowException as error:
                raise DataError(f"not valid {kind.upper()}: {error}", str(file)) from None


def _json_lines(file: Path, wanted: list[str]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    with open(file, "rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                chunk.append({name: row.get(name) for name in wanted} if isinstance(row, dict) else {"_error": "not a JSON object"})
            except ValueError:
                chunk.append({"_error": "not valid JSON"})
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _csv(kind: str) -> Any:
    return pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True)
