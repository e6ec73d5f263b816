"""Measure an artifact on labelled rows of any source."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lc_ray.data.files import files
from lc_ray.data.read import Reader
from lc_ray.errors import DataError, SpecError
from lc_ray.models.batches import TARGET, learned
from lc_ray.predictor import Predictor, load
from lc_ray.section import override, problems
from lc_ray.spec import UNREAD, ReadSpec

_ROWS = 512  # at a time: pixels and sounds of all would fill the memory
_FIX = (
    "name the columns as those of training, of a file without a header as `columns` (--set columns=[label,text]), "
    "and add it, empty, if no row has it; `target` (--target) is the label's"
)


def parse(values: dict[str, Any]) -> ReadSpec:
    """How files are read, by fields of a job's data.

    Raises:
        SpecError: an unknown field, or a value that does not fit.
    """
    try:
        return ReadSpec.model_validate(override({}, values))
    except ValidationError as error:
        raise SpecError(problems(error, ReadSpec), "data") from None


def evaluate(
    model: str | Path | Predictor,
    source: str,
    target: str | None,
    reading: ReadSpec | None = None,
    told: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Metrics over all usable rows, with `rows` and `rejected` counts.

    Args:
        model: an artifact's folder, or one that is loaded.
        source: a file, a folder or `package:NAME/path`.
        target: the column that holds the label; None for a task that needs none.
        reading: how it is read.
        told: called now and then with how many rows were measured.

    Raises:
        DataError: a file or column is missing, no row can be used, or a label the model does not know.
    """
    predictor = model if isinstance(model, Predictor) else load(model)
    task, columns = predictor.task, predictor.columns
    if task.LABELLED and not target:
        raise DataError("the column that holds the label is not named", source, "name it as `target` (--target)")
    target = target if task.LABELLED else None
    rows, rejected = 0, Counter[str]()
    scores, encoded = list[Any](), list[Any]()
    found = usable(predictor, source, target, reading or ReadSpec(), rejected)
    while some := list(itertools.islice(found, _ROWS)):
        values = {name: [clean[name] for clean, *_ in some] for name in columns}
        numbers, prepared = learned(values, columns, task.divides(target, columns))
        scores += predictor.scores(prepared | {TARGET: [some[number][1] for number in numbers]})
        encoded += [some[number][2] for number in numbers]
        told(rows := rows + len(some))
    if not rows:
        why = f"; {rejected.most_common(1)[0][0]}" if rejected else ""
        raise DataError(f"no row can be used ({rejected.total()} rejected{why})", source)
    return {**task.metrics(scores, encoded), "rows": rows, "rejected": rejected.total()}


def usable(predictor: Predictor, source: str, target: str | None, reading: ReadSpec, rejected: Counter[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Clean values by column, label and encoded label of each row; why others can't be used is counted in `rejected`.

    Raises:
        DataError: see `evaluate`.
    """
    task, names, wanted = predictor.task, [i.column for i in predictor.inputs], [target] if target else []
    required = [i.column for i in predictor.inputs if not i.optional]
    read = [i.column for i in predictor.inputs if i.modality not in UNREAD]
    for file in files(source):
        reader = Reader(file, reading.columns)
        others = set(reader.columns(names)) - {*names, *wanted}  # one of which may be the name, misspelt, of a column that rows may lack
        reader.require([*(read if others else required), *wanted], _FIX)
        for row in (row for chunk in reader.rows(reader.among([*names, *wanted]), size=_ROWS) for row in chunk):
            try:
                if "_error" in row:
                    raise DataError(row["_error"])
                clean = predictor.decode({name: row[name] for name in names if name in row}, file.folder, reading.encoding_errors)
                cell = task.placed(row[target], [row.get(name) for name in names]) if target else None
                label = task.read(cell, file.folder, task) if target else None
                task.check(label, clean)
            except DataError as error:
                rejected[f"{error.where}: {error.what}" if error.where else error.what] += 1
                continue
            try:
                encoded = task.encode(label)
            except DataError as error:
                raise DataError(error.what, f"{file}, row {row['_row']}", error.fix) from None
            yield clean, label, encoded
