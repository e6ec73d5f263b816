"""A table's cell: a number, a date or a category. Numbers are standardised by what training collects; categories share an embedding by hash."""

from __future__ import annotations

import datetime
import math
import re
import zlib
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_ray.errors import DataError
from lc_ray.modalities import _text
from lc_ray.spec import InputSpec

_ROWS, _WIDTH = 256, 64  # of a table of vectors, of which a column has two
_BUCKETS = _ROWS**2  # of categories; 0 is for numbers
_LEAST, _FARTHEST = 1e-12, 10.0  # variance that counts; standard deviations from the mean, beyond which values are alike
_DATE, _DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"), 86400  # how ISO 8601 begins one; seconds


class Modality:
    """One column of numbers or categories.

    Args:
        spec: the column.
        source: not needed.
    """

    TYPE = pa.string()
    SCHEMA: ClassVar[dict[str, Any]] = {"type": ["number", "string", "boolean"], "minLength": 1, "description": "a number or a category"}
    example = 0

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        self.spec = spec

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> str | None:
        """A cell as the text of a number, a date or a category's name; None for a written NaN, if a row may lack it.

        Raises:
            DataError: null, empty, infinite, not UTF-8, neither a number nor a text, or a number whose thousands are separated by commas: it
                would be a category, where those below a thousand are numbers.
        """
        if isinstance(value, str | bytes):
            value = _text.unicode(value, errors)
        value = value.item() if isinstance(value, np.generic) else value  # of NumPy's numbers, float64 alone is one of Python's
        if _text.absent(value):
            raise DataError("null")
        if not isinstance(value, str | int | float | bool | Decimal | datetime.date):
            raise DataError(f"neither a number nor a text but {type(value).__name__}")
        if (number := _number(str(value))) is not None and not math.isfinite(number):
            if math.isnan(number) and self.spec.optional:
                return None
            raise DataError("null" if math.isnan(number) else "not a finite number")
        text = str(value).strip()
        if _text.GROUPED.fullmatch(text):
            raise DataError("a number with commas; write it without")
        return text.capitalize() if text.lower() in ("true", "false") else text  # a table writes true, and JSON's true is True

    def prepare(self, values: list[str | None]) -> dict[str, list[Any]]:
        """The cell, its number (of a date, days; 0 if it has none) and its category (0 if it is a number; a missing one is as one without a name)."""
        numbers = [_number(value) if value is not None else None for value in values]
        categories = [0 if n is not None else 1 + zlib.crc32((v or "").encode()) % (_BUCKETS - 1) for v, n in zip(values, numbers, strict=True)]
        return {"cell": values, "number": [n or 0.0 for n in numbers], "category": categories}

    def sizes(self, columns: dict[str, list[Any]]) -> list[int]:
        """All cells cost the same."""
        return [0] * len(columns["cell"])

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`number` (batch,), float32, and `category` (batch,)."""
        number = torch.tensor(columns["number"], dtype=torch.float64).clamp(-1e30, 1e30).float()
        return {"number": number, "category": torch.tensor(columns["category"])}

    def augment(self, tensors: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Cells are left as they are."""
        return tensors

    def show(self, parts: dict[str, Any]) -> Any:
        """The cell."""
        return parts["cell"]

    def measure(self, parts: dict[str, Any]) -> dict[str, float | str]:
        """The number or category."""
        return {"value": parts["cell"] if parts["category"] else parts["number"]}

    def save(self, folder: Path) -> None:
        """Nothing is needed."""
        folder.mkdir(parents=True, exist_ok=True)


class Standardise(nn.BatchNorm1d):
    """Standardises by the statistics of all numbers seen in training, in training too: batches may be few, or of one row."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self) -> None:
        super().__init__(2, eps=_LEAST, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, 2) → (batch, 2)."""
        return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)

    def see(self, x: Tensor) -> None:
        """Merge a batch's statistics with those so far (Chan et al. 1979), each batch weighing the same; x (numbers, 2) may be none."""
        if not len(x):
            return
        x = x.detach().double()
        self.num_batches_tracked += 1
        part = 1 / self.num_batches_tracked.double()
        apart = x.mean(0) - self.running_mean
        self.running_var.copy_(self.running_var * (1 - part) + (x.var(0, correction=0) + apart**2 * (1 - part)) * part)
        self.running_mean.copy_(self.running_mean + apart * part)


class Categories(nn.Module):
    """A vector for each category, the product of two, so that hundreds of columns are no larger than a language model.

    The rows of the two tables are the quotient and the remainder of the category (Shi et al. 2020, arXiv:1909.02107).
    """

    def __init__(self) -> None:
        super().__init__()
        self.quotient, self.remainder = nn.Embedding(_ROWS, _WIDTH), nn.Embedding(_ROWS, _WIDTH)

    def forward(self, category: Tensor) -> Tensor:
        """category (batch,) → (batch, width)."""
        product: Tensor = self.quotient(category // _ROWS) * self.remainder(category % _ROWS)
        return product


class Encoder(nn.Module):
    """One position per cell: the number and its signed logarithm, standardised, or the category's vector."""

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardise()
        self.number = nn.Linear(2, _WIDTH)
        self.category = Categories()
        self.out = nn.Linear(_WIDTH, _WIDTH)

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str) -> Self:
        """A new one: there is nothing to start from."""
        return cls()

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded."""
        return cls()

    exact = True  # not quantized: in int8 the farthest numbers would be cut off, and it has next to nothing to compute
    config: dict[str, Any] = {}  # noqa: RUF012 nothing varies
    width = _WIDTH

    def forward(self, number: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        """Returns hidden (batch, 1, width) and mask (batch, 1)."""
        both, counts = torch.stack([number, number.sign() * number.abs().log1p()], dim=-1), category == 0  # (batch, 2), (batch,)
        if self.training:
            self.standardise.see(both[counts])
        known = self.number(self.standardise(both).clamp(-_FARTHEST, _FARTHEST)).where(counts.unsqueeze(-1), self.category(category))
        hidden = self.out(torch.relu(known)).unsqueeze(1)
        return hidden, torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device)


def _number(text: str) -> float | None:
    """The number that a cell is: of a date, days since 1970."""
    try:
        if _DATE.match(text):
            found = datetime.datetime.fromisoformat(text)
            return found.replace(tzinfo=found.tzinfo or datetime.UTC).timestamp() / _DAY
        return _text.number(text)
    except (ValueError, OverflowError):
        return None
