"""A job's training section as DeepSpeed's configuration."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from lc_ray.errors import TrainError
from lc_ray.spec import ModelSpec, TrainSpec

if TYPE_CHECKING:
    import torch

_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # instructions of x86, and of ARM
_NEVER = 10**9


def config(train: TrainSpec, model: ModelSpec) -> dict[str, Any]:
    """DeepSpeed's configuration as a dict. The optimizer is handed to it by the loop.

    Weights stay fp32 and bf16 is autocast around the matrix products: as fast on CPU as bf16 weights with an fp32 master copy, and
    what is saved is what was trained.
    """
    alone = train.workers.count == 1 and train.zero.offload == "none"  # nobody to shard with: only the bookkeeping would be left
    zero: dict[str, Any] = {"stage": 0 if alone else train.zero.stage}
    if train.zero.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch // train.workers.count,
        "gradient_accumulation_steps": train.accumulate,
        "gradient_clipping": train.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
        # Read by the loop to tell communication from computation. On GPUs both go on at a time, and each operation that is timed would end that.
        "comms_logger": {"enabled": not train.workers.gpu, "prof_all": True, "verbose": False, "debug": False},
    }
    if model.dtype == "bf16":
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # whose gradients, and with ZeRO-3 weights, would travel in bf16; all are computed in it
        }
    return settings


def emulates_bf16(device: torch.device) -> str:
    """The name of a device that has no bf16 and but emulates it, on a CPU with AVX2 at a fifth of the speed of fp32; empty if it has."""
    import torch

    if device.type == "cuda":
        return "" if torch.cuda.is_bf16_supported(including_emulation=False) else torch.cuda.get_device_name(device)
    known = torch.cpu.get_capabilities()
    return "" if any(known.get(name) for name in _BF16) else known.get("cpu_name", "this CPU")


def build() -> None:
    """Compile the shared-memory communication op that DeepSpeed uses between workers on one CPU node, unless it was compiled before.

    By the ninja that is installed beside this Python: it need not be on the path, and another version there would compile everything anew.

    Raises:
        TrainError: it can't be compiled.
    """
    import ninja
    import torch
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    op = ShareMemCommBuilder()
    if torch.cuda.is_available() or not op.is_compatible():
        return
    if not (path := os.environ.get("PATH", "")).startswith(f"{ninja.BIN_DIR}{os.pathsep}"):  # of a worker's segment before
        os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{path}"
    try:
        op.load()
    except Exception as error:
        if shutil.which(compiler := os.environ.get("CXX", "c++")):
            raise TrainError(f"DeepSpeed's communication op can't be compiled: {error}") from error
        fix = "install one, such as g++, on every node"
        raise TrainError(f"no C++ compiler ({compiler}) to make DeepSpeed's communication op", fix=fix) from error
