"""Who starts segments: Ray Train runs, whose workers train one segment after the other."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import ray

from lc_ray.errors import LcRayError, SpecError, TrainError, unwrap
from lc_ray.spec import WorkersSpec
from lc_ray.storage import StoragePath
from lc_ray.train.segment import Post, Segment, SegmentResult, finished

_FAILED = "failed.txt"


class WorkerGroups:
    """Trains so many segments at a time, each on a group of workers that outlives it: what starting processes costs is paid once.

    An actor. A member that asks again for what is being trained, since it was restarted, waits for the same.

    Args:
        count: of groups; one starts when it is first needed.
        workers: of each.
        folder: for what Ray Train keeps of a run while it lasts.
        post: receives progress events.
        own: whether the Ray ends with the run.
    """

    def __init__(self, count: int, workers: WorkersSpec, folder: StoragePath, post: Post, own: bool) -> None:
        from lc_ray.train.worker import trainer  # torch, which takes seconds and which members of a search, who import this file, do without

        self._post = post
        made = functools.partial(trainer, workers=workers, folder=folder, own=own)
        self._groups = [_Group(place, made, workers.max_failures, post) for place in range(count)]
        self._free: asyncio.LifoQueue[_Group] = asyncio.LifoQueue()  # the last one that was used is the one whose workers have started
        for group in reversed(self._groups):
            self._free.put_nowait(group)
        self._training: dict[str, asyncio.Task[SegmentResult]] = {}
        self._done: dict[str, None] = {}
        self._wrong: SpecError | None = None

    async def train(self, segment: Segment, anew: bool = False) -> SegmentResult:
        """Train a segment, or return it if it was trained before, unless it is to be `anew`. One that was cut off goes on from its last checkpoint.

        Raises:
            SpecError: the task does not measure the search's objective, as this segment or one before has shown.
            TrainError: it failed more often than `train.workers.max_failures`.
        """
        task = self._training.get(segment.key)
        if task is None:
            task = self._training[segment.key] = asyncio.create_task(self._train(segment, anew))
            task.add_done_callback(lambda _: self._training.pop(segment.key))
        return await asyncio.shield(task)

    async def _train(self, segment: Segment, anew: bool) -> SegmentResult:
        result = None if anew else await asyncio.to_thread(finished, segment.folder)
        if result is None and (lost := await asyncio.to_thread(segment.lost)):
            await self.train(lost, anew=True)
        group = await self._free.get()
        try:
            if self._wrong:
                raise self._wrong
            event = "segment" if result is None else "reused"
            result = result or await group.train(segment)
            self._post({"event": event, "segment": segment.key, "member": segment.member, "metrics": result.metrics})
            segment.require_objective(result.metrics)
            self._done[segment.key] = None
            return result
        except SpecError as error:
            self._wrong = error
            raise
        finally:
            self._free.put_nowait(group)

    async def done(self) -> list[str]:
        """Keys of what was trained, in order: Tune forgets what a loser had reported."""
        return list(self._done)

    async def given(self, place: int, seen: int, worker: Any) -> tuple[int, Segment] | None:
        """Asked by workers: the first segment after the `seen` that their group was given, once there is one, and its number; None at the end."""
        return await self._groups[place].given(seen, worker)

    async def ended(self, place: int, number: int) -> None:
        """Told by a group's first worker: what it was given as `number` is on disk."""
        self._groups[place].ended(number)

    async def close(self) -> None:
        """End all workers, whatever they are at, and wait until they have: without this, Ray would keep their room until its driver ends."""
        await asyncio.gather(*(group.close() for group in self._groups))


class _Group:
    """A Ray Train run, and the segment that its workers are at."""

    def __init__(self, place: int, trainer: Callable[[dict[str, Any]], Any], failures: int, post: Post) -> None:
        self._place, self._trainer, self._failures, self._post = place, trainer, failures, post
        self._all = ray.get_runtime_context().current_actor
        self._run: asyncio.Task[Exception | None] | None = None
        self._number, self._segment, self._closed = 0, cast("Segment | None", None), False
        self._changed, self._ended, self._actors = asyncio.Condition(), asyncio.Event(), list[Any]()

    async def train(self, segment: Segment) -> SegmentResult:
        self._ended.clear()
        async with self._changed:
            self._number, self._segment = self._number + 1, segment
            self._changed.notify_all()
        left = self._failures
        while True:
            if self._closed:
                raise TrainError("the search has ended", f"segment {segment.key}")
            if self._run is None or self._run.done():
                self._run = asyncio.create_task(asyncio.to_thread(self._fit))
            end = asyncio.create_task(self._ended.wait())
            await asyncio.wait({end, self._run}, return_when=asyncio.FIRST_COMPLETED)
            end.cancel()
            if self._ended.is_set():
                result = await asyncio.to_thread(finished, segment.folder)
                assert result is not None, "rank 0 writes the record before it tells"
                return result
            error = self._run.result()
            if self._closed or error is None:  # the latter where they ended after the segment before
                continue
            if isinstance(ours := unwrap(error), LcRayError):
                raise ours from None
            if not left:
                raise _failed(error, segment) from error
            left -= 1
            failures = getattr(error, "worker_failures", {})
            reason = "a worker died" if _died(failures.values()) else _last_line(next(iter(failures.values()), error))
            self._post({"event": "restart", "segment": segment.key, "member": segment.member, "reason": reason})

    async def given(self, seen: int, worker: Any) -> tuple[int, Segment] | None:
        if not seen:
            self._actors.append(worker)
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._number > seen)
        return None if self._closed or self._segment is None else (self._number, self._segment)

    def ended(self, number: int) -> None:
        if number == self._number:
            self._ended.set()

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._segment and not self._ended.is_set():
            for worker in self._actors:
                ray.kill(worker)
        if self._run:
            await self._run

    def _fit(self) -> Exception | None:
        """Start the workers, and wait for their end. Failures are counted by segment, so Ray Train is not to restart them."""
        self._actors = []
        config = {"groups": self._all, "place": self._place, "post": self._post}
        try:
            self._trainer(config).fit()
        except Exception as error:
            return error
        return None


def _failed(error: Exception, segment: Segment) -> TrainError:
    """What is told of a segment that failed for good."""
    where = f"segment {segment.key}"
    if _died(getattr(error, "worker_failures", {}).values()):
        fix = "if its memory ran out: give train.accumulate, a smaller train.batch_size or fewer workers"
        return TrainError("a worker died, as it does when its machine runs out of memory", where, fix)
    fix = f"all of it is in {segment.folder / _FAILED}"
    try:
        (segment.folder / _FAILED).write_text(str(error))
    except OSError:  # of which it may have failed
        fix = "nothing can be written to `storage` by now: make room in it, or see to the rights and credentials for it"
    return TrainError(f"training failed: {_last_line(error)}", where, fix)


def _died(failures: Iterable[Exception]) -> bool:
    """Whether a worker's process has ended, by itself or by Ray, whose node is short of memory; others have then lost their connection to it."""
    ended = ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError
    return any(isinstance(getattr(one, "health_check_failure", one), ended) for one in failures)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
