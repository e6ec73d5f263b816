"""Tensors of the Open Inference Protocol: in JSON, or as bytes after it (the binary tensor data extension)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from lc_ray.modalities import _text
from lc_ray.serve.http import HttpError

_TYPES = {
    **{"BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4"},
    **{"INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"},
}
DATATYPES = ["BYTES", *_TYPES]
_AXES = 8


@dataclass(frozen=True)
class Tensor:
    """Values in row-major order.

    Attributes:
        values: bytes or strings if the datatype is BYTES, else numbers.
        parameters: of an output, for whoever reads it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]
    parameters: dict[str, Any] | None = None


def malformed(message: str, where: str = "inputs") -> HttpError:
    """The answer to a request that the protocol does not allow."""
    return HttpError(400, "malformed_request", message, where)


def is_text(value: Any) -> bool:
    """Whether a value of a request's JSON is a text that an answer may repeat: JSON can write half of a surrogate pair, UTF-8 can't."""
    return isinstance(value, str) and not _text.HALF.search(value)


def option(content: dict[str, Any], name: str) -> Any:
    """A parameter of a request, an input or an output; None if it has none."""
    parameters = content.get("parameters")
    return parameters.get(name) if isinstance(parameters, dict) else None


def read(given: Any, most: int, binary: bytes) -> list[Tensor]:
    """The tensors of a request.

    Args:
        given: its `inputs`.
        most: elements that one may have.
        binary: what follows its JSON.

    Raises:
        HttpError: 400, they are not as the protocol has them; 413, one is too long.
    """
    if not isinstance(given, list) or not given:
        raise malformed("expected a list of tensors")
    found: dict[str, Tensor] = {}
    start = 0
    for one in given:
        tensor, start = _tensor(one, most, binary, start)
        if tensor.name in found:
            raise malformed("this input is there twice", f"inputs.{tensor.name}")
        found[tensor.name] = tensor
    if start != len(binary):
        raise malformed(f"{len(binary)} bytes follow the JSON, the inputs have {start}")
    return list(found.values())


def _tensor(one: Any, most: int, binary: bytes, start: int) -> tuple[Tensor, int]:
    """A tensor, and where in `binary` the next begins."""
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        raise malformed("every tensor has a name")
    name, datatype, shape = one["name"], one.get("datatype"), one.get("shape")
    where = f"inputs.{name}"
    if datatype not in DATATYPES:
        raise malformed(f"datatype '{datatype}' is not one of {', '.join(DATATYPES)}", where)
    if not isinstance(shape, list) or len(shape) > _AXES or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise malformed(f"shape is a list of whole numbers, {_AXES} at most", where)
    count = math.prod(min(n, most + 1) for n in shape)  # bounded: an axis may have thousands of digits
    if count > most:
        raise HttpError(413, "too_many_instances", f"too many instances; a request may have {most}", where)
    size = option(one, "binary_data_size")
    if size is None:
        values, end = _listed(one.get("data"), datatype, count, where), start
    else:
        if type(size) is not int or not 0 <= size <= len(binary) - start:
            raise malformed("binary_data_size is more than there is", where)
        end = start + size
        values = _unpacked(binary[start:end], datatype, where)
    if len(values) != count:
        raise malformed(f"shape {shape} has {count} elements, the data {len(values)}", where)
    return Tensor(name, datatype, tuple(shape), values), end


def _listed(data: Any, datatype: str, count: int, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise malformed("data is a list, or follows the JSON with binary_data_size", where)
    while len(data) <= max(count, 1) and any(isinstance(value, list) for value in data):  # more than that is refused anyway, however deep it is
        data = [inner for value in data for inner in (value if isinstance(value, list) else [value])]
    whole: Any = np.iinfo(_TYPES[datatype]) if "INT" in datatype else None
    wanted: tuple[type, ...] = (str,) if datatype == "BYTES" else (bool,) if datatype == "BOOL" else (int,) if whole else (int, float)
    for value in data:
        if not isinstance(value, wanted) or (datatype != "BOOL" and isinstance(value, bool)):
            raise malformed(f"data of {datatype} holds {type(value).__name__}", where)
        if whole and not whole.min <= value <= whole.max:
            raise malformed(f"data of {datatype} is from {whole.min} to {whole.max}", where)
    values: list[Any] = data
    return values


def _unpacked(data: bytes, datatype: str, where: str) -> list[Any]:
    if datatype != "BYTES":
        kind = np.dtype(_TYPES[datatype])
        if len(data) % kind.itemsize:
            raise malformed(f"{len(data)} bytes are not a whole number of {datatype}", where)
        found: list[Any] = np.frombuffer(data, kind).tolist()
        return found
    values, at = [], 0
    while at < len(data):
        if at + 4 > len(data) or (end := at + 4 + struct.unpack_from("<I", data, at)[0]) > len(data):
            raise malformed("an element of BYTES is cut off", where)
        values.append(data[at + 4 : end])
        at = end
    return values


def packed(tensor: Tensor) -> bytes:
    """A tensor's values as bytes."""
    if tensor.datatype != "BYTES":
        return np.asarray(tensor.values, _TYPES[tensor.datatype]).tobytes()
    coded = [value if isinstance(value, bytes) else value.encode() for value in tensor.values]
    return b"".join(struct.pack("<I", len(value)) + value for value in coded)
