"""A segment: a run of training steps that starts from one artifact and ends in another. All decided here, without Ray."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lc_ray.data.batch import steps_per_epoch
from lc_ray.errors import SpecError, TrainError
from lc_ray.spec import JobSpec, TrainSpec, digest, minimised, parse
from lc_ray.storage import StoragePath

Post = Callable[[dict[str, Any]], None]  # receives events of progress
RECORD = "segment.json"  # written by rank 0, last
CHECKPOINTS = "checkpoints"  # folder beside it


@dataclass(frozen=True)
class Segment:
    """What a segment does. Its key is made of all that its result depends on, so equal segments are trained once.

    Attributes:
        job: the job with this member's genes, as a dict.
        prepared: folder of the prepared dataset.
        store: folder in which segments are kept by key.
        number: from 0.
        rows: training rows.
        parent: key of the segment it continues, if any.
        dense: key of the last unpruned ancestor, the teacher of pruned ones.
        member: who trains it.
        removed: fraction of the prunable parameters that its parent lost, whose genes may ask for another.
    """

    job: dict[str, Any]
    prepared: StoragePath
    store: StoragePath
    number: int
    rows: int
    parent: str | None = None
    dense: str | None = None
    member: int = 0
    removed: float = 0.0

    @functools.cached_property
    def spec(self) -> JobSpec:
        """The job with this member's genes."""
        return parse(self.job)

    @functools.cached_property
    def key(self) -> str:
        """Its name on disk. How it will be pruned later does not change what it is until then."""
        s = self.spec
        prune = s.prune if self.pruned else None
        train = s.train.model_dump(mode="json", exclude={"workers": {"cpu", "max_failures"}})
        encoders = [i.model_dump(mode="json", include={"rate", "weights", "augment"}) for i in s.inputs()]  # the rest is in the data's name
        steps, measured = [self.first, self.until, *self.phase], [s.evaluate.rows, s.search is not None]
        return digest(s.model, encoders, train, prune, self.seed, self.prepared.name, steps, self.parent, self.dense, self.removed, measured)

    @property
    def seed(self) -> int:
        """Of its batches and dropout: members with equal genes still differ."""
        return self.spec.seed + 1_000_003 * self.member

    @property
    def folder(self) -> StoragePath:
        """Where its record, artifact and checkpoints are."""
        return self.store / self.key

    @property
    def checkpoints(self) -> StoragePath:
        """Where its own checkpoints are."""
        return self.folder / CHECKPOINTS

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return total_steps(self.spec.train, self.rows)

    def boundary(self, number: int) -> int:
        """Step at which segment `number` starts: none is without a step, wherever pruning starts."""
        after = self.spec.train.segments - number
        return max(number, min(self.total - after, round(self.total * self.spec.starts()[number])))

    @property
    def first(self) -> int:
        """Its first step."""
        return self.boundary(self.number)

    @property
    def until(self) -> int:
        """The step it stops before: absolute, so that a retried segment takes no more steps than a lucky one."""
        return self.boundary(self.number + 1)

    def told(self, step: int) -> bool:
        """Whether a step's loss is reported: of 200 steps of the training at most, and of the last of each segment."""
        return step % -(-self.total // 200) == 0 or step + 1 == self.until

    @property
    def phase(self) -> tuple[int, int]:
        """First and last step of the phase, dense or pruned, over which the learning rate rises and falls."""
        change = self.boundary(self.spec.dense_segments())
        return (0, change) if self.first < change else (change, self.total)

    @property
    def pruned(self) -> float:
        """Fraction of the prunable parameters that is gone while it trains."""
        return max(self.removed, removed_at(self.spec, self.number))

    @property
    def prunes(self) -> bool:
        """Whether it starts by pruning further than its parent."""
        return self.pruned > self.removed

    @property
    def keeps_optimizer(self) -> bool:
        """Whether a later segment can go on with its optimizer state: not after the last, nor when the next changes shapes."""
        last = self.number + 1 == self.spec.train.segments
        return not last and not replace(self, number=self.number + 1, removed=self.pruned).prunes

    def lost(self) -> Segment | None:
        """The segment that this one goes on from, if that has to be trained anew, as its optimizer's state went with the end of its search.

        Raises:
            TrainError: it is of other settings.
        """
        one = finished(self.store / self.parent) if self.parent and not self.prunes else None
        if one is None or one.checkpoint is None or (self.store / one.key / CHECKPOINTS / one.checkpoint).files():
            return None
        before = finished(self.store / one.parent) if one.parent else None
        dense, removed = (before.dense, before.pruned) if before else (None, 0.0)
        job = self.spec.set(one.genes).model_dump(mode="json")
        found = Segment(job, self.prepared, self.store, one.number, self.rows, one.parent, dense, one.member, removed)
        if found.key != one.key:
            raise TrainError("the state of its optimizer is gone", str(self.store / one.key), f"remove {self.store}: all is trained anew")
        return found

    def require_objective(self, metrics: dict[str, float]) -> None:
        """Whether its metrics have the search's objective: which ones a task has shows when a segment has ended.

        Raises:
            SpecError: names those that could be it.
        """
        objective = self.spec.search and self.spec.search.objective
        if objective and objective not in metrics:
            known = [name for name in metrics if not minimised(name)]
            raise SpecError(f"the task has no metric '{objective}'", "search.objective", f"use one of {', '.join(known)}; what was trained is kept")


@dataclass(frozen=True)
class SegmentResult:
    """What a finished segment leaves in `segment.json`. Times are rank 0's, in seconds; `checkpoint` is what a later segment goes on from."""

    key: str
    number: int
    member: int
    parent: str | None
    dense: str
    pruned: float
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds: dict[str, float]
    checkpoint: str | None
    genes: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: StoragePath) -> None:
        """Write the record. Once it is there the segment is finished."""
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1))


def finished(folder: StoragePath) -> SegmentResult | None:
    """The record of a segment, if it was finished, by this lc_ray or one that kept the same of it."""
    path = folder / RECORD
    try:
        return SegmentResult(**json.loads(path.read_text())) if path.exists() else None
    except (TypeError, ValueError):
        return None


def removed_at(job: JobSpec, number: int) -> float:
    """Fraction of the prunable parameters that is gone once a segment has started.

    A cubic ramp (Zhu and Gupta 2017, arXiv:1710.01878) over the segments that start between `prune.start` and `prune.end`: fast while
    there is much to spare, then slower.
    """
    prune, dense = job.prune, job.dense_segments()
    if prune is None or number < dense:
        return 0.0
    end = prune.end if prune.end is not None else prune.start
    steps = max(1, sum(1 for start in job.starts()[dense:-1] if start <= end + 1e-9))
    done = min(1.0, (number - dense + 1) / steps)
    return prune.parameters * (1 - (1 - done) ** 3)


def total_steps(train: TrainSpec, rows: int) -> int:
    """Steps of a whole training on so many rows."""
    return max(train.segments, round(train.epochs * steps_per_epoch(rows, train.batch_size)))


def learning_rate(peak: float, step: int, phase: tuple[int, int], warmup: float) -> float:
    """Linear rise over the first `warmup` part of a phase, then linear fall to 0 at its end."""
    first, last = phase
    length = max(1, last - first)
    rise = max(1.0, warmup * length)
    done = step - first
    return peak * min(1.0, (done + 1) / rise) * max(0.0, min(1.0, (length - done) / max(1.0, length - rise)))
