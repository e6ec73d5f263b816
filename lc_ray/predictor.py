"""A model as users call it: rows in, answers out, on the engine that its artifact names."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lc_ray import artifact, family
from lc_ray.artifact import Artifact
from lc_ray.data.given import plain
from lc_ray.errors import DataError
from lc_ray.modalities import _media, _text
from lc_ray.models.batches import collate, decode, feed, parts_of, prepare
from lc_ray.models.load import inputs_of, modalities, task_of
from lc_ray.spec import UNREAD

_AT_A_TIME = 512  # rows: pixels and sounds of all would fill the memory
Rows = dict[str, list[Any]]  # prepared, by column.part


class Predictor:
    """An artifact, loaded.

    Args:
        found: the artifact.
        threads: CPU threads per prediction; all cores if not given.
        gpu: whether its engine, if it can, is to run on this process's GPU.

    Attributes:
        used: called with this and the engine whenever that, which is in memory by then, is about to run; it may unload others.
        room: entered while an engine that was let go is loaded again; it may wait until others are gone.
    """

    def __init__(self, found: Artifact, threads: int | None = None, gpu: bool = False) -> None:
        self.artifact, self._given = found, (threads, gpu)
        self.inputs = inputs_of(found.manifest)
        self.columns = modalities(self.inputs, found.path / "processor")
        self.task = task_of(found.manifest).bind(self.columns)
        self._open = functools.partial(family.load("quantize", found.manifest.engine).load, found, threads or os.cpu_count() or 1, gpu)
        self._engine: Any = self._open()
        self.used: Callable[[Predictor, Any], None] = lambda *_: None
        self.room: Callable[[Predictor], AbstractContextManager[None]] = lambda _: nullcontext()

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes load the artifact themselves."""
        return Predictor, (self.artifact, *self._given)

    @property
    def engine(self) -> Any:
        """What runs the model, loaded again if it was let go."""
        if (engine := self._engine) is None:
            with self.room(self):
                engine = self._engine = self._engine or self._open()
                self.used(self, engine)
        else:
            self.used(self, engine)
        return engine

    @property
    def loaded(self) -> bool:
        """Whether the engine is in memory."""
        return self._engine is not None

    def unload(self) -> None:
        """Let go of the engine, as soon as what runs on it is done."""
        self._engine = None

    def decode(self, row: Any, folder: Path | str | None = None, errors: str = "strict") -> dict[str, Any]:
        """One instance as clean values by column. With one input column, the value alone will do.

        Args:
            row: an object by column, or a value.
            folder: in which paths are looked for; without it a picture or sound is bytes or base64, and no file is opened.
            errors: as `data.encoding_errors`.

        Raises:
            DataError: a column is missing, or its value can't be used; or one that a row may lack is missing beside a key that is no column,
                which may be its name misspelt. Beside all columns, other keys are left alone.
        """
        names, row = [i.column for i in self.inputs], self._by_column(row)
        for name in names:  # that stands for several
            if name not in row and len(parts := name.split(_text.BAR)) > 1 and row.keys() & {*parts}:
                row = row | {name: _text.together({part: row.get(part) for part in parts})}
        if missing := [i.column for i in self.inputs if i.column not in row and not i.optional]:
            raise DataError(f"missing column {', '.join(missing)}; expected {', '.join(names)}")
        unknown = [str(key) for key in row if key not in self.columns]
        if unknown and any(i.column not in row and i.modality not in UNREAD for i in self.inputs):
            raise DataError(f"unknown column {', '.join(unknown)}; expected {', '.join(names)}")
        return decode(row, self.columns, errors, folder)

    def _by_column(self, row: Any) -> dict[str, Any]:
        """An instance of one column may be its value, and that of a file an object, too.

        Raises:
            DataError: it is a value, and there are several columns.
        """
        first, *others = self.columns
        if isinstance(row, dict):
            is_file = row and not others and first not in row and hasattr(self.columns[first], "MEDIA") and row.keys() <= _media.CELL
            return {first: row} if is_file else row
        if others:
            raise DataError(f"expected an object with the columns {', '.join(self.columns)}")
        return {first: row}

    def outputs(self, prepared: Rows, batch_size: int = 32) -> list[NDArray[np.float32]]:
        """Raw outputs of each prepared row in one forward pass, in the order given."""
        return self._by_size(prepared, batch_size, lambda rows: list(self.task.outputs(self.engine, feed(rows, self.columns, self.task)[0])))

    def scores(self, prepared: Rows, batch_size: int = 32) -> list[Any]:
        """What the task's metrics need of each prepared row that has its target, in the order given."""
        return self._by_size(prepared, batch_size, lambda rows: self.task.score(self.engine, *feed(rows, self.columns, self.task)))

    def answers(self, prepared: Rows, batch_size: int = 32) -> list[dict[str, Any]]:
        """Decoded answers for prepared rows, in the order given."""
        return list(self.answered(prepared, batch_size))

    def answered(self, prepared: Rows, batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """As `answers`, one after the other: of many labels each is large."""
        outputs = self._by_size(prepared, batch_size, lambda rows: self.task.answer(self.engine, collate(rows, self.columns)))
        return (self.task.decode(output, parts_of(prepared, self.columns, i)) for i, output in enumerate(outputs))

    def _by_size(self, prepared: Rows, batch_size: int, call: Callable[[Rows], list[Any]]) -> list[Any]:
        """What `call` gives for each row; rows of like size are batched together."""
        order = np.argsort(prepared["_size"], kind="stable")
        found: list[Any] = [None] * len(order)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, output in zip(chosen, call({k: [v[i] for i in chosen] for k, v in prepared.items()}), strict=True):
                found[i] = output
        return found

    def predict(self, rows: Any, batch_size: int = 32) -> list[dict[str, Any]]:
        """Answers for instances, for example `[{"label": "positive", "probabilities": {...}}]`.

        Args:
            rows: a list or another iterable; an array or table of NumPy, pandas, Polars or Arrow. Values may be those of these libraries, too.
            batch_size: rows that run together.

        Raises:
            DataError: one instance instead of several, or one that can't be used; names which.
        """
        if hasattr(rows, "to_arrow"):  # Polars
            rows = rows.to_arrow()
        if hasattr(rows, "to_pylist"):
            rows = rows.to_pylist()
        elif hasattr(rows, "iterrows"):
            rows = rows.to_dict("records")
        if isinstance(rows, str | bytes | dict) or not hasattr(rows, "__iter__"):
            raise DataError(f"expected a list of instances, got {type(rows).__name__}", fix="predict([...])")
        return list(self.stream(rows, batch_size))

    def stream(self, rows: Iterable[Any], batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """As `predict`, for rows without end: some at a time are in memory, and those of like size among them run together.

        Raises:
            DataError: one can't be used; names which.
        """
        numbered = enumerate(rows)
        while clean := [self._numbered(number, row) for number, row in itertools.islice(numbered, _AT_A_TIME)]:
            values = {i.column: [row[i.column] for row in clean] for i in self.inputs}
            yield from self.answered(prepare(values, self.columns), batch_size)

    def _numbered(self, number: int, row: Any) -> dict[str, Any]:
        try:
            by_column = self._by_column(row).items()
            return self.decode({name: plain(value, hasattr(self.columns.get(name), "MEDIA")) for name, value in by_column})
        except DataError as error:
            raise DataError(error.what, f"instance {number}" + (f", {error.where}" if error.where else "")) from None


def load(path: str | Path, threads: int | None = None, gpu: bool = False) -> Predictor:
    """Open an artifact for prediction, after comparing every file with its hash.

    Raises:
        ArtifactError: missing, incomplete or altered.
    """
    return Predictor(artifact.read(path), threads, gpu)
