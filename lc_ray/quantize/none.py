"""No quantization: PyTorch in fp32, as trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_ray.artifact import Artifact
from lc_ray.models.fusion import FusionModel
from lc_ray.models.load import open_model


def build(model: FusionModel, batches: Iterable[dict[str, Tensor]], folder: Path) -> dict[str, Any]:
    """Nothing to write: the weights are the engine."""
    return {}


def load(found: Artifact, threads: int) -> Callable[[dict[str, Tensor]], NDArray[np.float32]]:
    """Run the artifact's model on `threads` threads."""
    model = open_model(found)

    def run(batch: dict[str, Tensor]) -> NDArray[np.float32]:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model(batch).float().numpy()  # type: ignore[no-any-return]

    return run
