"""The state of a worker group on disk: DeepSpeed's shards of every worker, and what rank 0 knows of the segment so far."""

from __future__ import annotations

import json
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lc_ray.models.load import untied
from lc_ray.storage import StoragePath

_TAG = "deepspeed"
_PROGRESS = "progress.json"  # there once all workers have written their shards


def save(engine: Any, progress: dict[str, Any], folder: StoragePath) -> str:
    """Write a checkpoint, in place of those before, and return its name in the folder. Every worker must call it."""
    name = f"step-{progress['step']}"
    with (folder / name).filled() as here:
        engine.save_checkpoint(str(here), tag=_TAG)
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / name / _PROGRESS).write_text(json.dumps(progress))
        for other in {file.partition("/")[0] for file in folder.files()} - {name}:
            (folder / other).remove()
    return name


def latest(folder: StoragePath) -> str | None:
    """Name of the last whole checkpoint in a folder, for all workers as rank 0 sees it: a shared file system may show others an older state."""
    whole = [file.partition("/")[0] for file in folder.files() if file.endswith(f"/{_PROGRESS}")] if dist.get_rank() == 0 else []
    found = [max(whole, key=lambda name: int(name.rpartition("-")[2]), default=None)]
    dist.broadcast_object_list(found)
    return found[0]


def restore(engine: Any, folder: StoragePath) -> dict[str, Any]:
    """Load weights, optimizer and progress from a checkpoint of as many workers."""
    with folder.here() as here:
        loaded, _ = engine.load_checkpoint(str(here), tag=_TAG)
    if loaded is None:
        raise RuntimeError(f"no DeepSpeed checkpoint in {folder}")
    return json.loads((folder / _PROGRESS).read_text())  # type: ignore[no-any-return]


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, gathered one by one where ZeRO-3 has sharded them. Every worker must call it, and others are given none:
    a node's memory may not have room for as many copies as it has GPUs.
    """
    module: nn.Module = engine.module
    first = dist.get_rank() == 0
    if engine.zero_optimization_stage() < 3:
        return {k: v.detach().cpu() for k, v in untied(module.state_dict()).items()} if first else {}
    weights = {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if first and name in module.state_dict()}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]), torch.no_grad():
            if first:
                weights[name] = parameter.detach().cpu().clone()
    return weights
