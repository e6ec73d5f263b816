"""Quantities as people write them in a job file, parsed once: "50%", "512MiB", "5ms", "256 rows", "3 points"."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_BYTES = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\s*([-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?)\s*([A-Za-z%]*)\s*")


def _parse(value: Any, units: dict[str, float], example: str) -> float:
    quantity = isinstance(value, str | int | float) and not isinstance(value, bool)
    match = _NUMBER.fullmatch(str(value)) if quantity else None  # of an integer too, which may have more digits than a float's largest
    if match is None or match[2] not in units or not math.isfinite(number := float(match[1].replace("_", ""))):
        raise ValueError(f"expected a quantity such as {example}, got {value!r}")
    unit = units[match[2]]
    return number * unit if unit >= 1 else number / round(1 / unit)  # 70 × 0.01 is not 0.7, 70 / 100 is


def fraction(value: Any) -> float:
    """0.5 or "50%" → 0.5."""
    return _parse(value, {"": 1.0, "%": 0.01}, '0.5 or "50%"')


def points(value: Any) -> float:
    """0.03, "3 points" or "3%" → 0.03."""
    return _parse(value, {"": 1.0, "%": 0.01, "point": 0.01, "points": 0.01}, '0.03 or "3 points"')


def seconds(value: Any) -> float:
    """0.005 or "5ms" → 0.005."""
    return _parse(value, {"": 1.0, **_SECONDS}, '"5ms", "30s" or "2h"')


def size(value: Any) -> int:
    """4096 or "512MiB" → bytes."""
    text = value.upper() if isinstance(value, str) else value
    return int(_parse(text, {"": 1.0, **_BYTES}, '"512MiB"'))


def count(value: Any) -> int:
    """256 or "256 rows" → 256."""
    number = _parse(value, {"": 1.0, "row": 1.0, "rows": 1.0, "step": 1.0, "steps": 1.0}, '"256 rows"')
    if number != int(number):
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(number)


def share(value: Any) -> int | float:
    """A count ("1000 rows", 1000, "1000") or a fraction ("20%", 0.2) of rows."""
    if isinstance(value, str) and "row" in value:
        return count(value)
    number = fraction(value)
    return number if number <= 1 or "%" in str(value) else count(value)


def _schema(*examples: Any) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": list(examples)})


Fraction = Annotated[float, BeforeValidator(fraction), Field(ge=0, le=1), _schema("50%", 0.5)]
Points = Annotated[float, BeforeValidator(points), Field(ge=0, le=1), _schema("3 points", 0.03)]
Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0), _schema("5ms", "30s")]
Bytes = Annotated[int, BeforeValidator(size), Field(ge=0), _schema("512MiB")]
Count = Annotated[int, BeforeValidator(count), Field(ge=0), _schema("256 rows", 256)]


def size_text(size: float) -> str:
    """Bytes as people read them: "512 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
