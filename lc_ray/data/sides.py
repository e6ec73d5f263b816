"""Read and check a dataset's rows, and draw which are for training and which are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lc_ray.data import blobs, cells, split
from lc_ray.errors import DataError
from lc_ray.models.batches import TARGET
from lc_ray.spec import JobSpec
from lc_ray.storage import StoragePath

BLOBS = "blobs"  # the folder of pixels and sounds
_HINTS = {  # by what is wrong with rows
    "not valid UTF-8": "`data.encoding_errors: windows-1252` reads Latin-1, too",
    "no such file": "files are looked for from the data file's folder; `path` of the input says what a name becomes, such as ../images/{}.jpg",
}
_TARGETS = 65536  # rows at a time


@dataclass(frozen=True)
class Side:
    """Training or validation rows.

    Attributes:
        index: where they are, in order.
        cells: the folder that they are in.
        media: their pixels and sounds.
    """

    index: pa.Table
    cells: StoragePath
    media: blobs.Reader

    def targets(self) -> Iterator[tuple[Any, str]]:
        """Each row's clean target, and where it is from."""
        for start in range(0, self.index.num_rows, _TARGETS):
            table = cells.gather(self.index.slice(start, _TARGETS), self.cells, [TARGET, "_file", "_row"])
            for target, file, row in zip(*self.media.values(table).values(), strict=True):
                yield target, f"{file}, row {row}"

    def others(self, side: Side) -> list[int]:
        """Places of the rows whose targets no row of another side has."""
        known = {cells.order(0, [], target) for target, _ in side.targets()}
        return [place for place, (target, _) in enumerate(self.targets()) if cells.order(0, [], target) not in known]

    def unseen(self, task: Any) -> Iterator[tuple[int, DataError]]:
        """Places of rows whose targets the task can't encode, and why. Pictures and sounds are not read for it: they are encoded as they are."""
        for place, (target, where) in enumerate(self.targets() if pa.binary() != task.TYPE else ()):
            try:
                task.encode(target)
            except DataError as error:
                yield place, DataError(error.what, where, error.fix)


def read(job: JobSpec, folder: StoragePath) -> tuple[Side, Side, Counter[str]]:
    """Training rows, validation rows, and how many rows were rejected by reason. The rejected ones are kept in `rejects`."""
    data, found, rejects = job.data, dict[str, Side](), dict[str, pa.Table]()
    seen, reasons = 0, Counter[str]()
    for name, source in data.sources.items():
        place, limit = cells_of(folder, name), data.rows if name == "train" else None
        index, rejects[name] = cells.write(job, source, place, (folder / BLOBS, name), limit)
        found[name] = Side(index, place, blobs.Reader(folder / BLOBS))
        seen += index.num_rows + rejects[name].num_rows
        reasons.update(f"{c}: {r}" if c else r for c, r in zip(*(rejects[name][c].to_pylist() for c in ("column", "reason")), strict=True))
    _keep(rejects, folder / "rejects")
    if reasons.total() > data.reject.limit * seen:
        common = "\n  ".join(f"{n} × {reason}" for reason, n in reasons.most_common(5))
        _keep(rejects, kept := folder.parent.parent / f"rejects-{folder.parent.name}")
        raise DataError(
            f"{reasons.total()} of {seen} rows can't be used, more than data.reject.limit ({data.reject.limit:.1%}):\n  {common}",
            fix=f"they are kept in {kept}; correct them, or raise data.reject.limit" + hints(common),
        )
    train = replace(found["train"], index=found["train"].index.slice(0, data.rows))
    if "validation" in found:
        return train, found["validation"], reasons
    order = train.index["_order"].to_numpy()
    if data.stratify and len(order):
        held = split.stratified(order, (t for t, _ in train.targets()), data)
    else:
        held = np.arange(len(order)) < split.cut(order, data, data.rows is not None)
    return *(replace(train, index=train.index.filter(pa.array(mask))) for mask in (~held, held)), reasons  # type: ignore[return-value]


def hints(reasons: str) -> str:
    """What may be done about rows that can't be used, behind what else may be."""
    return "".join(f"; {hint}" for reason, hint in _HINTS.items() if reason in reasons)


def _keep(rejects: dict[str, pa.Table], folder: StoragePath) -> None:
    for name, rows in rejects.items():
        if rows.num_rows:
            with (folder / f"{name}.parquet").create() as file:
                pq.write_table(rows, file)


def cells_of(folder: StoragePath, side: str) -> StoragePath:
    """The folder of a side's cells, which are of no use once it is prepared."""
    return folder / f"{side}-cells"
