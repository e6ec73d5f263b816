"""CSV and TSV: tables as text, whose cells commas, tabs, semicolons or bars separate, or blanks where given names tell how many there are."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import re
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
_TOLD = re.compile(r"sep=(.)\r?\n")
_SINGLE = re.compile(r"'.*'")
_ESCAPED = rb'(?:^|[%b\n])"[^"]*\\"(?!["%b\r\n]|$)'  # a quote within a cell, where a quote that is not doubled should end it


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
        self._rows = functools.cache(self._begin)  # of a remote file each reading takes its time

    def _begin(self, mark: str, quote: str = '"') -> list[tuple[int, list[str]]]:
        """The first rows that are not empty, as cells that a mark separates, and how many lines come before each.

        Names may have line breaks, and surrogates for what is not UTF-8.
        """
        found: list[tuple[int, list[str]]] = []
        csv.field_size_limit(max(csv.field_size_limit(), BLOCK))  # Python's, of characters, is less than a long text has
        with self.file.open() as content:
            rows = csv.reader(io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline=""), delimiter=mark, quotechar=quote)
            before = 0
            try:
                while len(found) < _FIRST and (row := next(rows, None)) is not None:
                    found += [(before, row)] if row else []
                    before = rows.line_num
            except (csv.Error, EOFError):  # a cell may be larger than what is read here, and a file cut off
                if not found:
                    raise
        return found

    def _quote(self, mark: str) -> str:
        """What encloses cells: single quotes where names of columns are in such, or where rows are as long as each other by these alone."""
        double, single = self._rows(mark), self._rows(mark, "'")
        named = bool(double) and all(_SINGLE.fullmatch(cell) for cell in double[0][1])
        begun = any(cell.startswith("'") for _, cells in double for cell in cells)
        return "'" if named or (begun and len(_lengths(single)) == 1 < min(len(_lengths(double)), *_lengths(single))) else '"'

    def _head(self, mark: str) -> tuple[int, list[str]]:
        """How many lines come before the header, and its cells: those of the first row, or, after a title of several words, or of several such
        lines, of the first row of several cells where all others have as many.

        Raises:
            ValueError: there is none, or it is UTF-16 that does not say so.
        """
        rows = self._rows(mark, self._quote(mark))[bool(self._told) :]
        if not rows:
            raise ValueError("the file is empty")
        if any("\0" in cell for cell in rows[0][1]):
            raise ValueError("the header is not valid UTF-8; save the file as UTF-8")
        first = next((place for place, (_, cells) in enumerate(rows) if sum(bool(cell.strip()) for cell in cells) > 1), 0)
        titled = all(len(cells[0].split()) > 1 for _, cells in rows[:first]) and len(_lengths(rows[first:])) == 1 and 2 * first < len(rows)
        return rows[first if titled and not self.names else 0]

    @functools.cached_property
    def _told(self) -> str | None:
        """The mark, where a line before the header says it, as Excel reads it: `sep=;`."""
        with self.file.open() as content:
            found = _TOLD.match(content.readline(_TAIL).decode("utf-8-sig", "replace"))
        return found[1] if found else None

    @functools.cached_property
    def mark(self) -> str:
        """What separates cells: what its kind says, or another one if the first line has one cell by that.

        Where names are given, one by which the first rows have as many cells: commas of a text may by chance be as many in the very first.
        """
        own = "," if self.file.kind == "csv" else "\t"
        if self._told:
            return self._told
        if self.names:
            marks: tuple[str, ...] = (own, *_RARE, *_MARKS, "@", " ")  # the last of lists as the Financial PhraseBank and the Oxford pets
            found = {mark: [len(cells) for _, cells in self._rows(mark)] for mark in marks}
            wanted = len(self.names)
            all_fit = [mark for mark, lengths in found.items() if {*lengths} == {wanted} != {1}]
            first_fits = [mark for mark, lengths in found.items() if lengths[:1] == [wanted] != [1]]
            return next(iter((*all_fit, *first_fits, own)))
        if (cells := len(self._head(own)[1])) > 1:
            return own
        counts = {own: cells} | {mark: len(self._head(mark)[1]) for mark in _MARKS if mark != own}
        return max(counts, key=lambda mark: counts[mark])

    @functools.cached_property
    def _header(self) -> list[str]:
        return self._head(self.mark)[1]

    @functools.cached_property
    def _before(self) -> int:
        """Lines before the header, but empty ones, or those before the first row."""
        header, first = self._head(self.mark)[0], self._rows(self.mark)[0][0]
        return header if header > first else 0

    def columns(self) -> list[str]:
        """Names of the columns, without blanks around them.

        Raises:
            DataError: names were given, and the file has them itself.
            ValueError: see `_head`.
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
        parse.quote_char = self._quote(self.mark)
        if self._escaped:
            parse.escape_char = "\\"
        elif self.mark != "," and not self._quoted:
            parse.quote_char = False
        encoding = "utf8" if self._unicode else _BYTES
        read = pyarrow.csv.ReadOptions(column_names=self.names, skip_rows=self._before, use_threads=False, block_size=BLOCK, encoding=encoding)
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
        header = self._before + (0 if self.names else 1)
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

    @functools.cached_property
    def _escaped(self) -> bool:
        """Whether a backslash stands before a quote within a cell, as MySQL and Spark write it, and not a quote."""
        mark = re.escape(self.mark.encode())
        with self.file.open() as content:
            return re.search(_ESCAPED % (mark, mark), content.read(BLOCK)) is not None

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


def _lengths(rows: list[tuple[int, list[str]]]) -> set[int]:
    """How many cells rows have."""
    return {len(cells) for _, cells in rows}


def _as_written(cells: pa.Array, encoding: str) -> pa.Array:
    """Cells with the bytes that their file has."""
    return cells if encoding == "utf8" else pa.array([cell.decode().encode(encoding) for cell in cells.to_pylist()], pa.binary())
