"""Pixels and sounds of prepared rows: written once, in the order in which they were decoded, and read from where they are.

Rows are sorted, split and shuffled with the places of such values in them, some 30 bytes each, instead of the values.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa

PLACE = pa.struct({"file": pa.string(), "at": pa.int64(), "size": pa.int64()})
_ENDING = ".bin"


class Writer:
    """Appends values to a file, which is made for the first of them.

    Args:
        folder: of all blobs.
        name: of the file in it, without its ending.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        self.path, self.name = Path(folder) / f"{name}{_ENDING}", name
        self._file: BinaryIO | None = None
        self._at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def put(self, values: list[Any]) -> pa.Array:
        """The places of values, if they are bytes; or the values themselves. None stays None."""
        if not any(isinstance(value, bytes) for value in values):
            return pa.array(values)
        return pa.array([None if value is None else self._append(value) for value in values], PLACE)

    def _append(self, value: bytes) -> dict[str, Any]:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "wb", buffering=2**20)  # noqa: SIM115 closed on exit
        place = {"file": self.name, "at": self._at, "size": len(value)}
        self._at += self._file.write(value)
        return place


class Reader:
    """Reads values from their places.

    Args:
        folder: of all blobs.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files: dict[str, BinaryIO] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.folder,)

    def values(self, table: pa.Table) -> dict[str, list[Any]]:
        """A table's rows by column, with values in place of their places."""
        rows: dict[str, list[Any]] = table.to_pydict()
        large = [name for name in rows if table[name].type == PLACE]
        if hasattr(os, "posix_fadvise"):  # storage that is far or slow has all of them to fetch at a time, rather than one after the other
            for place in (place for name in large for place in rows[name] if place):
                os.posix_fadvise(self._file(place["file"]), place["at"], place["size"], os.POSIX_FADV_WILLNEED)
        return rows | {name: [None if place is None else self._read(**place) for place in rows[name]] for name in large}

    def _read(self, file: str, at: int, size: int) -> bytes:
        return os.pread(self._file(file), size, at)

    def _file(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = open(self.folder / f"{name}{_ENDING}", "rb", buffering=0)  # noqa: SIM115 closed with the last reference
        return self._files[name].fileno()
