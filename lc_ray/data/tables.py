"""CSV and TSV: tables as text, whose cells commas, tabs, semicolons or bars separate, or blanks where given names tell how many there are."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv

from lc_ray.data.files import File
from lc_ray.errors import DataError
from lc_ray.modalities import _text

_MARKS, _RARE = ",;\t|", "\t|"  # the latter are in no text
BLOCK = 2**24  # bytes that are read at a time; a row must fit
_TAIL, _FIRST = 64, 20  # bytes; rows by which marks are told
_BYTES = "latin-1"  # in which each byte is a character


class Table:
    """A file of such rows.

    Args:
        file: its kind says which mark it should have; a text's is a tab, too.
        names: of the columns, if it has no header.

    Attributes:
        ragged: row number → what is wrong with it, of rows that were skipped.
    """

    def __init__(self, file: File, names: Sequence[str] | None) -> None:
        self.file, self.names, self.ragged = file, list(names) if names else None, dict[int, str]()
        self._open = False  # whether the last of them ends within a quote

    def first(self, mark: str) -> list[str]:
        """The first line that is not empty, as cells that a mark separates; names may have line breaks, and surrogates for what is not UTF-8.

        Raises:
            ValueError: there is none, or it is UTF-16 that does not say so.
        """
        with self.file.open() as content:
            lines = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")
            cells = next((row for row in csv.reader(lines, delimiter=mark) if row), None)
        if cells is None:
            raise ValueError("the file is empty")
        if any("\0" in cell for cell in cells):
            raise ValueError("the header is not valid UTF-8; save the file as UTF-8")
        return cells

    @functools.cached_property
    def mark(self) -> str:
        """What separates cells: what its kind says, or another one if the first line has one cell by that.

        Where names are given, one by which the first rows have as many cells: commas of a text may by chance be as many in the very first.
        """
        own = "," if self.file.kind == "csv" else "\t"
        if self.names:
            marks: tuple[str, ...] = (own, *_RARE, *_MARKS, " ")  # the last of lists such as the Oxford pets'
            found = {mark: self._lengths(mark) for mark in marks}
            wanted = len(self.names)
            all_fit = [mark for mark, lengths in found.items() if {*lengths} == {wanted} != {1}]
            first_fits = [mark for mark, lengths in found.items() if lengths[:1] == [wanted] != [1]]
            return next(iter((*all_fit, *first_fits, own)))
        if (cells := len(self.first(own))) > 1:
            return own
        counts = {own: cells} | {mark: len(self.first(mark)) for mark in _MARKS if mark != own}
        return max(counts, key=lambda mark: counts[mark])

    @functools.cached_property
    def _header(self) -> list[str]:
        return self.first(self.mark)

    def _lengths(self, mark: str) -> list[int]:
        """How many cells the first rows have."""
        found: list[int] = []
        with self.file.open() as content, contextlib.suppress(csv.Error):  # a cell may be larger than what is read here
            lines = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")
            for row in itertools.islice((row for row in csv.reader(lines, delimiter=mark) if row), _FIRST):
                found.append(len(row))
        return found

    def columns(self) -> list[str]:
        """Names of the columns, without blanks around them.

        Raises:
            DataError: names were given, and the file has them itself.
            ValueError: see `first`.
        """
        if self._header == self.names:
            raise DataError("its first row has the names of the columns", str(self.file), "leave out `data.columns`, or that row")
        return self.names or [_text.unicode(name.encode("utf-8", "surrogateescape"), "windows-1252").strip() for name in self._header]

    def chunks(self, wanted: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """The wanted columns of up to `size` rows, as bytes, without rows of another length than the first.

        Raises:
            DataError: the file ends within a quote.
        """
        parse = pyarrow.csv.ParseOptions(delimiter=self.mark, newlines_in_values=True, invalid_row_handler=self._skip)
        if self.mark != "," and not self._quoted:
            parse.quote_char = False
        encoding = "utf8" if self._unicode else _BYTES
        read = pyarrow.csv.ReadOptions(column_names=self.names, use_threads=False, block_size=BLOCK, encoding=encoding)
        header = [name.encode("utf-8", "surrogateescape").decode(encoding) for name in self._header]
        written = dict(zip(self.columns(), self.names or header, strict=True))
        types = {written[name]: pa.binary() for name in wanted}
        convert = pyarrow.csv.ConvertOptions(include_columns=list(types), column_types=types, strings_can_be_null=False)
        with self.file.open() as content:
            batch = None
            if content.peek(3)[:3] == codecs.BOM_UTF8:  # type: ignore[attr-defined]
                content.read(3)
            for batch in pyarrow.csv.open_csv(content, read_options=read, parse_options=parse, convert_options=convert):
                batch = pa.record_batch([_as_written(cells, encoding) for cells in batch.columns], list(wanted))
                yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))
        if self._open or (batch and any(self._is_rest(cell) for cell in batch.slice(batch.num_rows - 1).to_pylist()[0].values())):
            raise DataError("its last row's quote is never closed", str(self.file), "close it; a quote in a text is written twice")

    def _skip(self, row: Any) -> str:
        """Note a row of another length than the header's, and go on with the next."""
        header = 0 if self.names else 1
        self._open = "\n" in row.text.strip() and row.text.count('"') % 2 == 1
        self.ragged[row.number - 1 - header] = f"{row.actual_columns} fields where the header has {row.expected_columns}"
        return "skip"

    @functools.cached_property
    def _unicode(self) -> bool:
        """Whether all of it is UTF-8. Else it is read as if each byte were a character: pyarrow tells of rows of another length by their text."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            with self.file.open() as content:
                while block := content.read(BLOCK):
                    decoder.decode(block)
        except UnicodeDecodeError:
            return False
        return True

    @functools.cached_property
    def _quoted(self) -> bool:
        """Whether quotes enclose cells. In files of GLUE, Common Voice and LJSpeech they are part of texts, which shows where a cell begins with one
        and does not end with its other: read as CSV, all up to the next one would be that cell.
        """
        within, mark = False, self.mark.encode()
        with self.file.open() as lines:
            for line in lines:
                for cell in line.rstrip(b"\r\n").split(mark) if b'"' in line else ():
                    if within or cell.startswith(b'"'):
                        rest = cell[not within :].replace(b'""', b"")
                        if b'"' in rest[:-1]:
                            return False
                        within = not rest.endswith(b'"')
        return not within

    def _is_rest(self, cell: Any) -> bool:
        """Whether a cell of several lines goes on to the very end of its file, where a quote that closes it should be."""
        if not cell or b"\n" not in cell:
            return False
        end = b""
        with self.file.open() as content:
            while block := content.read(BLOCK):
                end = (end + block)[-_TAIL:]
        end, opened = end.rstrip(b"\r\n"), (b'"' + cell).rstrip(b"\r\n")
        shared = min(len(opened), len(end))
        return bool(opened[-shared:] == end[-shared:])


def _as_written(cells: pa.Array, encoding: str) -> pa.Array:
    """Cells with the bytes that their file has."""
    return cells if encoding == "utf8" else pa.array([cell.decode().encode(encoding) for cell in cells.to_pylist()], pa.binary())
