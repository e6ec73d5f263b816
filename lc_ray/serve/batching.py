"""Dynamic batching: rows of concurrent requests run together, those of like size first, on one thread beside the event loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lc_ray.models.batches import prepare
from lc_ray.predictor import Predictor, Rows
from lc_ray.serve import record
from lc_ray.serve.grouping import Grouping

_AHEAD = 32  # batches of rows that are prepared: to choose among all that may wait would take longer than to run a batch


class QueueFull(Exception):
    """Too many requests wait."""


@dataclass(eq=False, slots=True)
class _Job:
    """One request's rows, and where their answers go.

    Attributes:
        arrived, taken, ready, begun, done: when it came, was taken to be prepared, was prepared, had its first batch run, and its last.
    """

    rows: list[dict[str, Any]]
    future: asyncio.Future[list[Any]]
    arrived: float = field(default_factory=time.monotonic)
    taken: float = 0.0
    ready: float = 0.0
    begun: float = 0.0
    done: float = 0.0
    answers: dict[int, Any] = field(default_factory=dict)

    def spans(self) -> list[tuple[str, float, float]]:
        """What its time went to, for its record."""
        return [
            ("queue", self.arrived, self.taken),
            ("prepare", self.taken, self.ready),
            ("queue", self.ready, self.begun),
            ("infer", self.begun, self.done),
        ]


@dataclass(eq=False, slots=True)
class _Row:
    """A prepared row of a job."""

    job: _Job
    index: int
    parts: dict[str, Any]


class Batcher:
    """Runs rows in batches.

    Its thread sleeps until a row comes. If it answered several requests before, it waits until as many rows have come again, since a batch costs
    something by itself, whatever its rows; a lone client is never kept waiting, nor are rows that would not run together. It tokenises while it
    waits, and runs the oldest row with those that are best run beside it, see `Grouping`.

    Args:
        predictor: the model.
        rows: most rows in a batch.
        wait: how long a batch waits for company, in seconds.
        queue: most requests that may wait.
        seen: called with the prepared rows of each batch, and their answers, once these are delivered.
    """

    def __init__(self, predictor: Predictor, rows: int, wait: float, queue: int, seen: Callable[[Rows, list[Any]], None] | None = None) -> None:
        self.predictor, self.rows, self.wait, self.queue, self.seen = predictor, rows, wait, queue, seen
        self._grouping = Grouping(rows)
        self._changed = threading.Condition()
        self._fresh: list[_Job] = []  # not prepared yet
        self._ready: list[_Row] = []  # prepared, in order of arrival; only the thread touches it
        self._left = 0  # requests taken from `_fresh` that still have rows to run
        self._wanted = math.inf  # rows that wake the thread; while it works, none do
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether rows can be run."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that have rows to run."""
        return len(self._fresh) + self._left

    async def run(self, rows: list[dict[str, Any]]) -> list[Any]:
        """Answers to one request's clean rows, in their order. Cancelling it drops the rows that have not run.

        Raises:
            QueueFull: too many requests wait.
        """
        if not rows:
            return []
        job = _Job(rows, asyncio.get_running_loop().create_future())
        with self._changed:
            if self.waiting >= self.queue:
                raise QueueFull
            self._fresh.append(job)
            if self._fresh_rows() >= self._wanted:
                self._changed.notify()
        answers = await job.future
        record.current().spans += job.spans()
        return answers

    def close(self) -> None:
        """End the thread once its batch is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _fresh_rows(self) -> int:
        return sum(len(job.rows) for job in self._fresh)

    def _work(self) -> None:
        expected = 0
        while True:
            parted = bool(self._ready)
            self._gather(expected)
            if self._closed:
                return
            batch = self._take()
            together = len({id(row.job) for row in batch}) > 1 and not parted and not self._ready
            came = self._answer(batch) if batch else 0
            expected = min(self.rows, came + len(batch)) if together else 0

    def _gather(self, expected: int) -> None:
        """Prepare rows until there is something to run and those that are expected came; half of what is missing at a time, while others come."""
        if not self._ready:
            self._admit(1)
        until = time.monotonic() + self.wait
        while (missing := expected - len(self._ready)) > 0 and time.monotonic() < until and not self._closed:
            self._admit(math.ceil(missing / 2), until)
        self._admit(0)

    def _admit(self, wanted: int, until: float = math.inf) -> None:
        """Prepare the rows that came, once they are as many as wanted."""
        with self._changed:
            self._wanted = wanted
            while self._fresh_rows() < wanted and not self._closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(None if left == math.inf else left)
            self._wanted = math.inf
            fresh, room = list[_Job](), _AHEAD * self.rows - len(self._ready)
            while self._fresh and room > 0:
                fresh.append(self._fresh.pop(0))
                room -= len(fresh[-1].rows)
            self._left += len(fresh)
        self._ready += self._prepared(fresh)

    def _prepared(self, jobs: list[_Job]) -> list[_Row]:
        """Rows of jobs; a job that can't be prepared fails alone."""
        if not jobs:
            return []
        rows, taken = [row for job in jobs for row in job.rows], time.monotonic()
        try:
            parts = prepare({name: [row[name] for row in rows] for name in rows[0]}, self.predictor.columns)
        except Exception as error:
            if len(jobs) > 1:
                return [row for job in jobs for row in self._prepared([job])]
            self._fail(jobs[0], error)
            return []
        ready = time.monotonic()
        for job in jobs:
            job.taken, job.ready = taken, ready
        owners = [(job, index) for job in jobs for index in range(len(job.rows))]
        return [_Row(job, index, {name: values[i] for name, values in parts.items()}) for i, (job, index) in enumerate(owners)]

    def _take(self) -> list[_Row]:
        """The next batch, without rows that nobody waits for any more."""
        waiting = [row for row in self._ready if not row.job.future.done()]
        chosen = self._grouping.choose([row.parts["_size"] for row in waiting])
        taken = set(chosen)
        self._ready = [row for i, row in enumerate(waiting) if i not in taken]
        with self._changed:
            self._left = len({id(row.job) for row in self._ready})
        return [waiting[i] for i in chosen]

    def _answer(self, batch: list[_Row]) -> int:
        """Run a batch; if it fails, run each of its requests alone, so that one can't fail its neighbours.

        Returns:
            Rows that came while it ran, before any that its answers led to.
        """
        begun = time.monotonic()
        try:
            merged = {name: [row.parts[name] for row in batch] for name in batch[0].parts}
            answers = self.predictor.answers(merged, len(batch))
        except Exception as error:
            jobs = {id(row.job): row.job for row in batch}
            if len(jobs) > 1:
                return [self._answer([row for row in batch if row.job is job]) for job in jobs.values()][-1]
            self._fail(batch[0].job, error)
            return 0
        done, now = [], time.monotonic()
        for row, answer in zip(batch, answers, strict=True):
            row.job.answers[row.index] = answer
            row.job.begun, row.job.done = row.job.begun or begun, now
            if len(row.job.answers) == len(row.job.rows):
                done.append(row.job)
        came = self._fresh_rows()
        if done:
            done[0].future.get_loop().call_soon_threadsafe(_deliver, done)
        self._grouping.ran(len(batch), max(merged["_size"]), now - begun)
        if self.seen:
            self.seen(merged, answers)
        return came

    def _fail(self, job: _Job, error: Exception) -> None:
        traceback.clear_frames(error.__traceback__)  # which hold the engine for as long as the error is held, and that may be to go
        job.future.get_loop().call_soon_threadsafe(_deliver_error, job, error)


def _deliver_error(job: _Job, error: Exception) -> None:
    if not job.future.done():
        job.future.set_exception(error)


def _deliver(jobs: list[_Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_result([job.answers[i] for i in range(len(job.rows))])
