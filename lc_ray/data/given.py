"""Data as Python programs have it, as a file that a job can name."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from lc_ray import family
from lc_ray.errors import DataError
from lc_ray.storage import storage_path

_PNG, _DEEP = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"), ("I", "F")  # modes of PIL


def media_of(modalities: dict[str, str]) -> set[str]:
    """The columns whose values are files."""
    return {column for column, kind in modalities.items() if hasattr(family.load("modalities", kind).Modality, "MEDIA")}


def source_of(data: Any, storage: str, media: set[str]) -> str:
    """Any accepted form of data as a file that a job can name. In-memory rows are kept under a name made of their content.

    Relative paths in `media` columns are meant from where the program runs.
    """
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, list):
        for number, row in enumerate(data):
            if not isinstance(row, dict):
                raise DataError(f"not a dict but {type(row).__name__}", f"row {number}", "give a list of dicts by column")
        rows = [{name: _cell(value, name in media) for name, value in row.items()} for row in data]
        if not any(isinstance(value, bytes) for row in rows for value in row.values()):
            return _kept(_json_lines(rows), ".jsonl", storage)
        table = _table(rows)
    elif hasattr(data, "to_arrow_refs"):
        import ray

        if media & set(data.columns() or ()):  # arrays among them become pictures
            return source_of(data.take_all(), storage, media)
        table = pa.concat_tables(ray.get(data.to_arrow_refs()), promote_options="permissive")
    elif isinstance(data, dict) and data:  # a Hugging Face DatasetDict
        raise DataError(f"this is several: {', '.join(map(str, data))}", fix="give one of them, for example data['train']")
    elif hasattr(data, "with_format") and hasattr(data, "__len__"):
        table = data.with_format("arrow")[:].replace_schema_metadata(data.features.arrow_schema.metadata)  # which has the names of classes
        for place, name in enumerate(table.column_names):
            if name in media:
                values = [_cell(value, True) for value in table[name].to_pylist()]
                table = table.set_column(place, table.field(place), pa.array(values, table.field(place).type))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return _kept(sink.getvalue() if table.num_rows else b"", ".parquet", storage)
    elif hasattr(data, "to_parquet"):
        if len(twice := data.columns[data.columns.duplicated()]):
            raise DataError(f"2 columns are named '{twice[0]}'", fix="rename one of them")
        if media & set(data.columns):
            return source_of(data.to_dict("records"), storage, media)
        try:
            table = pa.Table.from_pandas(data, preserve_index=False)
        except (pa.ArrowException, OverflowError):  # a column of several types, of which some rows will be rejected
            return _kept(_json_lines(data.to_dict("records")), ".jsonl", storage)
    else:
        raise DataError(
            f"data of type {type(data).__name__} is not accepted",
            fix="give a path, a pandas DataFrame, a Hugging Face dataset, a Ray Dataset or a list of dicts",
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), sink)
    return _kept(sink.getvalue() if table.num_rows else b"", ".parquet", storage)


def _cell(value: Any, media: bool) -> Any:
    """A cell as a file can hold it: a picture as an image's bytes, a relative path as an absolute one."""
    if media and isinstance(value, np.ndarray) and value.dtype == np.uint8:
        value = Image.fromarray(value[:, :, 0] if value.shape[2:] == (1,) else value)
    if hasattr(value, "save") and hasattr(value, "getbands"):  # a PIL image
        return _encoded(value)
    if media and isinstance(value, str | Path) and "://" not in str(value) and not str(value).startswith("data:"):
        return str(Path(value).expanduser().resolve())
    if media and isinstance(value, dict) and isinstance(value.get("path"), str):
        return value | {"path": _cell(value["path"], media)}
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return str(value) if isinstance(value, Path) else value


def _encoded(picture: Image.Image) -> bytes:
    """Upright, and without loss: as PNG, or TIFF where its levels have 32 bits; what neither has is converted."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in _PNG and picture.mode not in _DEEP:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    file = io.BytesIO()
    picture.save(file, "TIFF" if picture.mode in _DEEP else "PNG")
    return file.getvalue()


def _json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, default=_plain) + "\n" for row in rows).encode()


def _plain(value: Any) -> Any:
    """A cell that JSON has no form for: of NumPy and pandas, as Python's own, what is missing as null, a set as a list; else its text."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of which each may lack some columns.

    Raises:
        DataError: a column of several types, which no table with bytes can have.
    """
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows], from_pandas=True)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"column '{name}' has values of several types: {str(error).splitlines()[0]}", fix="make them of one type") from None
    return pa.table(columns)


def _kept(content: Any, ending: str, storage: str) -> str:
    if not content:
        raise DataError("the dataset is empty")
    file = storage_path(storage) / "data" / f"{hashlib.sha256(content).hexdigest()[:16]}{ending}"
    if not file.exists():
        with file.whole() as out:
            out.write(content)
    return str(file)
