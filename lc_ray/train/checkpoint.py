"""The state of a worker group on disk: DeepSpeed's shards of every worker, and what rank 0 knows of the segment so far."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
import torch
from torch import Tensor, nn

from lc_ray.models.load import untied

_TAG = "deepspeed"
_PROGRESS = "progress.json"


def save(engine: Any, progress: dict[str, Any], metrics: dict[str, float]) -> None:
    """Hand this worker's shard to Ray Train, which gathers those of all workers. A barrier for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag=_TAG)
        if ray.train.get_context().get_world_rank() == 0:
            (Path(folder) / _PROGRESS).write_text(json.dumps(progress), "utf-8")
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(engine: Any, path: str | Path) -> dict[str, Any]:
    """Load weights, optimizer and progress from a checkpoint of as many workers."""
    loaded, _ = engine.load_checkpoint(str(path), tag=_TAG)
    if loaded is None:
        raise RuntimeError(f"no DeepSpeed checkpoint in {path}")
    return json.loads((Path(path) / _PROGRESS).read_text("utf-8"))  # type: ignore[no-any-return]


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, gathered one by one where ZeRO-3 has sharded them. Every worker must call it."""
    module: nn.Module = engine.module
    if engine.zero_optimization_stage() < 3:
        return {k: v.detach().cpu() for k, v in untied(module.state_dict()).items()}
    weights = {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in module.state_dict()}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]), torch.no_grad():
            weights[name] = parameter.detach().cpu().clone()
    return weights
