"""The whole story: data → population → winner → quantize → evaluate → gate → a served artifact.

Each stage's output has a name made of all that it depends on. A stage whose output exists is not run again, so a run that was cut
off goes on where it was, and a changed job repeats only what the change reaches.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from ray.exceptions import RayError, RayTaskError

import lc_ray
from lc_ray import artifact, progress, results, runtime
from lc_ray import spec as specs
from lc_ray.artifact import Artifact, Feature
from lc_ray.client import Client
from lc_ray.data.cells import unread
from lc_ray.data.prepare import Prepared, prepare, stamps
from lc_ray.errors import AcceptError, ArtifactError, ClusterError, SpecError, first_line, unwrap
from lc_ray.evaluate import cost, drift, hardware, quality
from lc_ray.evaluate.gate import judge
from lc_ray.evaluate.report import write_html
from lc_ray.models.batches import parts_of, show
from lc_ray.models.load import modalities
from lc_ray.predictor import Predictor, load
from lc_ray.progress import Display, Mode
from lc_ray.quantizer import quantize
from lc_ray.runs import QUANTIZED, RECORD, SEGMENTS, alone
from lc_ray.serve import app, update
from lc_ray.serving import ReplicasSpec, ServeSpec
from lc_ray.spec import JobSpec
from lc_ray.storage import StoragePath, storage_path, whole_folder
from lc_ray.train import plan
from lc_ray.train.segment import SegmentResult, total_steps
from lc_ray.tune import lineage, population, space

_ANSWERS, _LARGE = 600.0, 2**30  # seconds that an answer may take; bytes, and pixels or samples, that a row may have
_FEW_ROWS, _FEW_STEPS = 100, 20  # in which each is more than a point; in training
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        artifact: the model to serve.
        metrics: its quality on the held-out rows.
        report: path of report.html.
        record: all figures, as in record.json.
        reused: whether the run had been finished before and nothing was done.
    """

    artifact: Artifact
    metrics: dict[str, float]
    report: Path
    record: dict[str, Any] = field(repr=False)
    reused: bool = False


def run(job: JobSpec | dict[str, Any] | str | Path, mode: Mode = "quiet") -> RunResult:
    """Run a job from data to an accepted artifact.

    Args:
        job: a job, a nested dict, or the path of a job file.
        mode: what to show meanwhile.

    Raises:
        SpecError, DataError, ModelError, PlacementError, TrainError, ArtifactError, ClusterError: see `lc_ray.errors`.
        AcceptError: the finished model did not pass the gate; everything is kept, nothing is promoted.
    """
    if mode not in get_args(Mode):
        raise SpecError(f"mode={mode!r} is not known", fix=f"known: {', '.join(get_args(Mode))}")
    job = job if isinstance(job, JobSpec) else specs.parse(job) if isinstance(job, dict) else specs.read(job)
    space.require(job)
    folder, kept = job.folder, storage_path(job.storage) / job.name
    name = specs.digest(job.model_dump(mode="json", exclude={"storage", "serve"}), lc_ray.__version__, stamps(job))
    if done := _finished(folder, kept, name):
        return done
    try:
        with ExitStack() as stack:
            stack.enter_context(alone(folder))
            stack.callback((display := Display(folder, mode)).close)
            with display.stage("start", "start: connect to Ray, or start a local one"):
                stack.enter_context(runtime.session())
                update.tidy()
            with _told_of_ray():
                record = _run(job, folder, kept, name, display)
            if kept.remote:
                results.publish_record(folder, kept)
    except Exception as error:
        if (ours := unwrap(error)) is not error:
            raise ours from None
        if isinstance(error, OSError) and (kept.remote or (error.errno in _UNWRITABLE and str(job.storage) in str(error.filename or job.storage))):
            raise _unreachable(kept, error) from error
        raise
    if record["accept"] and not record["accept"]["passed"]:
        raise AcceptError("the model is not promoted: " + "; ".join(record["accept"]["reasons"]), str(folder / "report.html"))
    return _result(folder, kept, record)


@contextmanager
def _told_of_ray() -> Iterator[None]:
    """Whatever fails once Ray itself, or a process of it that the run can't do without, has ended fails of that.

    Raises:
        ClusterError: it has.
    """
    with runtime.watched() as lost:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            ended = lost.is_set() or (isinstance(error, Exception) and runtime.broken())
            if not ended and (not isinstance(error, RayError) or isinstance(error, RayTaskError)):
                raise
            why = "" if isinstance(error, KeyboardInterrupt) else f": {first_line(unwrap(error))}"
            told = f"the run has lost {'its Ray' if ended else 'a process'}{why}"
            raise ClusterError(told, fix="was memory short? Give the same command again to go on where it was") from error


def _run(job: JobSpec, folder: Path, kept: StoragePath, name: str, display: Display) -> dict[str, Any]:
    start = time.time()
    job = runtime.settled(job)
    nodes = runtime.grown(job.train.workers, job.members)
    slots = plan.slots(job.train.workers, nodes)

    with display.stage("prepare", "prepare: read, check, split and tokenise the rows") as stage:
        data, stage["reused"] = prepare(job)
    for note in (notes := [*filter(None, [plan.idle(job.train.workers, nodes)]), *unread(job), *data.notes(job.inputs()), *_little(job, data)]):
        display.show({"event": "note", "text": note})

    with display.stage("search", f"search: {_searching(job)}"):
        segments = _search(job, data, kept, slots, display)
        winner = lineage.best(segments, objective := _objective(job, data))
        models = _models(kept, folder, winner)

    if job.quantize is not None:
        with display.stage("quantize", f"quantize: {job.quantize.kind}") as stage:
            target = folder / QUANTIZED / specs.digest(list(models.values())[-1].digest, job.quantize)
            stage["reused"] = artifact.exists(target)
            models["quantized"] = _quantized(job, data, list(models.values())[-1], target)

    with display.stage("evaluate", f"evaluate: {', '.join(models)} side by side"):
        measured, mistakes, ablation, statistics = _evaluate(job, data, models)

    final = list(models.values())[-1]
    accept = judge(job.accept, objective, measured[0], measured[-1]) if job.accept else None
    record = {
        "name": job.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "key": name,
        "seconds": 0.0,
        "job": job.model_dump(mode="json"),
        **hardware.describe(),
        "rows": {"train": data.count("train"), "validation": data.count("validation"), "rejected": data.record["rejected"]},
        "rejects": data.record["reasons"],
        "notes": notes,
        "objective": objective,
        "stepwise": data.task().STEPWISE,
        "models": measured,
        "accept": accept,
        "segments": lineage.table(segments),
        "winner": winner.key,
        "architecture": _units(models),
        "mistakes": mistakes,
        "ablation": ablation,
        "artifact": None,
        "answer": None,
    }
    if accept is None or accept["passed"]:
        promoted = _promote(final, measured[-1], statistics, folder / "model")
        if kept.remote:
            results.publish_model(folder, kept)
        record["artifact"] = promoted.digest
        shared = promoted.path if runtime.own() or not kept.remote else str(kept / "model")  # nodes may have come since the run began
        with display.stage("serve", "serve: one question over HTTP"):
            record["answer"] = _ask(job, shared, data)
    record |= {"stages": display.stages, "seconds": time.time() - start}
    write_html(record, storage_path(folder / "report.html"))
    (storage_path(folder) / RECORD).write_text(json.dumps(record, indent=1))  # last and at once: with it the run is finished
    return record


def _search(job: JobSpec, data: Prepared, kept: StoragePath, slots: int, display: Display) -> list[SegmentResult]:
    events = progress.board()
    with display.following(events):
        return population.search(job, data.path, data.count("train"), kept / SEGMENTS, slots, _objective(job, data), progress.Post(events))


def _little(job: JobSpec, data: Prepared) -> list[str]:
    """What is to be known of little training, and of the rows that models are judged by, in sentences."""
    first, others = (data.held_out(job, comparing) for comparing in (True, False))
    compared, measured = (sum(rows for _, rows in half) for half in (first, others))
    told, total = [], total_steps(job.train, data.count("train"))
    if first != others:
        chosen = f"members are compared on {compared:,} of its rows, and models are measured on {measured:,} others, by which none was chosen"
        told.append(f"validation: {chosen}")
    if measured < _FEW_ROWS:
        told.append(f"validation: models are measured on {measured:,} row(s); figures of so few are luck in part: hold out more by data.validation")
    if total < _FEW_STEPS:
        told.append(f"training: {total:,} steps in all, in which little is learned: raise train.epochs, or lower train.batch_size")
    return told


def _objective(job: JobSpec, data: Prepared) -> str:
    return (job.search and job.search.objective) or str(data.task().objective)


def _searching(job: JobSpec) -> str:
    many, train = f"{job.search.population} members × " if job.search else "", job.train
    segments, workers = f"{train.segments} segment{'s' * (train.segments > 1)}", f"{train.workers.count} worker{'s' * (train.workers.count > 1)}"
    return f"{many}{segments} on {workers}, DeepSpeed ZeRO {train.zero.stage}"


def _models(kept: StoragePath, folder: Path, winner: SegmentResult) -> dict[str, Artifact]:
    """The winner's unpruned ancestor, and the winner if it is pruned, on this machine."""
    keys = {"dense": winner.dense} | ({"pruned": winner.key} if winner.pruned else {})
    return {name: _trained(kept / SEGMENTS / key, folder / SEGMENTS / key / "model") for name, key in keys.items()}


def _trained(segment: StoragePath, here: Path) -> Artifact:
    """A segment's model, brought to this machine.

    Raises:
        ArtifactError: it was removed or altered after it was trained.
    """
    try:
        if segment.remote and not artifact.exists(here):
            with whole_folder(here) as partial:
                (segment / here.name).get(partial)
                artifact.read(partial)
        return artifact.read(here)
    except (ArtifactError, FileNotFoundError) as error:
        shown = dict.fromkeys([str(segment), str(here.parent)] if here.exists() else [str(segment)])
        fix = f"remove {' and '.join(shown)}: the same command trains that segment again"
        raise ArtifactError(getattr(error, "what", first_line(error)), str(segment), fix) from None


def _quantized(job: JobSpec, data: Prepared, found: Artifact, folder: Path) -> Artifact:
    assert job.quantize is not None
    if artifact.exists(folder):
        return artifact.read(folder)
    rows = data.rows("train", job.quantize.calibration)
    return quantize(found, job.quantize, rows, folder, job.name)


def _evaluate(
    job: JobSpec, data: Prepared, models: dict[str, Artifact]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, dict[str, float]], dict[str, Feature]]:
    """Every model on the same held-out rows with the same threads, and a GPU if replicas are to have one; of the last its most confident mistakes,
    its quality without columns, and what requests are compared with."""
    rows = data.read(data.held_out(job))
    threads, gpu = max(1, round(job.serve.replicas.cpu)), job.serve.replicas.gpu > 0 and torch.cuda.is_available()
    predictors = {name: Predictor(found, threads, gpu) for name, found in models.items()}
    costs = cost.measure(predictors, rows, job.serve.batch.max, job.evaluate.rounds)
    measured: list[dict[str, Any]] = []
    mistakes: list[dict[str, Any]] = []
    for name, predictor in predictors.items():
        metrics, mistakes = quality.measure(predictor, rows, mistakes=10)
        found = models[name]
        measured.append({"name": name, "artifact": str(found.path), "digest": found.digest, "metrics": metrics, "cost": costs[name]})
    last = predictors[list(models)[-1]]
    return measured, mistakes, quality.ablation(last, rows), drift.reference(last, data.rows("train", drift.ROWS), rows)


def _units(models: dict[str, Artifact]) -> dict[str, dict[str, int]] | None:
    """Units of each pruned layer, before and after."""
    kept = models["pruned"].manifest.lineage["kept"] if "pruned" in models else {}
    return {when: {layer: units[when] for layer, units in kept.items()} for when in ("before", "after")} if kept else None


def _promote(final: Artifact, measured: dict[str, Any], statistics: dict[str, Feature], folder: Path) -> Artifact:
    """Write the accepted model with its measured figures as the run's result."""

    def fill(partial: Path) -> None:
        for file in final.manifest.files:
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(final.path / file, partial / file)

    figures = {"metrics": measured["metrics"], "cost": measured["cost"], "statistics": statistics}
    return artifact.write(folder, final.manifest.model_copy(update=figures), fill)


def _ask(job: JobSpec, model: str | Path, data: Prepared) -> dict[str, Any]:
    """Serve the model, ask it about one held-out row over HTTP, and stop serving. It is asked in this process where Ray serves already."""
    columns = modalities(job.inputs())
    question = show(parts_of(data.rows("validation", 1), columns, 0), columns)
    asked: dict[str, Any] = {"question": next(iter(question.values())) if len(question) == 1 else question, "milliseconds": None}
    with update.alone():  # of the runs that end here
        if app.serves():
            return asked | {"answer": load(model).predict([question])[0]}
        key = os.urandom(16).hex()
        # The job's `serve` is for another place and other requests: its address, limits and resources say nothing of where models are trained.
        cpu = min(job.serve.replicas.cpu, max((node.cpu for node in runtime.nodes()), default=0.0))
        spec = ServeSpec(port=0, replicas=ReplicasSpec(cpu=cpu), timeout=_ANSWERS, max_body=_LARGE, max_media=_LARGE)
        with update.passing():
            url = app.start([model], spec, {"": key})
            with Client(url, key, timeout=_ANSWERS) as client:
                client.predict([question])
                start = time.perf_counter()
                answer = client.predict([question])[0]
                milliseconds = 1000 * (time.perf_counter() - start)
    return asked | {"answer": answer, "milliseconds": milliseconds}


def _finished(folder: Path, kept: StoragePath, name: str) -> RunResult | None:
    """The result of a run that was finished with this very job, brought to this machine."""
    try:
        if not (kept / RECORD).exists():
            return None
        try:
            record = json.loads(text := (kept / RECORD).read_text())
        except ValueError:  # a run was cut off as it wrote it
            return None
        if record.get("key") != name or (record["accept"] and not record["accept"]["passed"]):
            return None
        here, model = folder / RECORD, folder / "model"
        if kept.remote and not (artifact.exists(model) and here.exists() and here.read_text("utf-8") == text):
            try:
                results.fetch(results.published(kept), folder, accepted=True)
            except (ArtifactError, ClusterError):  # of a later run that was cut off while it copied its model
                return None
        # One that was cut off after that has left its model, and not its record.
        whole = artifact.exists(model) and artifact.read(model, verify=False).digest == record["artifact"]
        return _result(folder, kept, record, reused=True) if whole else None
    except OSError as error:
        raise _unreachable(kept, error) from None


def _unreachable(kept: StoragePath, error: OSError) -> ClusterError:
    fix = "the credentials for it" if kept.remote else "make room in it"
    return ClusterError(f"storage can't be used: {first_line(error)}", str(kept), f"correct `storage`, or {fix}; what was finished is kept")


def _result(folder: Path, kept: StoragePath, record: dict[str, Any], reused: bool = False) -> RunResult:
    found = replace(artifact.read(folder / "model"), uri=str(kept / "model") if kept.remote else "")
    return RunResult(found, dict(found.manifest.metrics), folder / "report.html", record, reused)
