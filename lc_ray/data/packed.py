"""Files that are compressed: by gzip, bzip2, xz or Zstandard, or a zip file that holds one file, as Kaggle's do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pyarrow

from lc_ray.errors import DataError

ZIP = ".zip"
BROKEN = (zipfile.BadZipFile, lzma.LZMAError)  # what a damaged one raises besides an OSError or EOFError
_NOTES = re.compile(r"(^__MACOSX/|(^|/)\.|/$)")  # names of folders, and of what nobody has put there


def _gzip(content: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=content)


def _zstandard(content: BinaryIO) -> Any:
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(content, mode="r"), "zstd"))  # type: ignore[arg-type]


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {".gz": _gzip, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile, ".zst": _zstandard}


def _ending(name: str) -> str:
    return next((ending for ending in (*_OPENERS, ZIP) if name.lower().endswith(ending)), "")


def bare(name: str) -> str:
    """A file's name without the ending that says how it is compressed."""
    return name[: len(name) - len(_ending(name))]


def unpacked(content: BinaryIO, path: str) -> io.BufferedReader:
    """What a file at a path or URI holds.

    Raises:
        DataError: a zip file of several files, of none, or of one that is encrypted.
    """
    if (ending := _ending(path)) == ZIP:
        archive = zipfile.ZipFile(content)
        try:
            return cast(io.BufferedReader, archive.open(_only(archive, path)))
        except RuntimeError as error:  # encrypted, or compressed in a way that is not known
            raise DataError(f"can't be read: {error}", path, "unpack it") from None
    return cast(io.BufferedReader, _OPENERS[ending](content) if ending else content)


def within(content: BinaryIO, path: str) -> str:
    """The name of a zip file's only file. Raises as `unpacked`."""
    with zipfile.ZipFile(content) as archive:
        return _only(archive, path)


def _only(archive: zipfile.ZipFile, path: str) -> str:
    names = [name for name in archive.namelist() if not _NOTES.search(name)]
    if len(names) != 1:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise DataError(f"{len(names)} files are in it{': ' if names else ''}{shown}; of a zip file one is read", path, "unpack it")
    return names[0]
