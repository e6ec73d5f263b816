"""Ray Tune's population-based training over segments.

One segment per Tune iteration, and a pointer as Tune's checkpoint: exploits then happen while no member trains, and what a member
inherits is the name of a segment. Genes are drawn and perturbed here, by seed, so that a search that is started again asks
for the same segments and finds those that were finished.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from lc_ray import runtime
from lc_ray.errors import LcRayError, TrainError, first_line, unwrap
from lc_ray.runs import TRAIN, TUNE
from lc_ray.spec import JobSpec
from lc_ray.storage import StoragePath
from lc_ray.train.segment import CHECKPOINTS, Post, Segment, SegmentResult, finished
from lc_ray.train.trainer import WorkerGroups
from lc_ray.tune.space import Genes, draw, perturb

_POINTER = "pointer.json"
_ENDS = 10.0  # seconds that workers may take to end
_OTHERS = 64  # calls that wait for nothing
_HEAD = "node:__internal_head__"  # members wait there for their workers: a share of a CPU would keep the last worker from fitting


@dataclass(frozen=True)
class Pointer:
    """What a member hands on: where it is, by name.

    Attributes:
        member: who wrote it.
        results: keys of its segments so far, oldest first.
        dense: key of its last unpruned segment.
        pruned: fraction of the prunable parameters that is gone.
        genes: those it trained with.
    """

    member: int
    results: tuple[str, ...]
    dense: str | None
    pruned: float
    genes: Genes


@dataclass(frozen=True)
class Search:
    """What all members share."""

    job: JobSpec
    prepared: StoragePath
    rows: int
    store: StoragePath
    groups: Any  # WorkerGroups, the actor
    post: Post

    def segment(self, pointer: Pointer | None, member: int, genes: Genes) -> Segment:
        """The segment that a member trains after a pointer's."""
        job = self.job.set(genes).model_dump(mode="json")
        if pointer is None:
            return Segment(job, self.prepared, self.store, 0, self.rows, member=member)
        number, parent = len(pointer.results), pointer.results[-1]
        return Segment(job, self.prepared, self.store, number, self.rows, parent, pointer.dense, member, pointer.pruned)

    def advance(self, pointer: Pointer | None, member: int) -> tuple[SegmentResult, Pointer]:
        """Train the segment after a pointer's, with new genes where the pointer is another member's."""
        spec, number = self.job.search, len(pointer.results) if pointer else 0
        genes = pointer.genes if pointer else draw(spec, member, self.job.seed) if spec else {}
        if spec and pointer and pointer.member != member:
            genes = perturb(spec, genes, member, number, self.job.seed)
            self.post({"event": "exploit", "member": member, "donor": pointer.member, "before": pointer.genes, "genes": genes})
        result = ray.get(self.groups.train.remote(self.segment(pointer, member, genes)))
        before = pointer.results if pointer else ()
        return result, Pointer(member, (*before, result.key), result.dense, result.pruned, genes)


def search(job: JobSpec, prepared: StoragePath, rows: int, store: StoragePath, slots: int, objective: str, post: Post) -> list[SegmentResult]:
    """Train the population, or a single member where the job has no `search`.

    Args:
        job: the job.
        prepared: folder of the prepared dataset.
        rows: its training rows.
        store: folder for segments.
        slots: members that may train at the same time.
        objective: validation metric to maximise.
        post: receives progress events.

    Returns:
        Every segment trained, of all members.

    Raises:
        SpecError: the objective is none of the task's metrics.
        TrainError: every member failed; the first one's reason.
    """
    folder = store.parent / TRAIN
    waiting = job.members + slots * job.train.workers.count
    options = runtime.beside() | {"max_concurrency": waiting + _OTHERS}  # each waits in a call; of Ray's own 1,000, no other may come
    groups = ray.remote(**options)(WorkerGroups).remote(slots, job.train.workers, folder, post, runtime.own())
    shared = Search(job, prepared, rows, store, groups, post)
    try:
        results = _alone(shared) if job.search is None else _population(shared, objective)
    except ray.exceptions.RayTaskError as error:
        raise unwrap(error) from None
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(groups.close.remote(), timeout=_ENDS)
        ray.kill(groups)
    folder.remove()
    forget(results, store)
    return results


def forget(results: list[SegmentResult], store: StoragePath) -> None:
    """Remove the optimizers' states of a search all of whose segments are trained: each is several times the size of a model."""
    for one in results:
        if one.checkpoint:
            (store / one.key / CHECKPOINTS).remove()


def _population(shared: Search, objective: str) -> list[SegmentResult]:
    """The segments of all members, as Tune has them go on."""
    job, store, search = shared.job, shared.store, shared.job.search
    assert search is not None
    scheduler = _InStep(
        time_attr="training_iteration",
        metric=objective,
        mode="max",
        perturbation_interval=1,
        quantile_fraction=search.quantile,
        custom_explore_fn=_same,  # genes are perturbed by the member that inherits them, which knows who it is
        synch=True,
        log_config=False,
        seed=job.seed,
    )
    folder = store.parent / TUNE
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_member, shared=shared, objective=objective), {_HEAD: 0.001}),
        param_space={"member": tune.grid_search(list(range(search.population)))},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(
            **folder.of_ray, verbose=0, failure_config=tune.FailureConfig(max_failures=1), callbacks=[_Lost(shared.post)]
        ),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consider boosting PBT")  # by reusing actors: a member's holds nothing worth keeping
        found = tuner.fit()
    results = [r for key in ray.get(shared.groups.done.remote()) if (r := finished(store / key))]
    if not any(r.number + 1 == job.train.segments for r in results):
        errors = [unwrap(e) for e in found.errors]
        ours = next((e for e in errors if isinstance(e, LcRayError)), None)
        raise ours or TrainError(f"every member of the population failed: {errors[0] if errors else 'no result'}")
    folder.remove()  # pointers and logs of a search that is over
    return results


class _InStep(PopulationBasedTraining):  # type: ignore[misc]
    """PBT in step that draws donors by seed, and goes on without a member that fails for good: Ray's own has the others wait for it for ever."""

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seed = seed

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        """Called by Tune with what a member reports."""
        for one in tune_controller.get_trials():
            if one.status == one.ERROR:
                self._in_step(one)
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Called by Tune of a member that fails, whose status says so only if it is about to be restarted."""
        if trial.status == trial.ERROR:
            return
        self._in_step(trial)
        self._trial_state[trial].last_score = None  # nobody's donor
        others = [one for one in tune_controller.get_trials() if one is not trial and not one.is_finished()]
        if others and all(self._trial_state[one].last_train_time >= self._next_perturbation_sync for one in others):
            self.on_trial_result(tune_controller, others[0], self._trial_state[others[0]].last_result)

    def _checkpoint_or_exploit(self, trial: Any, tune_controller: Any, upper_quantile: list[Any], lower_quantile: list[Any]) -> None:
        """Called by Tune of each member once all are in step. Its own choice among donors differs from run to run."""
        if trial in lower_quantile:
            random = np.random.default_rng([self._seed, _number(trial.trial_id), int(self._trial_state[trial].last_train_time)])
            donors = sorted(upper_quantile, key=lambda one: _number(one.trial_id))
            upper_quantile = [donors[random.integers(len(donors))]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _in_step(self, lost: Any) -> None:
        self._trial_state[lost].last_train_time = self._next_perturbation_sync


class _Lost(tune.Callback):  # type: ignore[misc]
    """Tells of a member that fails for good."""

    def __init__(self, post: Post) -> None:
        self.post = post

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune once it restarts the member no more."""
        self.post({"event": "lost", "member": _number(trial.trial_id)})


def _number(trial: str) -> int:
    """A member's, by the id of its trial."""
    return int(trial.rpartition("_")[2])


def _alone(shared: Search) -> list[SegmentResult]:
    """The segments of a single member, one after the other."""
    results, pointer = [], None
    for _ in range(shared.job.train.segments):
        result, pointer = shared.advance(pointer, member=0)
        results.append(result)
    return results


def _member(config: dict[str, Any], shared: Search, objective: str) -> None:
    """A member's life, as Tune runs it. After an exploit it starts from the donor's pointer.

    One whose segment fails, as by a learning rate that is too high, is the worst of its round, and so goes on as another's heir. It is lost if there
    is none to inherit from and it fails again.
    """
    member = _number(tune.get_context().get_trial_id())  # `config` is the donor's after an exploit
    pointer, failed = None, None
    if inherited := tune.get_checkpoint():
        with inherited.as_directory() as folder:
            pointer, failed = _read(Path(folder))
    segments = shared.job.train.segments
    while pointer is None or len(pointer.results) < segments:
        try:
            result, pointer = shared.advance(pointer, member)
            score, failed = result.metrics[objective], None
        except Exception as error:
            shared.post({"event": "failed", "member": member, "error": first_line(unwrap(error))})
            last = len(pointer.results if pointer else ()) + 1 == segments
            if last or failed == member or not isinstance(unwrap(error), TrainError):
                raise
            score, failed = -math.inf, member
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _POINTER).write_text(json.dumps({"pointer": pointer and vars(pointer), "failed": failed}), "utf-8")
            report = {objective: score, "done": pointer is not None and len(pointer.results) == segments}
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


def _read(folder: Path) -> tuple[Pointer | None, int | None]:
    """A pointer, if there is one yet, and the member that failed to go on from it."""
    found = json.loads((folder / _POINTER).read_text("utf-8"))
    fields = found["pointer"]
    return fields and Pointer(**fields | {"results": tuple(fields["results"])}), found["failed"]


def _same(config: dict[str, Any]) -> dict[str, Any]:
    return config
