"""Data as Python programs have it, as a file that a job can name."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image, ImageOps

from lc_ray import family
from lc_ray.errors import DataError, first_line
from lc_ray.modalities import _pixels, _text
from lc_ray.spec import UNREAD
from lc_ray.storage import storage_path

_PNG, _DEEP = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"), ("I", "F")  # modes of PIL


class _Binary(TypeError):
    """Bytes, which JSON has no form for."""


def media_of(modalities: dict[str, str], task: str, target: str | None) -> set[str]:
    """The columns whose values are files, that of a task's targets among them."""
    found = {column for column, kind in modalities.items() if hasattr(family.load("modalities", kind).Modality, "MEDIA")}
    return found | ({target} if target and pa.binary() == family.load("tasks", task).Task.TYPE else set())


def order_of(modalities: dict[str, str], target: str | None) -> list[str]:
    """The columns of a row that is a tuple: those of the inputs as they are in the job, and the target."""
    named = [column for column, kind in modalities.items() if kind not in UNREAD] + ([target] if target else [])
    return [part for name in named for part in name.split(_text.BAR)]


def source_of(data: Any, storage: str, media: set[str], order: Sequence[str] = ()) -> str:
    """Any accepted form of data as a file that a job can name. In-memory rows are kept under a name made of their content.

    Args:
        data: what a user has.
        storage: folder in which it is kept.
        media: columns whose values are files; relative paths among these are meant from where the program runs.
        order: columns of rows that are tuples, as most datasets of PyTorch have them; where it is one, a row may be its value.
    """
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, list):
        return _rows(data, storage, media, order)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if hasattr(data, "to_arrow_refs"):
        import ray

        if media & set(data.columns() or ()):  # arrays among them become pictures
            return _rows(data.take_all(), storage, media)
        blocks = ray.get(data.to_arrow_refs())
        if any(isinstance(kind, pa.BaseExtensionType) for block in blocks for kind in block.schema.types):  # arrays, which become lists
            return _rows(ray.data.from_arrow(blocks).take_all(), storage, media)
        table = pa.concat_tables(blocks, promote_options="permissive")
    elif isinstance(data, dict) and hasattr(data, "with_format"):  # a Hugging Face DatasetDict
        raise DataError(f"this is several: {', '.join(map(str, data))}", fix="give one of them, for example data['train']")
    elif hasattr(data, "with_format") and hasattr(data, "__len__"):
        table = data.with_format("arrow")[:].replace_schema_metadata(data.features.arrow_schema.metadata)  # which has the names of classes
        for place, name in enumerate(table.column_names):
            if name in media:
                values = [_cell(value, True) for value in table[name].to_pylist()]
                is_made = any(isinstance(value, bytes) for value in values)
                field = pa.field(name, pa.binary()) if is_made else table.field(place)
                table = table.set_column(place, field, pa.array(values, field.type))
        return _kept(_parquet(table), ".parquet", storage)
    elif hasattr(data, "iterrows"):
        if len(twice := data.columns[data.columns.duplicated()]):
            raise DataError(f"2 columns are named '{twice[0]}'", fix="rename one of them")
        data = data.copy(deep=False)
        for name in [name for name, dtype in data.dtypes.items() if _is_named(dtype)]:
            data[name] = data[name].map(str, na_action="ignore").astype(object)
        if media & set(data.columns):
            return _rows(data.to_dict("records"), storage, media)
        try:
            table = pa.Table.from_pandas(data, preserve_index=False)
        except (pa.ArrowException, OverflowError, TypeError):  # a column of several types, of which some rows will be rejected; or a sparse one
            return _rows(data.to_dict("records"), storage, media)
    elif isinstance(table := data.to_arrow() if hasattr(data, "to_arrow") else data, pa.Table):  # Polars, DuckDB, Arrow
        if media & set(table.column_names):
            return _rows(table.to_pylist(), storage, media)
    else:
        return _rows(_named(_listed(data), data), storage, media, order)
    return _kept(_parquet(table.replace_schema_metadata(None)), ".parquet", storage)


def _listed(data: Any) -> list[Any]:
    """Rows of columns in a dict, of a PyTorch dataset or DataLoader, or of another sequence. A stream may be endless."""
    if getattr(data, "batch_sampler", None) is not None:  # a DataLoader, whose batches are columns
        return [row for batch in data for row in (_listed(batch) if isinstance(batch, dict) else zip(*batch, strict=True))]
    columns = list(data.values()) if isinstance(data, dict) else []
    if columns and all(hasattr(column, "__len__") and not isinstance(column, str) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(data, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(data, dict) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"data of type {type(data).__name__} is not accepted",
            fix="give a path, a table of pandas, Polars or Arrow, a dataset of Hugging Face, Ray or PyTorch, or a list of dicts",
        )
    return list(data) if hasattr(data, "__iter__") else [data[number] for number in range(len(data))]


def _named(rows: list[Any], data: Any) -> list[Any]:
    """Rows of a dataset of torchvision, or a part of one, with the names of classes in place of their numbers."""
    while not (classes := getattr(data, "classes", None)) and hasattr(data, "dataset"):  # of Subset and DataLoader
        data = data.dataset
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        return rows
    last: list[Any] = [row[-1] if isinstance(row, tuple) and row else None for row in rows]
    numbers = [label.tolist() if hasattr(label, "tolist") else label for label in last]  # of tensors
    is_numbered = all(isinstance(number, int) and 0 <= number < len(classes) for number in numbers)
    return [(*row[:-1], classes[number]) for row, number in zip(rows, numbers, strict=True)] if is_numbered else rows


def _is_named(dtype: Any) -> bool:
    """Whether a pandas column has intervals or periods, or categories of them, whose names Arrow would lose."""
    return str(getattr(getattr(dtype, "categories", dtype), "dtype", dtype)).startswith(("interval", "period"))


def _rows(data: list[Any], storage: str, media: set[str], order: Sequence[str] = ()) -> str:
    """As `source_of`, for rows as dicts or tuples: JSON, or a table where there are bytes."""
    rows = []
    for number, given in enumerate(data):
        row = _by_column(given, order)
        if not isinstance(row, dict):
            several = f", or of tuples ({', '.join(order)})" if len(order) > 1 else ""
            raise DataError(f"not a dict but {type(row).__name__}", f"row {number}", f"give a list of dicts by column{several}")
        try:
            rows.append({name: _cell(value, name in media) for name, value in row.items()})
        except DataError as error:
            raise DataError(error.what, f"row {number}", error.fix) from None
    try:
        return _kept("".join(json.dumps(row, default=_written) + "\n" for row in rows).encode(), ".jsonl", storage)
    except _Binary:
        return _kept(_parquet(_table(rows)), ".parquet", storage)


def _by_column(row: Any, order: Sequence[str]) -> Any:
    """A row as a dict, if it is known of what."""
    if hasattr(row, "_asdict"):  # a named tuple, as pandas' itertuples gives
        return row._asdict()
    if len(order) == 1 and not isinstance(row, dict):
        return {order[0]: row}
    return dict(zip(order, row, strict=True)) if isinstance(row, list | tuple) and len(row) == len(order) else row


def _cell(value: Any, media: bool) -> Any:
    """A cell as a file can hold it, a relative path as an absolute one."""
    if media and isinstance(value, str | Path) and "://" not in str(value) and not str(value).startswith("data:"):
        return os.path.realpath(os.path.expanduser(value))
    if media and isinstance(value, dict) and value.get("array") is None:
        return {name: _cell(each, name == "path") for name, each in value.items()}
    return plain(value, media)


def plain(value: Any, media: bool) -> Any:
    """A value of Python's libraries as a file can hold it: a picture or a sound as a file's bytes, an array as a list, what is missing as None.

    Raises:
        DataError: it is no picture's or sound's, or damaged.
    """
    if media and isinstance(value, dict) and value.get("array") is not None:
        return _recorded(value)
    if media and str(getattr(value, "dtype", "")).endswith("uint8"):
        value = _pixels.picture(np.asarray(value))
    if hasattr(value, "save") and hasattr(value, "getbands"):  # a PIL image
        return _encoded(value)
    if isinstance(value, dict):
        return {name: plain(each, False) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, False) for each in value]
    if isinstance(value, bytearray | memoryview | io.BytesIO):
        return value.getvalue() if isinstance(value, io.BytesIO) else bytes(value)
    if hasattr(value, "tolist"):  # of NumPy, PyTorch and pandas
        return value.tolist()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return str(value) if isinstance(value, Path) else value


def _recorded(sound: dict[str, Any]) -> bytes:
    """WAV, without loss: as lists samples would take thirty times their memory."""
    try:
        samples, file = np.asarray(sound["array"], np.float32), io.BytesIO()
        if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:  # channels first
            samples = samples.T
        soundfile.write(file, samples, int(sound["sampling_rate"]), "FLOAT", format="WAV")
    except (KeyError, TypeError, ValueError, soundfile.SoundFileError):
        raise DataError("not an array of samples with its sampling_rate") from None
    return file.getvalue()


def _encoded(picture: Image.Image) -> bytes:
    """Upright, and without loss: as PNG, or TIFF where its levels have 32 bits; what neither has is converted."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in _PNG and picture.mode not in _DEEP:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    file = io.BytesIO()
    picture.save(file, "TIFF" if picture.mode in _DEEP else "PNG")
    return file.getvalue()


def _written(value: Any) -> Any:
    """A cell that JSON has no form for: a set as a list; else its text.

    Raises:
        _Binary: it is bytes.
    """
    if isinstance(value, bytes):
        raise _Binary
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


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
            raise DataError(f"column '{name}' has values of several types: {first_line(error)}", fix="make them of one type") from None
    return pa.table(columns)


def _parquet(table: pa.Table) -> Any:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue() if table.num_rows else b""


def _kept(content: Any, ending: str, storage: str) -> str:
    if not content:
        raise DataError("the dataset is empty")
    file = storage_path(storage) / "data" / f"{hashlib.sha256(content).hexdigest()[:16]}{ending}"
    try:
        if not file.exists():
            with file.whole() as out:
                out.write(content)
    except OSError as error:
        raise DataError(f"can't be kept: {first_line(error)}", str(file), "make room there, or give another `storage`") from None
    return str(file)
