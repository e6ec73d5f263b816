"""Labelled rows of a file, read as raw cells that know the row they came from."""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa

from lc_ray.data import boxes, conll, documents, lines, packed, sheets, stored, tables
from lc_ray.data.files import File
from lc_ray.data.folders import Folder
from lc_ray.data.stored import Later
from lc_ray.data.tables import Table
from lc_ray.errors import DataError, first_line
from lc_ray.modalities import _text

CHUNK = 4096  # rows at a time
_DOT = "."
_FIRST = 128  # rows among which columns are looked for, at least
_UNEVEN = ("json", "jsonl", "tar", "conll", "conllu", "txt", "sheet")  # kinds of which each row has columns of its own
_CORRECT, _NAME = "correct `data.inputs` or `data.target`", "; of a file without a header, name the columns in `data.columns`"
_NESTED = "; labels are names of subfolders, or stand beside the files' names in a table"
_PIXEL, _PIXELS = re.compile(r"pixel_?\d+"), "; of a picture with a column for each pixel, write a column of lists, [0, 255, ...]"
_SHOWN = 20  # names of columns, where one is missing
_BROKEN = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, zlib.error, *packed.BROKEN)  # what a file that is cut off or damaged raises


class Reader:
    """Reads labelled rows of one file.

    Args:
        file: CSV, TSV, JSON Lines, JSON (see `documents`), Parquet, ORC, Arrow (of a Hugging Face dataset that was saved to
            disk), CoNLL's, text of a row per line or a table, a sheet, a WebDataset's tar, or a folder (see `folders`).
        names: of the columns, for a file without a header.
    """

    def __init__(self, file: File, names: Sequence[str] | None = None) -> None:
        self.file, self.names, self.kind = file, list(names) if names else None, file.kind
        with contextlib.suppress(*_BROKEN):  # said when its columns are asked for
            if self.kind == "jsonl" and documents.is_one(file):
                self.kind = "json"
        self._table = Table(file, names) if self.kind in ("csv", "tsv", "txt") else None
        self._ragged = self._table.ragged if self._table else {}
        self._paths = functools.cache(self._found)  # where names have dots or bars, each time reads columns

    def columns(self, wanted: Sequence[str] = ()) -> list[str]:
        """Names of the columns. Where each row may lack some, those of the first rows, and of as many more as it takes to find all wanted ones.

        Raises:
            DataError: the file has no header or can't be read.
        """
        there = [*(own := self._own(wanted)), *(name for name in self.file.partitions if name not in own)]
        return [*there, *([boxes.ANNOTATIONS] if boxes.parts(there) else [])]

    def _own(self, wanted: Sequence[str] = ()) -> list[str]:
        """Those of the columns that are in the file itself."""
        try:
            match self._kind(wanted):
                case "parquet" | "orc" | "arrow" as kind:
                    with self.file.open() as content:
                        return stored.columns(content, kind)
                case "folder":
                    return self._folder.columns()
                case kind if kind in _UNEVEN:
                    return self._seen(wanted, kind)
                case _:
                    return cast(Table, self._table).columns()
        except DataError:
            raise
        except (*_BROKEN, ValueError, csv.Error) as error:
            raise DataError(f"can't be read: {first_line(error)}", str(self.file)) from None

    def _seen(self, wanted: Sequence[str], kind: str) -> list[str]:
        found, error = dict[str, None](), ""
        for number, (row,) in enumerate(self._chunks([], 1, kind)):
            if number >= _FIRST and found.keys() >= set(wanted):
                break
            if "_error" in row:
                error = error or row["_error"]
            else:
                found |= dict.fromkeys(row)
        if error and not found:
            raise ValueError(f"{error}; there is to be an object on each line, or one list of objects" if self.kind == "jsonl" else error)
        return list(found)

    def _parts(self, name: str) -> list[str]:
        """The columns that a name stands for: itself, or, where none is named so, those between bars."""
        parts = name.split(_text.BAR)
        return parts if len(parts) > 1 and name not in self.columns() else [name]

    def _found(self, name: str) -> dict[str, list[str]]:
        """Each of these as the column that is read, and, where none is named so, the keys between dots within its cells."""
        parts = self._parts(name)
        there = self.columns() if any(_DOT in part for part in parts) else []
        paths = {part: part.split(_DOT) if part not in there else [part] for part in parts}
        return {part: path if path[0] in there else [part] for part, path in paths.items()}

    def _all(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(path[0] for name in names for path in self._paths(name).values()))

    def among(self, names: Sequence[str]) -> list[str]:
        """Those of the names that `rows` can be asked for; where each row has columns of its own, all."""
        there = self._all(names) if self._kind(names) in _UNEVEN else self.columns(names)
        return [name for name in names if {path[0] for path in self._paths(name).values()} <= set(there)]

    def require(self, wanted: Sequence[str], fix: str = "") -> None:
        """Raise DataError if the file lacks one of the columns, listing those it has, or has it twice."""
        wanted = self._all(wanted)
        there = self.columns(wanted)
        for name in wanted:
            if there.count(name) > 1:
                raise DataError(f"{there.count(name)} columns are named '{name}'", str(self.file), "rename all but one of them")
            if name not in there:
                near = difflib.get_close_matches(name.lower(), [column.lower() for column in there], 1)
                meant = next((f"did you mean '{column}'? " for column in there if column.lower() in near), "")
                usual = _CORRECT + (_NAME if self._table else _NESTED if self.kind == "folder" else "")
                usual += _PIXELS if any(map(_PIXEL.fullmatch, there)) else ""
                shown = ", ".join(there[:_SHOWN]) + (f", ... ({len(there):,} in all)" if len(there) > _SHOWN else "")
                raise DataError(f"no column '{name}'; there are: {shown or 'none'}", str(self.file), meant + (fix or usual))

    def shards(self, wanted: Sequence[str], most: int, size: int = CHUNK) -> int:
        """How many tasks are worth sharing the file in chunks of `size` rows, at least one: none would be left without rows."""
        with self._to_its_end():
            return max(1, sum(1 for _ in itertools.islice(self._whole(wanted, size), most))) if most > 1 else 1

    def rows(self, wanted: Sequence[str], shard: int = 0, shards: int = 1, size: int = CHUNK) -> Iterator[list[dict[str, Any]]]:
        """Chunks of raw rows: the wanted cells, `_row` (from 0, the header not counted), and `_error` where the line itself is broken.

        A wanted name such as `spam|urgent`, where no column has it, is a cell with those of the columns between the bars, by their names; one such
        as `meta.stars` is what the cells of `meta` have by that key.
        Cells of CSV files are bytes, so that one that is not UTF-8 costs a row and not the file. Of several shards, each has every so many
        chunks of `size` rows.
        """
        number, paths = 0, {name: paths for name in wanted if list((paths := self._paths(name)).values()) != [[name]]}
        with self._to_its_end():
            for place, chunk in enumerate(self._whole(wanted, size)):
                found: list[dict[str, Any]] = []
                if place % shards != shard and not self._ragged:
                    number += len(chunk)
                    continue
                for row in _listed(chunk):
                    while number in self._ragged:
                        found.append({"_error": self._ragged.pop(number), "_row": number})
                        number += 1
                    cells = {name: _cell(row, parts) for name, parts in paths.items()} if "_error" not in row else {}
                    found.append(row | cells | {"_row": number})
                    number += 1
                if place % shards == shard:
                    yield found
        if self._ragged and shard == 0:
            yield [{"_error": reason, "_row": row} for row, reason in sorted(self._ragged.items())]

    def _whole(self, wanted: Sequence[str], size: int) -> Iterator[Any]:
        """As `_chunks`, with the values that folders have."""
        names = self._all(wanted)
        shared = {name: value for name, value in self.file.partitions.items() if name in names}
        own = names
        if shared:
            there = self._own(names)
            shared = {name: value for name, value in shared.items() if name not in there}
            own = [name for name in names if name not in shared] or there[:1]
        for chunk in self._grouped(own, size, self._kind(wanted)):
            yield Later(len(chunk), lambda chunk=chunk: (row | shared for row in _listed(chunk))) if shared else chunk  # type: ignore[misc]

    @contextlib.contextmanager
    def _to_its_end(self) -> Iterator[None]:
        """DataError if the file is cut off or damaged."""
        try:
            yield
        except _BROKEN as error:
            what = first_line(error)
            if "Empty CSV" in what:
                return  # a header and no line end
            if "straddling" in what:
                what = f"a row is longer than {tables.BLOCK >> 20} MiB, or a quote is never closed"
            raise DataError(f"can't be read to its end: {what}", str(self.file)) from None

    def _kind(self, wanted: Sequence[str]) -> str:
        """How the file is read for some columns: a .txt may be CoNLL's, or a table."""
        if self.kind != "txt" or conll.COLUMNS.intersection(wanted):
            return "conll" if self.kind == "txt" else self.kind
        return "table" if self.names or (not {"text"}.issuperset(wanted) and self._is_table()) else "txt"

    def _is_table(self) -> bool:
        """Whether a text's first line has several cells, and is not fastText's."""
        first = cast(Table, self._table).columns()
        return len(first) > 1 and not first[0].encode().startswith(lines.LABEL)

    def _grouped(self, wanted: Sequence[str], size: int, kind: str) -> Iterator[Any]:
        """As `_chunks`; a row for each picture where boxes are wanted and the file has a row for each of these."""
        if boxes.ANNOTATIONS not in wanted or not (found := boxes.parts(self._own())):
            return self._chunks(wanted, size, kind)
        read = list(dict.fromkeys([*(name for name in wanted if name != boxes.ANNOTATIONS), found[0], *found[2]]))
        each = (row for chunk in self._chunks(read, CHUNK, kind) for row in _listed(chunk))
        return batched(boxes.rows(each, found, wanted), size)

    def _chunks(self, wanted: Sequence[str], size: int, kind: str) -> Iterator[Any]:
        """Record batches or dicts, `size` rows at a time, which are read no further than they are looked at; all columns of a JSON row where none is
        wanted.
        """
        match kind:
            case "parquet" | "orc" | "arrow":
                with self.file.open() as content:
                    yield from stored.chunks(content, kind, wanted, size)
            case "folder":
                yield from self._folder.chunks(wanted, size)
            case "tar":
                yield from batched((self._row(row, wanted) for row in self._samples()), size)
            case "json":
                yield from batched((self._row(row, wanted) for row in self._list()), size)
            case "jsonl":
                with self.file.open() as content:
                    for some in batched((line for line in content if line.strip()), size):
                        yield Later(len(some), functools.partial(map, functools.partial(self._line, wanted=wanted), some))
            case "conll":
                with self.file.open() as content:
                    yield from batched((self._row(row, wanted) for row in conll.rows(content)), size)
            case "conllu":
                with self.file.open() as content:
                    yield from batched((self._row(row, wanted) for row in conll.universal(content)), size)
            case "sheet":
                yield from batched((self._row(row, wanted) for row in self._sheet()), size)
            case "txt":
                with self.file.open() as content:
                    yield from batched((self._row(lines.row(line), wanted) for line in content if line.strip()), size)
            case _ if sentence := self._sentence:
                chunks = cast(Table, self._table).chunks(list({*wanted, sentence}), size)
                yield from batched(conll.sentences((row for chunk in chunks for row in chunk.to_pylist()), sentence, wanted), size)
            case _:
                yield from cast(Table, self._table).chunks(wanted, size)

    @functools.cached_property
    def _sentence(self) -> str | None:
        """Of a table that has a word in each row, the column that tells which sentence it is of."""
        names = (table := Table(self.file, self.names)).columns()
        names = [name for name in names if names.count(name) == 1]
        if (sentence := next((name for name in names if name.lower() in conll.SENTENCE), None)) is None:
            return None
        first = next(table.chunks(names, _FIRST), None)
        return sentence if first is not None and conll.are_words(first.to_pylist(), sentence) else None

    @functools.cached_property
    def _folder(self) -> Folder:
        return Folder(self.file)

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Samples of a WebDataset: neighbouring members whose names are equal up to the first dot; a column per ending, in small
        letters as its own reader has them, or per key of a .json.

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
                    sample |= {"__key__": f"{folder}/{stem}"} | _parsed(ending.lower(), data)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"not a whole tar file: {error}", str(self.file)) from None
        if sample:
            yield sample

    def _list(self) -> list[Any]:
        try:
            with self.file.open() as content:
                return documents.rows(content.read())
        except (ValueError, RecursionError) as error:
            raise DataError(f"not valid JSON: {first_line(error)}", str(self.file)) from None

    def _sheet(self) -> Iterator[Any]:
        try:
            with self.file.open() as content:
                yield from sheets.rows(content.read(), bool(self.names))
        except ValueError as error:
            raise DataError(str(error), str(self.file)) from None
        except DataError as error:
            raise DataError(error.what, str(self.file), error.fix) from None

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


def _cell(row: dict[str, Any], paths: dict[str, list[str]]) -> Any:
    """What a row has at a path, or at each of several, by its name; None where it has nothing."""
    found = {name: functools.reduce(_at, path, row) for name, path in paths.items()}
    return _text.together(found) if len(found) > 1 else next(iter(found.values()))


def _at(value: Any, key: str) -> Any:
    """What a cell has by a key, or a list at a place."""
    if isinstance(value, list):
        return value[int(key)] if key.isdecimal() and int(key) < len(value) else None
    return value.get(key) if isinstance(value, dict) else None


def _listed(chunk: Any) -> Any:
    return chunk.to_pylist() if isinstance(chunk, pa.RecordBatch) else chunk


def batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Rows, `size` at a time."""
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
