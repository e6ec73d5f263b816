"""int8 weights and activations on CPU: NNCF post-training quantization, run by OpenVINO.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) moves outliers of activations into the weights before ranges are taken.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import rich
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_ray.artifact import Artifact
from lc_ray.errors import ModelError
from lc_ray.models.fusion import FusionModel

# OpenVINO and NNCF report their use over the network unless this module can't be imported: both then use an empty stub of their own.
cast("dict[str, Any]", sys.modules)["openvino_telemetry"] = None

import openvino  # noqa: E402

_SMOOTH = 0.8  # SmoothQuant's alpha: closest to fp32 of -1 (off), 0.5, 0.8 and 0.95 (NNCF's own) for a fine-tuned MiniLM
_FILE = "model_{}.xml"  # by stage


def build(model: FusionModel, batches: Iterable[dict[str, Tensor]], folder: Path) -> dict[str, Any]:
    """Write the int8 model to `folder`, for any batch size and sequence length.

    A model that is run in stages has a file for each.

    Args:
        model: in evaluation mode and fp32.
        batches: calibration rows, tensors named `column.tensor`; the first dimension is the row.
        folder: an artifact's `engine/`, made if missing.

    Returns:
        What the manifest records as `quantization`.

    Raises:
        ModelError: no calibration rows.
    """
    stages = [list(batches)]
    if not stages[0]:
        raise ModelError("int8 needs rows to take the ranges of activations from", "quantize.calibration", "use 256 rows")
    import nncf  # slow to import, and serving does not need it

    if split := getattr(model, "stages", None):
        with torch.no_grad():
            stages = [list(of_stage) for of_stage in zip(*map(split, stages[0]), strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    for number, of_stage in enumerate(stages):
        calibration = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in of_stage]
        with _quiet():
            quantized = nncf.quantize(
                _convert(model, calibration[0]),
                nncf.Dataset(calibration),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(calibration),
                advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH)),
            )
        openvino.save_model(quantized, folder / _FILE.format(number), compress_to_fp16=False)
    return {
        "scheme": "post-training, static",
        "weights": "int8, symmetric, per channel",
        "activations": "int8, asymmetric, per tensor",
        "smooth_quant": _SMOOTH,
        "calibration_rows": sum(len(next(iter(batch.values()))) for batch in stages[0]),
        "openvino": version("openvino"),
        "nncf": version("nncf"),
    }


def load(found: Artifact, threads: int) -> Callable[[dict[str, Tensor]], NDArray[np.float32]]:
    """Run the artifact's engine on `threads` threads.

    Returns:
        A function from tensors named `column.tensor`, by whose names the stage is known, to outputs (rows, outputs); threads may call it at the
        same time.
    """
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # every replica on a node would pin itself to the same first cores
    }
    core, files = openvino.Core(), sorted((found.path / "engine").glob(_FILE.format("*")))
    compiled = {frozenset(given.any_name for given in stage.inputs): stage for stage in (core.compile_model(f, "CPU", options) for f in files)}
    own = threading.local()

    def run(batch: dict[str, Tensor]) -> NDArray[np.float32]:
        if not hasattr(own, "requests"):
            own.requests = {names: stage.create_infer_request() for names, stage in compiled.items()}
        request = own.requests[frozenset(batch)]
        return request.infer({name: tensor.numpy() for name, tensor in batch.items()})[0]  # type: ignore[no-any-return]

    return run


class _Flat(nn.Module):
    """The model with one positional input per tensor, as tracing needs."""

    def __init__(self, model: FusionModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return cast(Tensor, self.model(dict(zip(self.names, tensors, strict=True))))


def _convert(model: FusionModel, example: dict[str, NDArray[Any]]) -> Any:
    """The model in OpenVINO, all axes of its inputs dynamic, and its inputs named as the tensors are."""
    tensors = tuple(torch.from_numpy(array) for array in example.values())
    converted = openvino.convert_model(_Flat(model, list(example)), example_input=tensors)
    for given, name in zip(converted.inputs, example, strict=True):
        given.get_tensor().set_names({name})
    return converted


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without warnings about tracing that the tests of other batch sizes and lengths answer."""
    console, loggers = rich.get_console(), [logging.getLogger(name) for name in ("nncf", "transformers", "torch.utils.cpp_extension")]
    before = console.quiet, [logger.level for logger in loggers]
    console.quiet = True
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console.quiet = before[0]
        for logger, level in zip(loggers, before[1], strict=True):
            logger.setLevel(level)
