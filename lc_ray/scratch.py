"""Folders on this machine for a while, of which those go too whose processes were killed: each may hold a model or a checkpoint of a bucket."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME, _FRESH = "lc_ray-scratch-", 60.0  # how they begin; seconds in which one may not have its lock yet


@contextmanager
def folder_for_a_while() -> Iterator[Path]:
    """A new folder, which is removed afterwards: where its process is killed, with which its lock ends, by who makes another."""
    for left in Path(tempfile.gettempdir()).glob(f"{_NAME}*"):
        with suppress(OSError), _held(left):  # it is another user's, or held
            if left.stat().st_mtime < time.time() - _FRESH:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_NAME) as folder, _held(Path(folder)):
        yield Path(folder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """With the lock of a folder. Raises OSError if another process has it."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(place)
