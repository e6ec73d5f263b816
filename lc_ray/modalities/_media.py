"""Bytes of a picture or a sound, wherever a cell says they are."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs

from lc_ray.errors import DataError

_LARGEST = 256 * 2**20  # bytes


def missing(value: Any) -> bool:
    """Whether a cell is null."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def fetch(value: Any, folder: Path | str | None, path: str = "{}") -> bytes:
    """The bytes that a cell holds or names.

    Args:
        value: bytes; a dict of Hugging Face datasets, `{"bytes": ..., "path": ...}`; a path or URI (s3://, gs://, hdfs://, file://); or, where
            there is no folder, base64, with or without `data:...;base64,` before it.
        folder: in which relative paths are looked for. None opens no file at all.
        path: what a name becomes, with the name in place of {}.

    Raises:
        DataError: null, not found, not base64, empty, or too large.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if missing(value):
        raise DataError("null")
    if isinstance(value, bytes) and folder is not None and _is_name(value):
        value = value.decode("utf-8", "replace")  # a cell of a CSV file
    if isinstance(value, int) and path != "{}":
        value = str(value)
    if isinstance(value, str):
        value = _decoded(value) if folder is None or value.startswith("data:") else _read(path.replace("{}", value), folder)
    if not isinstance(value, bytes):
        raise DataError(f"not bytes, a path or a URI but {type(value).__name__}")
    if not value:
        raise DataError("empty")
    if len(value) > _LARGEST:
        raise DataError(f"larger than {_LARGEST >> 20} MiB")
    return value


def _is_name(value: bytes) -> bool:
    return len(value) < 4096 and b"\0" not in value and value[:4] not in (b"RIFF", b"OggS", b"fLaC", b"GIF8") and value.isascii()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("not base64") from None


def _read(name: str, folder: Path | str) -> bytes:
    try:
        if "://" not in name and "://" in str(folder):
            name = f"{folder}/{name}"
        if "://" in name:
            system, path = pyarrow.fs.FileSystem.from_uri(name)
        else:
            system, path = pyarrow.fs.LocalFileSystem(), str(Path(folder) / Path(name).expanduser())
        if system.get_file_info(path).type != pyarrow.fs.FileType.File:
            raise DataError("no such file")
        with system.open_input_file(path) as file:
            if file.size() > _LARGEST:
                raise DataError(f"larger than {_LARGEST >> 20} MiB")
            return bytes(file.read())
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError("can't be read: " + str(error).splitlines()[0].replace(name, "…")) from None
