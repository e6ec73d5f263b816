"""Pixels and sounds of prepared rows: written once, in the order in which they were decoded, and read from where they are.

Rows are sorted, split and shuffled with the places of such values in them, some 30 bytes each, instead of the values.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from lc_ray.storage import StoragePath

PLACE = pa.struct({"file": pa.string(), "at": pa.int64(), "size": pa.int64()})
_ENDING = ".bin"
_READERS = 32  # requests to a bucket at a time: each takes long, and few bytes


class Writer:
    """Appends values to a file, which is made for the first of them.

    Args:
        folder: of all blobs.
        name: of the file in it, without its ending.
    """

    def __init__(self, folder: StoragePath, name: str) -> None:
        self.path, self.name = folder / f"{name}{_ENDING}", name
        self._file: pa.NativeFile | None = None
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
            self._file = self.path.create(buffer=2**20)
        place = {"file": self.name, "at": self._at, "size": len(value)}
        self._file.write(value)
        self._at += len(value)
        return place


class Reader:
    """Reads values from their places.

    Args:
        folder: of all blobs.
    """

    def __init__(self, folder: StoragePath) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.folder,)

    def values(self, table: pa.Table) -> dict[str, list[Any]]:
        """A table's rows by column, with values in place of their places."""
        rows: dict[str, list[Any]] = table.to_pydict()
        large = [name for name in rows if table[name].type == PLACE]
        read = self._fetched if self.folder.remote else self._read
        return rows | dict(zip(large, read([rows[name] for name in large]), strict=True))

    def _read(self, columns: list[list[Any]]) -> list[list[Any]]:
        if hasattr(os, "posix_fadvise"):  # storage that is far or slow has all of them to fetch at a time, rather than one after the other
            for place in (place for places in columns for place in places if place):
                os.posix_fadvise(self._descriptor(place["file"]), place["at"], place["size"], os.POSIX_FADV_WILLNEED)
        return [[place and os.pread(self._descriptor(place["file"]), place["size"], place["at"]) for place in places] for places in columns]

    def _descriptor(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = open(str(self.folder / f"{name}{_ENDING}"), "rb", buffering=0)  # noqa: SIM115 closed with the last reference
        return int(self._files[name].fileno())

    def _fetched(self, columns: list[list[Any]]) -> list[list[Any]]:
        """The same of a bucket."""
        self._threads = self._threads or ThreadPoolExecutor(_READERS)
        new = {place["file"] for places in columns for place in places if place} - self._files.keys()
        self._files |= zip(new, self._threads.map(lambda name: (self.folder / f"{name}{_ENDING}").open(), new), strict=True)
        return [list(self._threads.map(self._request, places)) for places in columns]

    def _request(self, place: dict[str, Any] | None) -> bytes | None:
        return bytes(self._files[place["file"]].read_at(place["size"], place["at"])) if place else None
