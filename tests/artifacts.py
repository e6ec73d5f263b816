"""Artifacts made of others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lc_ray import artifact


def copied(path: Path, target: Path, weights: bytes | None = None, **changes: Any) -> Path:
    """An artifact with another manifest, or other weights."""
    found = artifact.read(path)

    def fill(folder: Path) -> None:
        for name in found.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found.path / name, folder / name)
        if weights:
            (folder / artifact.WEIGHTS).write_bytes(weights)

    return artifact.write(target, found.manifest.model_copy(update=changes), fill).path
