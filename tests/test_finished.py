"""What a second run over a first one takes for finished, and where there can be none."""

import json
import shutil
import time

import pytest
from ray.exceptions import ActorDiedError

from lc_ray import artifact, pipeline, runs, spec
from lc_ray.data.prepare import stamps
from lc_ray.errors import ArtifactError, ClusterError
from lc_ray.section import override
from lc_ray.storage import StoragePath, names_in
from lc_ray.train.segment import SegmentResult


@pytest.fixture
def kept(tiny_artifact, tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_artifact, folder / "model")
    record = {"key": "this job", "accept": None, "artifact": artifact.read(tiny_artifact).digest}
    (folder / pipeline.RECORD).write_text(json.dumps(record), "utf-8")
    for name in ("events.jsonl", "report.html"):
        (folder / name).write_text("", "utf-8")
    return folder


def test_the_same_job_is_finished(kept, tiny_artifact):
    found = pipeline._finished(kept, StoragePath(str(kept)), "this job")
    assert found.reused
    assert found.artifact.digest == artifact.read(tiny_artifact).digest
    assert pipeline._finished(kept, StoragePath(str(kept)), "another job") is None


def test_a_later_run_that_was_cut_off_has_left_its_model(kept, second_artifact):
    shutil.rmtree(kept / "model")
    shutil.copytree(second_artifact, kept / "model")
    assert pipeline._finished(kept, StoragePath(str(kept)), "this job") is None


def test_a_bucket_has_the_model_for_other_machines(kept, tmp_path):
    bucket = StoragePath(f"file://{kept}")
    found = pipeline._finished(tmp_path / "here", bucket, "this job")
    assert (found.artifact.path, found.artifact.place) == (tmp_path / "here" / "model", f"{bucket}/model")


def test_of_a_copy_of_the_winner_that_is_cut_off_nothing_is_left(kept, tmp_path, monkeypatch):
    bucket, here = StoragePath(f"file://{kept}"), tmp_path / "here"
    shutil.copytree(kept / "model", kept / "segments" / "winner" / "model")
    winner = SegmentResult("winner", 0, 0, None, "winner", 0.0, {}, [], {}, None)

    def cut(self, target):
        target.mkdir(parents=True, exist_ok=True)
        (target / "half").write_text("")
        raise OSError("the bucket is out of reach")

    with monkeypatch.context() as broken:
        broken.setattr(StoragePath, "get", cut)
        with pytest.raises(OSError, match="out of reach"):
            pipeline._models(bucket, here, winner)
    assert list((here / "segments" / "winner").iterdir()) == []
    assert pipeline._models(bucket, here, winner)["dense"].digest == artifact.read(kept / "model").digest


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_winner_that_was_altered_is_told_with_what_to_do(kept, tmp_path, scheme):
    store, here = StoragePath(f"{scheme}{kept}"), tmp_path / "here" if scheme else kept
    winner = SegmentResult("winner", 0, 0, None, "winner", 0.0, {}, [], {}, None)
    shutil.copytree(kept / "model", kept / "segments" / "winner" / "model")
    (kept / "segments" / "winner" / "model" / artifact.WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(ArtifactError, match=rf"was altered(.|\n)*remove {store}/segments/winner: the same command"):
        pipeline._models(store, here, winner)
    assert here == kept or not (here / "segments" / "winner" / "model").exists()
    shutil.rmtree(kept / "segments" / "winner" / "model")
    with pytest.raises(ArtifactError, match=f"remove {store}/segments/winner: the same command"):
        pipeline._models(store, here, winner)


def test_files_that_were_changed_make_it_another_run(tiny_job, tiny_base, tiny_rows, tmp_path):
    rows, base = tmp_path / "rows.csv", tmp_path / "base"
    shutil.copy(tiny_rows, rows)
    shutil.copytree(tiny_base, base)
    job = spec.parse(override(tiny_job, {"data.train": str(rows), "model.base": str(base)}))
    seen = [stamps(job)]
    assert stamps(job) == seen[0]
    for file, more in ((rows, "one more,neutral\n"), (base / "config.json", "\n")):
        with open(file, "a", encoding="utf-8") as out:
            out.write(more)
        assert stamps(job) not in seen
        seen.append(stamps(job))


def test_two_runs_of_one_name_do_not_meet(tiny_job, tmp_path):
    job = spec.parse({**tiny_job, "storage": str(tmp_path)})
    with runs.alone(job.folder), pytest.raises(ClusterError, match="another run of this name"):
        pipeline.run(job)
    with runs.alone(job.folder):
        pass  # once the first has ended


def test_what_a_killed_run_has_left_half_written_goes(tmp_path):
    half, model = tmp_path / "segments" / "0123" / ".model.0123abcd", tmp_path / "segments" / "0123" / "model"
    for folder in (half, model):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"...")
    (tmp_path / ".record.json.0123abcd").write_text("{", "utf-8")
    (tmp_path / ".mine").write_text("", "utf-8")
    with runs.alone(tmp_path):
        half.mkdir()
        with pytest.raises(ClusterError), runs.alone(tmp_path):
            pass
    assert sorted(names_in(tmp_path)) == [".lock", ".mine", "segments/0123/model/model.safetensors"]
    assert half.exists(), "it is another's that is at work"


@pytest.mark.parametrize(
    ("error", "broken", "told"),
    [
        (ValueError("max() of nothing"), False, "^max"),
        (ValueError("max() of nothing"), True, "lost its Ray: max"),
        (ActorDiedError(), False, "lost a process: The actor died"),
    ],
)
def test_what_fails_once_ray_has_ended_fails_of_that(monkeypatch, error, broken, told):
    monkeypatch.setattr(pipeline.runtime, "broken", lambda: broken)
    with pytest.raises(ValueError, match=told), pipeline._told_of_ray():
        raise error


def test_a_run_does_not_wait_for_a_ray_that_has_ended(monkeypatch):
    monkeypatch.setattr(pipeline.runtime, "_LOOKS", 0.5)
    monkeypatch.setattr(pipeline.runtime, "broken", lambda: True)
    with pytest.raises(ClusterError, match="lost its Ray\n"), pipeline._told_of_ray():
        time.sleep(10)


def test_storage_that_can_not_be_written_is_told(tiny_job, tmp_path):
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(ClusterError, match=r"storage can't be used: .*file"):
        pipeline.run({**tiny_job, "storage": str(tmp_path / "file")})
