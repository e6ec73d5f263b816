"""No quantization: PyTorch in fp32, as trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_ray.artifact import Artifact
from lc_ray.models.cache import Cached
from lc_ray.models.fusion import FusionModel
from lc_ray.models.load import open_model


def build(model: FusionModel, batches: Iterable[dict[str, Tensor]], folder: Path) -> dict[str, Any]:
    """Nothing to write: the weights are the engine."""
    return {}


def load(found: Artifact, threads: int) -> Run:
    """Run the artifact's model on `threads` threads."""
    return Run(open_model(found), threads)


class Run:
    """A model's forward, and token by token if it is a causal language model.

    Args:
        model: in evaluation mode.
        threads: CPU threads.
    """

    def __init__(self, model: Any, threads: int) -> None:
        self.model, self.threads = model, threads
        if hasattr(model, "extend"):
            self.decoder = lambda: Cached(model, threads, next(model.parameters()).device)

    def __call__(self, batch: dict[str, Tensor]) -> NDArray[np.float32]:
        """Outputs of tensors named `column.tensor`."""
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.model(batch).float().numpy()  # type: ignore[no-any-return]

    def remember(self, batch: dict[str, Tensor], past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and the keys and values of this call's tokens, of a model that keeps any. See `int8.Run.remember`."""
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            return self.model.remember(batch, past)  # type: ignore[no-any-return]
