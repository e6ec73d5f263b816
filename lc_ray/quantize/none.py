"""No quantization: PyTorch in fp32, as trained, on a CPU or a GPU."""

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


def load(found: Artifact, threads: int, gpu: bool = False) -> Run:
    """Run the artifact's model on `threads` threads, or a GPU."""
    model = open_model(found)
    return Run(model.cuda() if gpu else model, threads)


class Run:
    """A model's forward, and token by token if it is a causal language model.

    Args:
        model: in evaluation mode.
        threads: CPU threads.
    """

    def __init__(self, model: Any, threads: int) -> None:
        self.model, self.threads, self.device = model, threads, (device := next(model.parameters()).device)
        if hasattr(model, "extend"):
            self.decoder = lambda: Cached(model, threads, device)

    def __call__(self, batch: dict[str, Tensor]) -> NDArray[np.float32]:
        """Outputs of tensors named `column.tensor`."""
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.model(self._there(batch)).float().cpu().numpy()  # type: ignore[no-any-return]

    def remember(self, batch: dict[str, Tensor], past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and the keys and values of this call's tokens, of a model that keeps any. See `int8.Run.remember`."""
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            found, new = self.model.remember(self._there(batch), [tensor.to(self.device) for tensor in past])
            return found.float().cpu(), new

    def _there(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}
