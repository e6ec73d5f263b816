"""A model as users call it: rows in, answers out, on the engine that its artifact names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lc_ray import artifact, family
from lc_ray.artifact import Artifact
from lc_ray.errors import DataError
from lc_ray.models.batches import collate, prepare
from lc_ray.models.load import inputs_of, modalities, task_of


class Predictor:
    """An artifact, loaded.

    Args:
        found: the artifact.
        threads: CPU threads per prediction; all cores if not given.
    """

    def __init__(self, found: Artifact, threads: int | None = None) -> None:
        self.artifact = found
        self.inputs = inputs_of(found.manifest)
        self.columns = modalities(self.inputs, found.path / "processor")
        self.task = task_of(found.manifest)
        self.engine = family.load("quantize", found.manifest.engine).load(found, threads or os.cpu_count() or 1)

    def decode(self, row: Any) -> dict[str, Any]:
        """One instance as clean values by column. With one input column, the value alone will do.

        Raises:
            DataError: a column is missing, unknown, or its value can't be used.
        """
        names = [i.column for i in self.inputs]
        if not isinstance(row, dict):
            if len(names) != 1:
                raise DataError(f"expected an object with the columns {', '.join(names)}")
            row = {names[0]: row}
        if missing := [n for n in names if n not in row]:
            raise DataError(f"missing column {', '.join(missing)}; expected {', '.join(names)}")
        clean = {}
        for name in names:
            try:
                clean[name] = self.columns[name].decode(row[name])
            except DataError as error:
                raise DataError(error.what, name) from None
        return clean

    def outputs(self, prepared: dict[str, list[Any]], batch_size: int = 32) -> NDArray[np.float32]:
        """Raw outputs (rows, ...) for prepared rows, batched by like size, in the order given."""
        order = np.argsort(prepared["_size"], kind="stable")
        parts = []
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            parts.append(self.engine(collate({k: [v[i] for i in chosen] for k, v in prepared.items()}, self.columns)))
        joined = np.concatenate(parts)
        return joined[np.argsort(order)]  # type: ignore[no-any-return]

    def predict(self, rows: list[Any], batch_size: int = 32) -> list[dict[str, Any]]:
        """Answers for instances, for example `[{"label": "positive", "probabilities": {...}}]`.

        Raises:
            DataError: an instance can't be used; names which.
        """
        if not rows:
            return []
        clean = []
        for number, row in enumerate(rows):
            try:
                clean.append(self.decode(row))
            except DataError as error:
                raise DataError(error.what, f"instance {number}" + (f", {error.where}" if error.where else "")) from None
        values = {i.column: [row[i.column] for row in clean] for i in self.inputs}
        return [self.task.decode(output) for output in self.outputs(prepare(values, self.columns), batch_size)]


def load(path: str | Path, threads: int | None = None) -> Predictor:
    """Open an artifact for prediction, after comparing every file with its hash.

    Raises:
        ArtifactError: missing, incomplete or altered.
    """
    return Predictor(artifact.read(path), threads)
