"""The quantization stage: an artifact in, one that runs on another engine out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lc_ray import artifact, family
from lc_ray.artifact import Artifact
from lc_ray.models.batches import feed
from lc_ray.models.load import inputs_of, modalities, open_model, task_of
from lc_ray.spec import QuantizeSpec

_BATCH = 8  # rows


def quantize(found: Artifact, spec: QuantizeSpec, rows: dict[str, list[Any]], folder: Path, name: str) -> Artifact:
    """Write a quantized copy of an artifact. Its metrics and cost are left to be measured.

    Args:
        found: the model in PyTorch; pruned shapes are kept.
        spec: the scheme, and how many rows it is calibrated on.
        rows: prepared lists named `column.part`, with their `_size` and targets; the first `spec.calibration` are used.
        folder: of the new artifact.
        name: of the new artifact.

    Raises:
        ModelError: the scheme needs rows and there are none.
        ArtifactError: no room or no permission.
    """
    engine = family.load("quantize", spec.kind)
    columns = modalities(inputs_of(found.manifest), found.path / "processor")
    task = task_of(found.manifest).bind(columns)
    order = np.argsort(rows["_size"][: spec.calibration], kind="stable")  # like sizes together, for little padding
    chunks = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    batches = [feed({part: [values[i] for i in chunk] for part, values in rows.items()}, columns, task)[0] for chunk in chunks]
    lineage = {**found.manifest.lineage, "parent": found.digest}
    manifest = found.manifest.model_copy(update={"name": name, "engine": spec.kind, "metrics": {}, "cost": {}, "lineage": lineage})

    def fill(partial: Path) -> None:
        shutil.copy2(found.path / artifact.WEIGHTS, partial / artifact.WEIGHTS)
        if (processor := found.path / "processor").exists():  # it is not where no column has any
            shutil.copytree(processor, partial / "processor")
        manifest.quantization = engine.build(open_model(found), batches, partial / "engine")  # `write` copies the manifest after this

    return artifact.write(folder, manifest, fill)
