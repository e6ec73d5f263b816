"""The whole way on a tiny model and 480 rows: the real engines, at their smallest."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import safetensors.torch
import torch

import lc_ray
from lc_ray import artifact, spec
from lc_ray.data.prepare import prepare
from lc_ray.errors import AcceptError, DataError, PlacementError
from lc_ray.section import override
from lc_ray.storage import storage_path
from lc_ray.train.segment import Post, Segment, SegmentResult
from lc_ray.train.trainer import WorkerGroups

pytestmark = pytest.mark.cluster

Train = Callable[..., list[SegmentResult]]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def job(tiny_job: dict[str, Any], storage: Path) -> dict[str, Any]:
    """Of a worker for each member; tests of single segments have two."""
    return override(tiny_job, {"storage": str(storage), "train.workers.count": 1})


@pytest.fixture(scope="module")
def result(ray_local: None, job: dict[str, Any]) -> lc_ray.RunResult:
    return lc_ray.run(job)


def test_learns_prunes_and_quantizes(result: lc_ray.RunResult) -> None:
    models = {m["name"]: m for m in result.record["models"]}
    assert list(models) == ["dense", "pruned", "quantized"]
    assert models["dense"]["metrics"]["accuracy"] > 0.9
    assert models["pruned"]["cost"]["parameters"] < models["dense"]["cost"]["parameters"]
    assert result.artifact.manifest.engine == "int8"
    assert result.metrics["accuracy"] == models["quantized"]["metrics"]["accuracy"] > 0.8


def test_an_exploit_happens_and_is_recorded(result: lc_ray.RunResult) -> None:
    segments = result.record["segments"]
    first = {s["member"]: s for s in segments if s["segment"] == 0}
    heirs = [s for s in segments if s["inherited"]]
    assert len(first) == 2
    assert len(heirs) == 1
    (donor,) = [s for s in first.values() if s["key"] == heirs[0]["parent"]]
    assert donor["metrics"]["accuracy"] == max(s["metrics"]["accuracy"] for s in first.values())
    assert donor["member"] != heirs[0]["member"]
    assert donor["genes"] != heirs[0]["genes"]


def test_prediction_equals_what_was_measured(result: lc_ray.RunResult, job: dict[str, Any]) -> None:
    data, _ = prepare(spec.parse(job))
    rows = data.read(data.held_out(spec.parse(job)))
    answers = lc_ray.load(result.artifact.path).predict(rows["text.text"])
    right = np.mean([a["label"] == t for a, t in zip(answers, rows["_target"], strict=True)])
    assert right == pytest.approx(result.metrics["accuracy"])


def test_artifact_has_no_pickle_and_is_hashed(result: lc_ray.RunResult) -> None:
    endings = {Path(f).suffix for f in result.artifact.manifest.files}
    assert endings <= {".json", ".safetensors", ".xml", ".bin", ".txt", ".jinja"}
    artifact.read(result.artifact.path, verify=True)


def test_the_artifact_tells_what_it_was_trained_on(result: lc_ray.RunResult) -> None:
    statistics = result.artifact.manifest.statistics
    assert set(statistics) == {"text.tokens"}, "too few rows are held out to tell of answers"
    assert sum(statistics["text.tokens"].counts) == 480 - 96


def test_report_and_answer(result: lc_ray.RunResult) -> None:
    assert result.record["answer"]["answer"]["label"] in {"negative", "neutral", "positive"}
    assert "tiny" in result.report.read_text("utf-8")


def test_a_second_run_returns_at_once(result: lc_ray.RunResult, job: dict[str, Any]) -> None:
    start = time.perf_counter()
    again = lc_ray.run(job)
    assert again.reused
    assert again.artifact.digest == result.artifact.digest
    assert time.perf_counter() - start < 2


def test_a_changed_gate_trains_nothing_again_and_refuses(result: lc_ray.RunResult, job: dict[str, Any], storage: Path) -> None:
    before = {p: p.stat().st_mtime for p in (storage / "tiny" / "segments").glob("*/segment.json")}
    with pytest.raises(AcceptError, match="throughput"):
        lc_ray.run({**job, "accept": {"max_drop": 1.0, "min_speedup": 1e6}})
    assert {p: p.stat().st_mtime for p in (storage / "tiny" / "segments").glob("*/segment.json")} == before
    assert artifact.read(result.artifact.path).digest == result.artifact.digest  # what was promoted before stays


def test_more_workers_than_the_cluster_has(ray_local: None, tiny_job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match="64 CPU"):
        lc_ray.run(override({**tiny_job, "storage": str(tmp_path)}, {"train.workers.count": 64, "train.batch_size": 64}))


def test_a_mistake_found_in_a_task_is_told_without_its_traceback(ray_local: None, tiny_job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a", "label": "x"}, {"text"')
    with pytest.raises(DataError, match="not valid JSON") as found:
        lc_ray.run(override({**tiny_job, "storage": str(tmp_path)}, {"data.train": str(tmp_path / "rows.json")}))
    assert "Traceback" not in str(found.value)
    assert "File" not in str(found.value)


def _segment(job: dict[str, Any], storage: Path, **changes: Any) -> Segment:
    job = override({**job, "storage": str(storage), "search": None, "prune": None}, changes)
    data, _ = prepare(spec.parse(job))
    return Segment(spec.parse(job).model_dump(mode="json"), data.path, storage_path(storage / "segments"), 0, data.count("train"))


@pytest.fixture
def groups(ray_local: None, tmp_path: Path) -> Iterator[Train]:
    """Trains segments one after the other, on one group of workers."""
    actors = []

    def train(segments: list[Segment], post: Post = print) -> list[SegmentResult]:
        workers = segments[0].spec.train.workers
        actors.append(ray.remote(num_cpus=0)(WorkerGroups).remote(1, workers, storage_path(tmp_path / "train"), post, True))
        results = [ray.get(actors[-1].train.remote(segment)) for segment in segments]
        ray.get(actors[-1].close.remote())
        return results

    yield train
    for actor in actors:
        ray.kill(actor)


def test_a_segment_goes_on_from_its_parents_weights_and_optimizer(groups: Train, tiny_job: dict[str, Any], tmp_path: Path) -> None:
    first = _segment(tiny_job, tmp_path, **{"train.epochs": 2, "train.zero": {"stage": 3}, "train.accumulate": 2})
    still = override(first.job, {"train.learning_rate": 1e-12, "train.weight_decay": 0.0})
    heir = Segment(still, first.prepared, first.store, 1, first.rows, parent=first.key, dense=first.key, member=7)
    done, _ = groups([first, heir])
    assert done.checkpoint is not None
    weights = [safetensors.torch.load_file(str(s.folder / "model" / "model.safetensors")) for s in (first, heir)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])


def test_a_killed_worker_costs_only_the_steps_since_its_checkpoint(groups: Train, tiny_job: dict[str, Any], tmp_path: Path) -> None:
    segment = _segment(tiny_job, tmp_path, **{"train.epochs": 40, "train.segments": 1, "train.checkpoint_every": 100})
    killed = threading.Event()

    def post(event: dict[str, Any]) -> None:
        partial = tmp_path / f"{time.time_ns()}"
        partial.write_text(json.dumps(event))
        partial.rename(partial.with_suffix(".event"))

    def steps() -> list[int]:
        events = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("*.event"))]
        return [e["step"] for e in events if e["event"] == "step"]

    def kill() -> None:
        while not killed.is_set():
            time.sleep(0.1)
            seen = steps()
            if seen and seen[-1] > 150:  # past the checkpoint of step 100
                workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
                if workers:
                    workers[-1].kill()
                    killed.set()

    threading.Thread(target=kill, daemon=True).start()
    (done,) = groups([segment], post)
    assert killed.is_set(), "the segment ended before a worker could be killed"
    turns = [b for a, b in itertools.pairwise(steps()) if b < a]
    assert len(turns) == 1, "training restarted once"
    assert turns[0] > 100, "and went on from a checkpoint, not from the start"
    told = [json.loads(p.read_text()) for p in tmp_path.glob("*.event")]
    assert [event["reason"] for event in told if event["event"] == "restart"] == ["a worker died"]
    assert steps()[-1] == segment.until
    assert done.metrics["accuracy"] > 0.9


def test_record_is_json_and_complete(result: lc_ray.RunResult) -> None:
    record = json.loads(json.dumps(result.record))
    for part in ("models", "segments", "stages", "versions", "hardware", "architecture", "winner", "answer"):
        assert record[part], part
    for s in record["segments"]:
        assert s["seconds"]["total"] == pytest.approx(sum(v for k, v in s["seconds"].items() if k != "total"), rel=0.01)
