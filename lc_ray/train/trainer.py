"""Who starts a segment: one Ray Train run, whose name is made of what the segment inherits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from lc_ray.errors import DataError, LcRayError, ModelError, SpecError, TrainError, unwrap
from lc_ray.train.segment import RESULT, TRAIN, Post, Segment, SegmentResult, finished

_FAILED = "failed.txt"


def run_segment(segment: Segment, post: Post, own: bool) -> SegmentResult:
    """Train a segment, or return it if it was trained before.

    A segment that was cut off goes on from its last checkpoint: Ray Train restores a run of the same name in the same place.

    Args:
        segment: what to train.
        post: receives progress events.
        own: whether the Ray ends with the run.

    Raises:
        TrainError: it failed more often than `train.workers.max_failures`.
    """
    if done := finished(segment.folder):
        post({"event": "reused", "segment": segment.key, "member": segment.member, "metrics": done.metrics})
        return done
    workers = segment.spec.train.workers
    trainer = (_OwnTrainer if own else TorchTrainer)(
        _train_segment,
        train_loop_config={"segment": segment, "post": post},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpu > 0,
            resources_per_worker={"CPU": workers.cpu} | ({"GPU": workers.gpu} if workers.gpu else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name=TRAIN,
            storage_path=segment.folder.uri,
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[_Restarts(segment, post)],
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        cause, where = unwrap(error), f"segment {segment.key}"
        if isinstance(cause, LcRayError):
            raise cause from None
        if _died(getattr(error, "worker_failures", {}).values()):
            fix = "if its memory ran out: give train.accumulate, a smaller train.batch_size or fewer workers"
            raise TrainError("a worker died, as it does when its machine runs out of memory", where, fix) from error
        fix = ""
        with contextlib.suppress(OSError):  # it may have failed for want of room
            (segment.folder / _FAILED).write_text(str(error))
            fix = f"all of it is in {segment.folder / _FAILED}"
        raise TrainError(f"training failed: {_last_line(error)}", where, fix) from error
    written = finished(segment.folder, RESULT)
    assert written is not None, "rank 0 writes the result before the run ends"
    checkpoint = Path(result.checkpoint.path).name if segment.keeps_optimizer and result.checkpoint else None
    done = dataclasses.replace(written, checkpoint=checkpoint)
    done.write(segment.folder)
    post({"event": "segment", "segment": segment.key, "member": segment.member, "metrics": done.metrics})
    return done


class _OwnTrainer(TorchTrainer):  # type: ignore[misc]
    """Leaves out the actor that takes the workers of a controller that died: it asks the first dashboard of this machine whether the controller
    lives. That of another Ray says no, and a Ray of our own, which has none, ends anyway.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, PlacementGroupCleanerCallback)]


class _Restarts(ray.train.UserCallback):  # type: ignore[misc]
    """Tells why workers are started again; or ends a run at once that would fail again, however often: Ray Train does not restart where its
    controller has failed.
    """

    def __init__(self, segment: Segment, post: Post) -> None:
        self.segment, self.post, self.left = segment, post, segment.spec.train.workers.max_failures

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train with what workers have raised."""
        for error in worker_exceptions.values():
            if isinstance(ours := unwrap(error), DataError | SpecError | ModelError | TrainError):
                raise ray.train.ControllerError(ours)
        if self.left:
            self.left -= 1
            reason = "a worker died" if _died(worker_exceptions.values()) else _last_line(unwrap(next(iter(worker_exceptions.values()))))
            self.post({"event": "restart", "segment": self.segment.key, "member": self.segment.member, "reason": reason})


def _died(failures: Iterable[Exception]) -> bool:
    """Whether a worker's process has ended; others have then lost their connection to it."""
    return any(isinstance(getattr(one, "health_check_failure", one), ray.exceptions.RayActorError) for one in failures)


def _train_segment(config: dict[str, Any]) -> None:
    """Imports torch and DeepSpeed in the worker, not in the process that starts it."""
    from lc_ray.train.loop import train_segment

    train_segment(config)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
