"""What Ray Train starts for a group of workers, and what each of them does."""

from __future__ import annotations

import uuid
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from lc_ray.errors import TrainError
from lc_ray.spec import WorkersSpec
from lc_ray.storage import StoragePath
from lc_ray.train import plan

_SMALLER = "raise train.accumulate, lower train.batch_size, or, with several workers, set train.zero.stage: 3 or train.zero.offload: cpu"
_NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}  # of workers that have asked for none: Ray would let them see, and PyTorch and DeepSpeed use, others' GPUs


def trainer(config: dict[str, Any], workers: WorkersSpec, folder: StoragePath, own: bool) -> TorchTrainer:
    """A Ray Train run of workers that ask `config["groups"]` for their work.

    Args:
        config: the actor `groups`, the group's `place` in it, and `post`, which receives progress events.
        workers: how many, and what each has.
        folder: for what Ray Train keeps of the run while it lasts.
        own: whether the Ray ends with the run.
    """
    return (_OwnTrainer if own else TorchTrainer)(
        _work,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu > 0,
            resources_per_worker=plan.reserved(workers),
        ),
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        run_config=ray.train.RunConfig(name=uuid.uuid4().hex, **folder.of_ray, worker_runtime_env={} if workers.gpu else {"env_vars": _NO_GPUS}),
    )


class _OwnTrainer(TorchTrainer):  # type: ignore[misc]
    """Leaves out the actor that takes the workers of a controller that died: it asks the first dashboard of this machine whether the controller
    lives. That of another Ray says no, and a Ray of our own, which has none, ends anyway.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, PlacementGroupCleanerCallback)]


def _work(config: dict[str, Any]) -> None:
    """What each worker does. It imports torch and DeepSpeed there, not in the process that starts it.

    Raises:
        TrainError: its GPU's memory is too small, which another try would not change.
    """
    from torch import OutOfMemoryError

    from lc_ray.train.loop import train_segment

    groups, place, seen, me = config["groups"], config["place"], 0, ray.get_runtime_context().current_actor
    while given := ray.get(groups.given.remote(place, seen, me)):
        seen, segment = given
        try:
            train_segment(segment, config["post"])
        except OutOfMemoryError as error:
            told = ". ".join(str(error).split(". ")[:3])  # how much was wanted, and what there is; the rest is of PyTorch's allocator
            raise TrainError(f"a GPU's memory is too small: {told}", f"segment {segment.key}", _SMALLER) from error
        if ray.train.get_context().get_world_rank() == 0:
            ray.get(groups.ended.remote(place, seen))
        if segment.spec.train.zero.stage == 3:  # of which DeepSpeed lets go only with the process
            return


