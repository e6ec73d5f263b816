"""Pictures that are no files: PIL's, and those given as numbers, by rows or, of a grey square, one level after the other, as Kaggle's."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from PIL import Image

from lc_ray.errors import DataError
from lc_ray.modalities import _text

_LEVELS = re.compile(r"\s*(\[[\[\s]*\d|\d+([\s,]+\d+){15})")  # how a list begins, and enough numbers in a row for no name
_START = 200  # characters


def picture(value: Any) -> Image.Image | None:
    """The picture that a cell of numbers is, or a copy of PIL's; None where it has something else.

    Colours come last, or first as PyTorch has them. Levels are whole numbers up to 255, or fractions of 1.

    Args:
        value: a list, an array, a text with blanks or commas between numbers, or PIL's.

    Raises:
        DataError: these are no picture's, or PIL's file is damaged.
    """
    if isinstance(value, Image.Image):
        try:
            return value.copy()
        except (OSError, SyntaxError, ValueError) as error:  # its file is read only now
            raise DataError(f"damaged image: {error}") from None
    if isinstance(value, bytes | str) and _is_written(value):
        value = _text.listed(value)
        value = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    try:
        levels = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DataError("a list that is not one of a picture's levels") from None
    if levels.ndim == 1 and (side := math.isqrt(levels.size)) ** 2 == levels.size:
        levels = levels.reshape(side, side)
    if levels.ndim == 3 and levels.shape[2] not in (1, 3, 4):
        levels = levels.transpose(1, 2, 0)
    if levels.ndim not in (2, 3) or levels.shape[2:] not in ((), (1,), (3,), (4,)) or not levels.size:
        shape = " × ".join(map(str, levels.shape))
        raise DataError(f"{shape} numbers are no picture: of one give height × width, or height × width × 3")
    if not (levels.min() >= 0 and levels.max() <= 255):
        raise DataError("numbers that are no picture's levels, from 0 to 255 or fractions of 1")
    bright = levels * 255 if levels.max() <= 1 else levels
    return Image.fromarray((bright[:, :, 0] if levels.shape[2:] == (1,) else bright).round().astype(np.uint8))


def _is_written(value: bytes | str) -> bool:
    start, end = value[:_START], value[-1:]
    start, end = (part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in (start, end))
    return _LEVELS.match(start) is not None and (end == "]" or not start.lstrip().startswith("["))
