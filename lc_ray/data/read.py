"""Labelled rows of a file, read as raw cells that know the row they came from."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lc_ray.data import coco, conll
from lc_ray.data.files import IMAGES, File
from lc_ray.errors import DataError, first_line

CHUNK = 4096  # rows at a time
_FIRST = 128  # rows among which columns are looked for, at least
_UNEVEN = ("json", "jsonl", "tar", "conll", "txt")  # kinds of which each row has columns of its own
_SAVE = "save it with commas between cells, or as .tsv with tabs"
_CORRECT, _NAME = "correct `data.inputs` or `data.target`", "; of a file without a header, name the columns in `data.columns`"
_BLOCK = 2**24  # bytes of a CSV file that are read at a time; a row must fit
_BROKEN = (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError)  # what a file that is cut off or damaged raises


class Reader:
    """Reads labelled rows of one file.

    Args:
        file: CSV, TSV, JSON Lines, JSON (a list of objects or of lists, or COCO's), Parquet, Arrow (of a Hugging Face dataset that was saved to
            disk), CoNLL's, text of a row per line, a WebDataset's tar, or a folder with a subfolder per label.
        names: of the columns, for a file without a header.
    """

    def __init__(self, file: File, names: Sequence[str] | None = None) -> None:
        self.file, self.names, self.kind = file, list(names) if names else None, file.kind
        if self.kind == "jsonl" and _is_whole(file):
            self.kind = "json"
        self._open = False  # whether the last of them ends within a quote
        self._ragged: dict[int, str] = {}  # row number → what is wrong, of CSV rows that were skipped

    def columns(self, wanted: Sequence[str] = ()) -> list[str]:
        """Names of the columns. Where each row may lack some, those of the first rows, and of as many more as it takes to find all wanted ones.

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
                        return list(_arrow(content)[0].names)
                case "labels":
                    return list(self._labelled([]))
                case kind if kind in _UNEVEN:
                    return self._seen(wanted)
                case _ if self.names:
                    return self.names
                case kind:
                    with self.file.open() as content:
                        return _header(content, kind)
        except DataError:
            raise
        except (*_BROKEN, ValueError, csv.Error) as error:
            raise DataError(f"can't be read: {first_line(error)}", str(self.file)) from None

    def _seen(self, wanted: Sequence[str]) -> list[str]:
        found, error = dict[str, None](), ""
        for number, (row,) in enumerate(self._chunks([], 1)):
            if number >= _FIRST and found.keys() >= set(wanted):
                break
            if "_error" in row:
                error = error or row["_error"]
            else:
                found |= dict.fromkeys(row)
        if error and not found:
            raise ValueError(f"{error}; there is to be an object on each line, or one list of objects" if self.kind == "jsonl" else error)
        return list(found)

    def among(self, names: Sequence[str]) -> list[str]:
        """Those of the names that `rows` can be asked for; where each row has columns of its own, all."""
        there = names if self.kind in _UNEVEN else self.columns()
        return [name for name in names if name in there]

    def require(self, wanted: Sequence[str], fix: str = "") -> None:
        """Raise DataError if the file lacks one of the columns, listing those it has, or has it twice; or if names were given that it has itself,
        or that fit only if other marks separate its cells.
        """
        there, table = self.columns(wanted), self.kind in ("csv", "tsv")
        if self.names and table:
            first, own = Reader(self.file).columns(), _csv(self.kind).delimiter
            if first == self.names:
                raise DataError("its first row has the names of the columns", str(self.file), "leave out `data.columns`, or that row")
            if len(first) != len(self.names) and any(len(own.join(first).split(mark)) == len(self.names) for mark in _marks(first)):
                raise DataError("its cells are separated by another mark", str(self.file), _SAVE)
        for name in wanted:
            if there.count(name) > 1:
                raise DataError(f"{there.count(name)} columns are named '{name}'", str(self.file), "rename all but one of them")
            if name not in there:
                other = table and there and any(mark in there[0] for mark in _marks(there))
                usual = _CORRECT + _NAME if table else _CORRECT
                raise DataError(f"no column '{name}'; there are: {', '.join(there) or 'none'}", str(self.file), _SAVE if other else fix or usual)

    def shards(self, wanted: Sequence[str], most: int, size: int = CHUNK) -> int:
        """How many tasks are worth sharing the file in chunks of `size` rows, at least one: none would be left without rows."""
        return max(1, sum(1 for _ in itertools.islice(self._whole(wanted, size), most))) if most > 1 else 1

    def rows(self, wanted: Sequence[str], shard: int = 0, shards: int = 1, size: int = CHUNK) -> Iterator[list[dict[str, Any]]]:
        """Chunks of raw rows: the wanted cells, `_row` (from 0, the header not counted), and `_error` where the line itself is broken.

        Cells of CSV files are bytes, so that one that is not UTF-8 costs a row and not the file. Of several shards, each has every so many
        chunks of `size` rows.
        """
        number = 0
        for place, chunk in enumerate(self._whole(wanted, size)):
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

    def _whole(self, wanted: Sequence[str], size: int) -> Iterator[Any]:
        """As `_chunks`; DataError if the file is cut off or damaged."""
        try:
            yield from self._chunks(wanted, size)
        except _BROKEN as error:
            what = first_line(error)
            if "Empty CSV" in what:
                return  # a header and no line end
            if "straddling" in what:
                what = f"a row is longer than {_BLOCK >> 20} MiB, or a quote is never closed"
            raise DataError(f"can't be read to its end: {what}", str(self.file)) from None

    def _chunks(self, wanted: Sequence[str], size: int) -> Iterator[Any]:
        """Record batches, or lists of dicts, of `size` rows; all columns of a JSON row where none is wanted."""
        match self.kind:
            case "parquet":
                with self.file.open() as content:
                    table = pq.ParquetFile(content)
                    yield from _named(table.schema_arrow, table.iter_batches(size, columns=list(wanted)))
            case "arrow":
                with self.file.open() as content:
                    schema, batches = _arrow(content)
                    pieces = (batch.slice(start, size) for batch in batches for start in range(0, batch.num_rows, size))
                    yield from _named(schema, (piece.select(list(wanted)) for piece in pieces))
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
            case "conll":
                with self.file.open() as lines:
                    yield from _batched((self._row(row, wanted) for row in conll.rows(lines)), size)
            case "txt":
                with self.file.open() as lines:
                    yield from _batched((self._row(_text(line), wanted) for line in lines if line.strip()), size)
            case kind:
                read, parse = pyarrow.csv.ReadOptions(column_names=self.names, use_threads=False, block_size=_BLOCK), _csv(kind)
                parse.invalid_row_handler = self._skip
                if kind == "tsv" and not self._quoted:
                    parse.quote_char = False
                types = dict.fromkeys(wanted, pa.binary())
                convert = pyarrow.csv.ConvertOptions(include_columns=list(wanted), column_types=types, strings_can_be_null=False)
                with self.file.open() as content:
                    batch = None
                    for batch in pyarrow.csv.open_csv(content, read_options=read, parse_options=parse, convert_options=convert):
                        yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))
                if self._open or (batch and any(_is_rest(cell, self.file) for cell in batch.slice(batch.num_rows - 1).to_pylist()[0].values())):
                    raise DataError("its last row's quote is never closed", str(self.file), "close it; a quote in a text is written twice")

    @functools.cached_property
    def _quoted(self) -> bool:
        """Whether quotes enclose cells of a TSV. In those of GLUE and Common Voice they are part of texts, which shows where a cell begins with one
        and does not end with its other: read as CSV, all up to the next one would be that cell.
        """
        within = False
        with self.file.open() as lines:
            for line in lines:
                for cell in line.rstrip(b"\r\n").split(b"\t") if b'"' in line else ():
                    if within or cell.startswith(b'"'):
                        rest = cell[not within :].replace(b'""', b"")
                        if b'"' in rest[:-1]:
                            return False
                        within = not rest.endswith(b'"')
        return not within

    def _skip(self, row: Any) -> str:
        """Note a CSV row of another length than the header's, and go on with the next."""
        header = 0 if self.names else 1
        self._open = "\n" in row.text.strip() and row.text.count('"') % 2 == 1
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
                    if name.startswith("."):
                        continue
                    stem, _, ending = name.partition(".")
                    if sample and sample["__key__"] != f"{folder}/{stem}":
                        yield sample
                        sample = {}
                    data = cast(Any, tar.extractfile(member)).read()
                    sample |= {"__key__": f"{folder}/{stem}"} | _parsed(ending, data)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"not a whole tar file: {error}", str(self.file)) from None
        if sample:
            yield sample

    def _list(self) -> list[Any]:
        try:
            with self.file.open() as content:
                found = json.loads(content.read().removeprefix(codecs.BOM_UTF8))
                return coco.rows(found) if isinstance(found, dict) else list(found)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON: {first_line(error)}", str(self.file)) from None

    def _line(self, line: bytes, wanted: Sequence[str]) -> dict[str, Any]:
        try:
            return self._row(json.loads(line.decode("utf-8-sig")), wanted)  # of bytes it would read UTF-16, some of whose lines are cut
        except UnicodeDecodeError:
            return {"_error": "not valid UTF-8"}
        except (ValueError, RecursionError):
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
        except (ValueError, RecursionError):
            return {"_error": "a .json of the sample is not valid JSON"}
    return {ending: data}


def _named(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[list[dict[str, Any]]]:
    """Rows, those columns as names that a Hugging Face dataset keeps as numbers of classes."""
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = {column: feature for column, feature in known.items() if '"ClassLabel"' in json.dumps(feature)}
    for batch in batches:
        rows = batch.to_pylist()
        for column in classes.keys() & set(batch.schema.names):
            for row in rows:
                row[column] = _renamed(row[column], classes[column])
        yield rows


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
    """Schema and batches of an Arrow stream, as Hugging Face datasets are saved, or of an Arrow file."""
    sign = content.read(6)
    content.seek(0)
    if sign != b"ARROW1":
        stream = pa.ipc.open_stream(content)
        return stream.schema, stream
    file = pa.ipc.open_file(content)
    return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


def _is_whole(file: File) -> bool:
    """Whether a file of JSON is COCO's, or one list: in a .jsonl, a list of objects, as its lines may be lists."""
    try:
        with file.open() as content:
            start = b"".join(content.read(256).removeprefix(codecs.BOM_UTF8).split())
    except _BROKEN:
        return False  # said when its columns are asked for
    lines = not file.name.lower().removesuffix(".gz").endswith(".json")
    return start.startswith(b"[{" if lines else b"[") or (not lines and coco.begins(start))


def _is_rest(cell: Any, file: File) -> bool:
    """Whether a cell of several lines goes on to the very end of its file, where a quote that closes it should be."""
    if not cell or b"\n" not in cell:
        return False
    with file.open() as content:
        content.seek(max(0, content.seek(0, io.SEEK_END) - 64))
        end = content.read().rstrip(b"\r\n")
    opened = (b'"' + cell).rstrip(b"\r\n")
    shared = min(len(opened), len(end))
    return bool(opened[-shared:] == end[-shared:])


def _text(line: bytes) -> dict[str, Any]:
    """A line of a text; of UTF-16 all but the first could be taken for UTF-8."""
    return {"_error": "not valid UTF-8"} if b"\0" in line else {"text": line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")}


def _header(content: BinaryIO, kind: str) -> list[str]:
    """The first line that is not empty; names may have line breaks."""
    lines = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")
    names = next((row for row in csv.reader(lines, delimiter=_csv(kind).delimiter) if row), None)
    if names is None:
        raise ValueError("the file is empty")
    if any("\udc80" <= c <= "\udcff" or c == "\0" for name in names for c in name):  # the latter of UTF-16
        raise ValueError("the header is not valid UTF-8; save the file as UTF-8")
    return names


def _marks(first: list[str]) -> str:
    """What may separate cells in place of the mark that gave these of the first row. Texts have commas and semicolons."""
    return ",;\t|" if len(first) == 1 else "\t|"


def _csv(kind: str) -> Any:
    return pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True)
