"""Excel's and OpenOffice's files: the rows of their first sheet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from lc_ray.errors import DataError


def rows(content: bytes, named: bool) -> Iterator[Any]:
    """Rows by the names in the first one; lists of cells if the names are known.

    Raises:
        DataError: the package that reads them is not installed.
        ValueError: it is something else.
    """
    try:
        from python_calamine import CalamineError, CalamineWorkbook
    except ImportError:
        raise DataError("a sheet needs python-calamine to be read", fix="pip install 'lc_ray[excel]', or save it as CSV") from None
    try:
        found = CalamineWorkbook.from_filelike(io.BytesIO(content)).get_sheet_by_index(0).to_python()
    except CalamineError as error:
        raise ValueError(f"not a sheet: {error}") from None
    cells = ([_plain(cell) for cell in row] for row in found)
    header = [] if named else [str(name).strip() for name in next(cells, [])]
    for row in cells:
        if any(cell is not None for cell in row):
            yield row if named else dict(zip(header, row, strict=True))


def _plain(cell: Any) -> Any:
    """A cell as JSON would have it: all numbers of a sheet are floats, dates are dates, and an empty one is a text."""
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return (cell or None) if isinstance(cell, str) else cell if isinstance(cell, bool | float) else str(cell)
