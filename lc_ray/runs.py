"""The runs of a storage folder: what each has left there, and what of it only a changed job would go on from."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lc_ray.errors import ClusterError, SpecError
from lc_ray.storage import discard, storage_path, sweep

EVENTS, RECORD = "events.jsonl", "record.json"
SEGMENTS, QUANTIZED, TUNE, TRAIN = "segments", "quantized", "tune", "train"  # folders of a run; the last two while it searches
ACCEPTED, REFUSED, UNFINISHED = "accepted", "refused", "unfinished"
PREPARED = "prepared"  # folder of the rows of all runs
_KEY = re.compile(r"\.?[0-9a-f]{16}(\.[0-9a-f]{8})?")  # names in it, also of what was to be removed: a run may be called so, too
_WAIT = "wait until it has ended, or give another `name`; the lock of a machine that went down may last some minutes on a network's file system"


@dataclass(frozen=True)
class Run:
    """What a run has left.

    Attributes:
        folder: its own.
        state: accepted, refused or unfinished.
        record: as in record.json, of a finished one.
    """

    folder: Path
    state: str
    record: dict[str, Any]

    @property
    def spare(self) -> list[Path]:
        """Files and folders that only this job, if it is unfinished, refused or changed, would go on from: all but the result, the report, and the
        models that it compares.
        """
        compared = [str(one["artifact"]) for one in self.record.get("models", ())]
        found = [self.folder / TUNE, self.folder / TRAIN]
        for one in (self.folder / SEGMENTS).glob("*"):
            whole = any(path.endswith(f"/{SEGMENTS}/{one.name}/model") for path in compared)
            # Without its record, which goes first, it is not finished.
            found += sorted((part for part in one.iterdir() if part.name != "model"), key=Path.is_dir) if whole else [one]
        for one in (self.folder / QUANTIZED).glob("*"):
            found += [] if any(path.endswith(f"/{QUANTIZED}/{one.name}") for path in compared) else [one]
        return [path for path in found if path.exists()]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs of this name on machines that share the folder away: they would train in each other's segments. Where there is none, what one
    that was killed has left half-written goes.

    Raises:
        ClusterError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError("another run of this name is at work", str(folder), _WAIT) from None
        except OSError:  # a file system without locks
            pass
        else:
            sweep(folder)
        yield


def find(storage: str) -> list[Run]:
    """The runs of a storage folder, by name.

    Raises:
        SpecError: it is no folder of this machine.
    """
    folder = Path(storage_path(storage).path)
    if not folder.is_dir():
        raise SpecError("no folder of this machine", storage, "give --storage, the job's, or `runs` where that is a bucket")
    return [_run(file.parent) for file in sorted(folder.glob(f"*/{EVENTS}"))]


def _run(folder: Path) -> Run:
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if (folder / RECORD).stat().st_mtime_ns < (folder / EVENTS).stat().st_mtime_ns:  # of the run before
            return Run(folder, UNFINISHED, {})
    except (FileNotFoundError, ValueError):
        return Run(folder, UNFINISHED, {})
    return Run(folder, ACCEPTED if record["artifact"] else REFUSED, record)


def prepared(storage: str) -> list[Path]:
    """Folders of the prepared rows that the runs of a storage folder share. Whoever needs them prepares them again."""
    folder = Path(storage_path(storage).path) / PREPARED
    return [one for one in folder.glob("*") if _KEY.fullmatch(one.name)]


def prune(storage: str, names: Sequence[str] = (), dry: bool = False) -> tuple[dict[str, int], list[str]]:
    """Remove what is spare of the accepted runs, and the prepared rows of all; or what is spare of those that are named, even if they were refused.

    Args:
        storage: the folder.
        names: of runs.
        dry: only tell.

    Returns:
        Bytes that are gone, by what they were of; and in sentences, what is kept.

    Raises:
        SpecError: it is no folder of this machine, or has no such run.
    """
    folders = {run.folder.name: run.folder for run in find(storage)}
    if unknown := [name for name in names if name not in folders]:
        raise SpecError(f"no run '{unknown[0]}'", storage, f"there are: {', '.join(folders) or 'none'}")
    gone, kept = dict[str, int](), list[str]()
    for name in names or folders:
        try:
            with alone(folders[name]):
                run = _run(folders[name])
                if run.state == ACCEPTED or (run.state == REFUSED and names):
                    gone[name] = _removed(run.spare, dry)
                else:
                    kept.append(f"{name} is {run.state}, and goes on from what it has")
        except ClusterError as error:
            kept.append(f"{name}: {error.what}")
    if not (names or kept):
        gone[PREPARED] = _removed(prepared(storage), dry)
    return {name: size for name, size in gone.items() if size}, kept


def _removed(paths: Sequence[Path], dry: bool) -> int:
    total = size(paths)
    for path in () if dry else paths:
        discard(path)
    return total


def size(paths: Sequence[Path]) -> int:
    """Bytes of files, and of all that is in folders, of which some may vanish meanwhile."""
    files = [path for path in paths if path.is_file()]
    files += [Path(folder) / name for path in paths for folder, _, names in os.walk(path) for name in names]
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total
