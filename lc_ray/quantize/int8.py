"""int8 weights and activations on CPU: NNCF post-training quantization, run by OpenVINO.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) moves outliers of activations into the weights before ranges are taken.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import rich
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_ray import family
from lc_ray.artifact import Artifact
from lc_ray.errors import ModelError
from lc_ray.models.cache import Cached, held_by
from lc_ray.models.fusion import FusionModel

# OpenVINO and NNCF report their use over the network unless this module can't be imported: both then use an empty stub of their own.
cast("dict[str, Any]", sys.modules)["openvino_telemetry"] = None

import openvino  # noqa: E402
from openvino import opset13  # noqa: E402
from openvino.frontend import OpConversionFailure  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402
from openvino.passes import AnyInput, Manager, Matcher, MatcherPass, WrapType  # noqa: E402
from openvino.preprocess import PrePostProcessor  # noqa: E402
from openvino.utils import replace_node  # noqa: E402

# The only one of this process, NNCF's as well: with each, OpenVINO 2026.4 gives the thread a stack for signals and, where several end in the order in
# which they began, leaves it with one that is gone. The next signal, such as Ctrl-C, would be a crash.
_CORE = openvino.Core()
_SMOOTH = 0.8  # SmoothQuant's alpha: closest to fp32 of -1 (off), 0.5, 0.8 and 0.95 (NNCF's own) for a fine-tuned MiniLM
_FILE = "model_{}.xml"  # by stage
_HELD = 2 << 30  # bytes: all that a Whisper hears in a recording is far larger than the recording
_TRACED = 2  # rows: one alone could be taken for a fixed size
_ATTENTION = ".*/aten::(matmul|bmm)/.*"  # products with keys and values that are kept: to make those int8 for each token takes longer than it saves
_KERNELS = 2000  # that are kept, of all shapes: an int8 MiniLM that has seen 500 of them has 2.2 GB of OpenVINO's own 5000, and 0.9 GB of these
_HIDDEN = np.float32(-1e9)  # what is added to the scores of what is not seen
_REDUCTIONS = {"ReduceSum": opset13.reduce_sum, "ReduceMean": opset13.reduce_mean, "ReduceMax": opset13.reduce_max, "ReduceMin": opset13.reduce_min}
_PAST = "past."  # inputs, by number: keys and values (rows, heads, tokens, width) that are kept from one token to the next


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
        ModelError: no calibration rows, or a model that OpenVINO can't run.
    """
    given = list(batches)
    if not given:
        raise ModelError("int8 needs rows to take the ranges of activations from", "quantize.calibration", "use 256 rows")
    import nncf  # slow to import, as transformers' experts are, and serving needs neither

    from lc_ray.quantize import _experts

    folder.mkdir(parents=True, exist_ok=True)
    left = [rf".*\b{re.escape(name)}\b.*" for name, module in model.named_modules() if _exact(module)]
    stages = _calibration(model, given)
    for number, calibration in enumerate(stages):
        try:
            with _quiet(), _one_core(), _experts.dense():
                quantized = nncf.quantize(
                    _convert(model, {name: array[:_TRACED] for name, array in calibration[0].items()}),
                    nncf.Dataset(calibration),
                    preset=nncf.QuantizationPreset.MIXED,
                    model_type=nncf.ModelType.TRANSFORMER,
                    subset_size=len(calibration),
                    ignored_scope=nncf.IgnoredScope(patterns=[*left, *([_ATTENTION] if _past(calibration[0]) else [])], validate=False),
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        overflow_fix=nncf.OverflowFix.ENABLE,  # without VNNI sums of products would saturate, and answers be others than elsewhere
                        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH),
                    ),
                )
                _look_up(quantized)
                # What was made has not been run yet: calibration runs what it is made of.
                _CORE.compile_model(quantized, "CPU")({name: array[:_TRACED] for name, array in calibration[0].items()})
        except (RuntimeError, ValueError, OpConversionFailure) as error:  # NNCF raises ValueErrors of shapes that it does not know
            told = (str(error).strip() or type(error).__name__).splitlines()[-1].removeprefix("-- ")
            raise ModelError(f"this model can't be made int8: {told}", fix="leave out `quantize`") from error
        openvino.save_model(quantized, folder / _FILE.format(number), compress_to_fp16=False)
    return {
        "scheme": "post-training, static",
        "weights": "int8 in half of its range, symmetric, per channel",
        "activations": "int8, asymmetric, per tensor",
        "smooth_quant": _SMOOTH,
        "calibration_rows": min(sum(len(next(iter(batch.values()))) for batch in calibration) for calibration in stages),
        "openvino": version("openvino"),
        "nncf": version("nncf"),
    }


def _calibration(model: FusionModel, batches: list[dict[str, Tensor]]) -> list[list[dict[str, NDArray[Any]]]]:
    """The rows of each stage; of stages after the first, which take what models make of rows, as many as can be held."""
    found: list[list[dict[str, NDArray[Any]]]] = []
    with torch.no_grad():
        for batch in batches:
            stages = iter(getattr(model, "stages", lambda batch: [batch])(batch))
            for number in itertools.count():
                if 0 < number < len(found) and sum(array.nbytes for array in found[number][-1].values()) * (len(found[number]) + 1) > _HELD:
                    break
                if (of_stage := next(stages, None)) is None:
                    break
                if number == len(found):
                    found.append([])
                found[number].append({name: tensor.numpy() for name, tensor in of_stage.items()})
    return found


def load(found: Artifact, threads: int, gpu: bool = False) -> Run:
    """Run the artifact's engine on `threads` threads; it is for CPUs alone."""
    encoders = [family.load("modalities", column["modality"]).Encoder for column in found.manifest.inputs]
    return Run(found.path / "engine", threads, exact=any(map(_exact, encoders)))


def _exact(module: Any) -> bool:
    """Whether a module, or its class, is to be left as it is."""
    return bool(getattr(module, "exact", False))


class Run:
    """A model's forward, and token by token if it keeps keys and values. Threads may call it at the same time.

    Args:
        folder: with a file per stage.
        threads: CPU threads.
        exact: whether what is not int8 is computed in fp32. Else it is in bf16 where the CPU has it, in which 2001 and 2003 are both 2000.
    """

    def __init__(self, folder: Path, threads: int, exact: bool = False) -> None:
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS,
            "ENABLE_CPU_PINNING": False,  # every replica on a node would pin itself to the same first cores
        } | ({"INFERENCE_PRECISION_HINT": "f32"} if exact else {})
        self._folder, self._exact = folder, exact
        self._compiled = self._compile()
        self._kept = {names: [stage.input(name) for name in _past(_names(stage))] for names, stage in self._compiled.items()}
        self._own = threading.local()
        names, kept = next(iter(self._kept.items()))
        if kept:
            self.decoder = lambda: Cached(_Language(self, names), threads, torch.device("cpu"))

    def _compile(self) -> dict[frozenset[str], Any]:
        """Stages, by the names of their inputs but for what is kept."""
        files = sorted(self._folder.glob(_FILE.format("*")))
        half = not self._exact and "BF16" in _CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        stages = [_CORE.compile_model(_outside(_CORE.read_model(file), half), "CPU", self._options) for file in files]
        return {frozenset(names).difference(_past(names)): stage for names, stage in zip(map(_names, stages), stages, strict=True)}

    def __call__(self, batch: dict[str, Tensor]) -> NDArray[np.float32]:
        """Outputs (rows, outputs) of tensors named `column.tensor`."""
        return self.remember(batch, [])[0].numpy()  # type: ignore[no-any-return]

    def remember(self, batch: dict[str, Tensor], past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and the keys and values of this call's tokens.

        Args:
            batch: as for a call.
            past: keys and values before, (rows, heads, tokens, width), in the order of the inputs; those that are left out are of no tokens.
        """
        if not hasattr(self._own, "requests"):
            self._own.requests = {names: stage.create_infer_request() for names, stage in self._compiled.items()}
        stage = frozenset(batch)
        if stage not in self._own.requests:
            raise ModelError(f"this engine does not take {', '.join(sorted(stage))}", "engine", "quantize the model again")
        request, rows = self._own.requests[stage], len(next(iter(batch.values())))
        given: dict[str, Any] = {name: tensor.numpy() for name, tensor in batch.items()}
        for number, port in enumerate(self._kept[stage]):
            given[port.any_name] = _given(past[number], port.element_type) if number < len(past) else _nothing(rows, port)
        try:
            request.infer(given, share_outputs=True)  # they are copied below
        except RuntimeError:
            self._compiled = self._compile()  # OpenVINO 2026.4 would take the next rows of like shape for those that failed
            del self._own.requests
            raise
        found, *new = (_taken(tensor) for tensor in request.output_tensors)
        return found, new


def _names(stage: Any) -> list[str]:
    return [given.any_name for given in stage.inputs]


def _past(names: Iterable[str]) -> list[str]:
    """Names of keys and values among those of inputs, by number."""
    return sorted((name for name in names if name.startswith(_PAST)), key=lambda name: int(name.removeprefix(_PAST)))


def _nothing(rows: int, port: Any) -> Any:
    """Keys or values of no tokens."""
    return openvino.Tensor(port.element_type, [rows, port.partial_shape[1].get_length(), 0, port.partial_shape[3].get_length()])


def _given(tensor: Tensor, kind: Any) -> Any:
    """A tensor's memory for OpenVINO; NumPy has no bf16."""
    if kind != openvino.Type.bf16:
        return openvino.Tensor(tensor.float().contiguous().numpy(), shared_memory=True)
    return openvino.Tensor(tensor.bfloat16().contiguous().view(torch.int16).numpy(), list(tensor.shape), kind)


def _taken(tensor: Any) -> Tensor:
    """A copy of OpenVINO's tensor."""
    if tensor.element_type != openvino.Type.bf16:
        return torch.from_numpy(tensor.data.copy())
    return torch.from_numpy(tensor.data.view(np.int16).copy()).view(torch.bfloat16)


def _outside(model: Any, half: bool) -> Any:
    """The model, whose keys and values are in bf16 outside of it, too, if it computes in that."""
    if half and (past := _past(_names(model))):
        kept = PrePostProcessor(model)
        for name in past:
            kept.input(name).tensor().set_element_type(openvino.Type.bf16)
        for number in range(1, len(model.outputs)):
            kept.output(number).tensor().set_element_type(openvino.Type.bf16)
        model = kept.build()
    return model


def _mended(model: Any, windows: bool) -> None:
    """Have OpenVINO 2026.4 compute what the model says.

    Nothing is fused into reductions, where it computes scales for each channel and divisions by a number wrongly; and positions that see nothing, as
    those of padding may in `windows`, are numbers: what they attend to counts as 0 behind, which NaN would not.
    """
    for old in model.get_ordered_ops():
        if (reduce := _REDUCTIONS.get(old.get_type_name())) and not old.get_attributes()["keep_dims"]:
            data, axes = (given.get_source_output() for given in old.inputs())
            _replace(old, opset13.squeeze(reduce(data, axes, keep_dims=True), axes))
        elif old.get_type_name() == "Divide" and old.get_element_type().is_real():
            data, divisor = (given.get_source_output() for given in old.inputs())
            if divisor.get_node().get_type_name() == "Constant":
                _replace(old, opset13.multiply(data, opset13.constant(1 / divisor.get_node().data)))
        elif windows and _masked(old):
            added = opset13.select(old.input_value(3), opset13.constant(np.float32(0)), opset13.constant(_HIDDEN))
            old.input(3).replace_source_output(added.output(0))


def _masked(node: Any) -> bool:
    """Whether it is attention with a mask that tells what is seen."""
    attention = node.get_type_name() == "ScaledDotProductAttention" and node.get_input_size() > 3
    return attention and bool(node.get_input_element_type(3) == openvino.Type.boolean)


def _windows(model: nn.Module) -> bool:
    """Whether some of its tokens see only those near them."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return any(getattr(config, name, None) for config in configs for name in ("sliding_window", "local_attention"))


def _replace(old: Any, new: Any) -> None:
    new.set_friendly_name(old.get_friendly_name())
    replace_node(old, new)


def _look_up(model: Any) -> None:
    """Have tables in int8 looked up as they are: OpenVINO would keep them in fp32, four times as large, rather than convert what is looked up."""
    table, scale, rows, axis = WrapType("opset1.Constant"), WrapType("opset1.Constant"), AnyInput(), WrapType("opset1.Constant")
    scaled = WrapType("opset1.Multiply", [WrapType("opset1.Convert", [table]), scale])
    found = WrapType("opset8.Gather", [scaled, rows, axis])

    def change(matcher: Any) -> bool:
        values, old = matcher.get_pattern_value_map(), matcher.get_match_root()
        if values[axis].get_node().data != 0 or values[scale].get_shape()[:1] != values[table].get_shape()[:1]:
            return False
        taken, factor = (opset13.gather(values[one], values[rows], values[axis]) for one in (table, scale))
        _replace(old, opset13.multiply(opset13.convert(taken, old.get_element_type()), factor))
        return True

    manager = Manager()
    manager.register_pass(MatcherPass(Matcher(found, "look_up"), change))
    manager.run_passes(model)


class _Language:
    """A causal language model that goes on with what caches hold.

    Args:
        run: the model.
        names: of its inputs.
    """

    def __init__(self, run: Run, names: Iterable[str]) -> None:
        self.run = run
        self.ids, self.mask, self.asked = (next(n for n in names if n.endswith(end)) for end in (".input_ids", ".attention_mask", ".asked"))

    def extend(self, ids: Tensor, positions: Tensor, asked: Tensor, cache: Any, seen: Tensor | None) -> Tensor:
        """See `text_generation.Model.extend`."""
        held = held_by(cache)
        before = held[0].shape[2] if held else 0
        mask = torch.ones(len(ids), before + ids.shape[1], dtype=torch.int64)
        mask[:, :before] = torch.arange(before) < positions[:, :1]
        logits, new = self.run.remember({self.ids: ids, self.mask: mask, self.asked: asked}, held)
        for layer in range(len(new) // 2):
            cache.update(new[2 * layer], new[2 * layer + 1], layer)
        return logits


class _Flat(nn.Module):
    """The model with one positional input per tensor, as tracing needs."""

    def __init__(self, model: FusionModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Any:
        batch = dict(zip(self.names, tensors, strict=True))
        if not (past := [batch.pop(name) for name in _past(batch)]):
            return self.model(batch)
        found, new = cast(Any, self.model).remember(batch, past)
        return (found, *new)


def _convert(model: FusionModel, example: dict[str, NDArray[Any]]) -> Any:
    """The model in OpenVINO, all axes of its inputs dynamic but heads and widths, and its inputs named as the tensors are."""
    tensors = tuple(torch.from_numpy(array) for array in example.values())
    # Without a second trace, whose differences only warn: calibration runs the result, and tests compare it with the model.
    traced = TorchScriptPythonDecoder(_Flat(model, list(example)), example_input=tensors, trace_kwargs={"check_trace": False})
    converted = openvino.convert_model(traced)
    for given, name in zip(converted.inputs, example, strict=True):
        given.get_tensor().set_names({name})
    if past := {name: [-1, example[name].shape[1], -1, example[name].shape[3]] for name in _past(example)}:
        converted.reshape(past)
    _mended(converted, _windows(model))
    return converted


@contextmanager
def _one_core() -> Iterator[None]:
    """Have NNCF use this module's."""
    before, openvino.Core = openvino.Core, lambda: _CORE
    try:
        yield
    finally:
        openvino.Core = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without warnings about tracing that the tests of other batch sizes and lengths answer."""
    names = ("", "nncf", "transformers", "torch.utils.cpp_extension")  # the root's level OpenVINO changes where it fails
    console, loggers = rich.get_console(), [logging.getLogger(name) for name in names]
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
