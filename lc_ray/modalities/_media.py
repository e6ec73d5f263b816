"""Bytes of a picture or a sound, wherever a cell says they are."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import pyarrow.fs
from PIL import Image

from lc_ray.errors import DataError, first_line
from lc_ray.modalities import _text
from lc_ray.storage import joined, system_of

_LARGEST = 256 * 2**20  # bytes
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values for an image that is stored turned by 90 degrees
_START = 120  # characters that tell base64 from a name: no path is as long without a dot
_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+=*\s*")
_SIGNS = (b"data:", b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"UklGR", b"T2dnU", b"ZkxhQ")  # what base64 of PNG, JPEG, GIF, RIFF, Ogg and FLAC begins with
CELL = {"bytes", "path", "b64", "array", "sampling_rate"}  # keys of one that is a dict
_left: ContextVar[list[int] | None] = ContextVar("left", default=None)


def schema(media: str) -> dict[str, Any]:
    """JSON Schema of a file in a request.

    Args:
        media: "image" or "audio".
    """
    told = 'base64, with or without a data URI\'s beginning, alone or as {"b64": ...}, or a URL of a host that the endpoint allows'
    text = {"type": "string", "minLength": 1, "contentEncoding": "base64", "contentMediaType": f"{media}/*"}
    wrapped = {"properties": {"b64": text}, "required": ["b64"]}
    return {**text, "type": ["string", "object"], **wrapped, "description": told}


@contextmanager
def limited(left: list[int]) -> Iterator[None]:
    """Within it no more is decoded than is left.

    Args:
        left: pixels and samples, in a list of one number, which becomes less with each file, and negative with the first that is too large.
    """
    token = _left.set(left)
    try:
        yield
    finally:
        _left.reset(token)


def spend(values: int) -> None:
    """Take the pixels or samples of a file, before it is decoded, from those that are left.

    Raises:
        DataError: there are not as many.
    """
    if (left := _left.get()) is not None:
        left[0] -= values
        if left[0] < 0:
            raise DataError("larger than what is left to the request")


def lies(image: Image.Image) -> bool:
    """Whether an image is stored turned by 90 degrees, so that its width is the height of what is shown."""
    return image.getexif().get(_ORIENTATION, 1) in _LYING


def fetch(value: Any, folder: Path | str | None, path: str = "{}") -> bytes:
    """The bytes that a cell holds or names.

    Args:
        value: bytes; a dict of Hugging Face datasets, `{"bytes": ..., "path": ...}`; a path or URI (s3://, gs://, hdfs://, file://); or
            base64, with or without `data:...;base64,` before it, or as TensorFlow Serving and Vertex AI have it, `{"b64": ...}`.
        folder: in which relative paths are looked for. None opens no file at all.
        path: what a name becomes, with the name in place of {}.

    Raises:
        DataError: null, not found, not base64, empty, or too large.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, dict) and isinstance(value.get("b64"), str):
        value = _decoded(value["b64"])
    if _text.missing(value):
        raise DataError("null")
    if isinstance(value, bytes) and folder is not None and (_is_name(value) or _is_encoded(value)):
        value = value.decode("utf-8")  # a cell of a CSV file
    if isinstance(value, str) and not value.strip():
        raise DataError("empty")
    if isinstance(value, int) and path != "{}":
        value = str(value)
    if isinstance(value, str):
        encoded = folder is None or (path == "{}" and _is_encoded(value) and located(value, folder) is None)
        value = _decoded(value) if encoded else _read(path.replace("{}", value), cast("Path | str", folder))
    if isinstance(value, list | tuple) and value and isinstance(value[0], int | float):
        raise DataError("numbers alone: of samples give {array, sampling_rate}, else bytes, a path or a URI")
    if not isinstance(value, bytes):
        raise DataError(f"not bytes, a path or a URI but {type(value).__name__}")
    if not value:
        raise DataError("empty")
    if len(value) > _LARGEST:
        raise DataError(f"larger than {_LARGEST >> 20} MiB")
    return value


def _is_name(value: bytes) -> bool:
    if len(value) >= 4096 or value[:4] in (b"RIFF", b"OggS", b"fLaC", b"GIF8"):
        return False
    try:
        return value.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _is_encoded(value: str | bytes) -> bool:
    """Whether a cell is base64 rather than a name: it begins as such, or is long and has no dot."""
    start = value[:_START] if isinstance(value, bytes) else value[:_START].encode("utf-8", "replace")
    return start.startswith(b"data:") or ((start.startswith(_SIGNS) or len(start) == _START) and _BASE64.fullmatch(start) is not None)


def _decoded(text: str) -> bytes:
    try:
        content = text.partition("base64,")[2] if text.startswith("data:") else text
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("not base64; of a file give the bytes, as they are or in base64") from None


def _read(name: str, folder: Path | str) -> bytes:
    try:
        if "://" not in name and "://" in str(folder):
            name = joined(str(folder), name)
        if "://" not in name:
            if (path := located(name, folder)) is None:
                raise DataError("no such file")
            with open(path, "rb", buffering=0) as file:
                return _whole(file, path.stat().st_size)
        system, place = system_of(name)
        if system.get_file_info(place).type != pyarrow.fs.FileType.File:
            raise DataError("no such file")
        with system.open_input_file(place) as file:
            return _whole(file, file.size())
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError("can't be read: " + first_line(error).replace(name, "…")) from None


def located(name: str, folder: Path | str) -> Path | None:
    """The file of this machine that a cell names, if it is there, in that spelling or another system's."""
    for written in _spellings(name):
        path = os.path.join(folder, os.path.expanduser(written))
        if os.path.isfile(path):  # of Path, a name that is too long for one is an error
            return Path(path)
    return None


def _spellings(name: str) -> Iterator[str]:
    """Windows' paths have backslashes, a Mac's folders decomposed letters; exports quote blanks, or add some; cameras write endings in capitals."""
    yield name
    name = name.strip().replace("\\", "/")
    yield from (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name), urllib.parse.unquote(name))
    stem, dot, ending = name.rpartition(".")
    yield stem + dot + ending.swapcase()


def _whole(file: Any, size: int) -> bytes:
    if size > _LARGEST:
        raise DataError(f"larger than {_LARGEST >> 20} MiB")
    return bytes(file.read(size))
