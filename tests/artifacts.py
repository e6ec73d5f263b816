"""Artifacts made of others, and of models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lc_ray import artifact
from lc_ray.models import load


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


def save(folder: Path, model: Any, task: Any, inputs: list[Any], changed: tuple[Any, Any] = ({}, {})) -> artifact.Artifact:
    """An artifact of a model; `changed` is what pruning changed of its shapes."""
    manifest = artifact.Manifest(
        name=folder.name,
        task={"kind": type(task).__module__.rpartition(".")[2], **task.config},
        inputs=[i.model_dump() for i in inputs],
        architecture=load.describe(model, *changed),
    )
    return load.save(folder, manifest, model.state_dict(), load.modalities(inputs))
