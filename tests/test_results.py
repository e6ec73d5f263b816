"""A run's folder on its way back."""

import json
import shutil

import pytest

from lc_ray import artifact
from lc_ray.errors import ArtifactError, ClusterError
from lc_ray.results import fetch, publish, published
from lc_ray.storage import StoragePath


@pytest.fixture
def run(tiny_artifact, tmp_path):
    """The folder of a finished run, as a cluster keeps it."""
    folder = tmp_path / "there" / "tiny"
    shutil.copytree(tiny_artifact, folder / "model")
    shutil.copytree(tiny_artifact, folder / "segments" / "abc" / "model")
    for name in ("record.json", "report.html", "events.jsonl"):
        (folder / name).write_text(f'{{"name": "{name}"}}', "utf-8")
    return folder


def test_by_a_bucket(run, tiny_artifact, tmp_path):
    bucket = StoragePath(f"file://{tmp_path}/bucket/some runs")
    (bucket / "tiny" / "model" / "engine" / "old.xml").write_text("of another model")
    publish(run, bucket / "tiny")
    assert not (bucket / "tiny" / "model" / "engine" / "old.xml").exists()
    assert not (tmp_path / "bucket" / "some runs" / "tiny" / "segments").exists()
    fetch(published(bucket / "tiny"), tmp_path / "here", accepted=True)
    assert artifact.read(tmp_path / "here" / "model").digest == artifact.read(tiny_artifact).digest
    assert json.loads((tmp_path / "here" / "record.json").read_text("utf-8")) == {"name": "record.json"}
    with pytest.raises(ClusterError, match="is not there"):
        fetch(published(bucket / "other"), tmp_path / "other", accepted=True)


def test_a_bucket_that_is_not_there(run):
    with pytest.raises(ClusterError, match="correct that URI"):
        publish(run, StoragePath("nothing://bucket"))


def test_what_was_altered_on_the_way_replaces_nothing(run, tmp_path):
    def download(name, target):
        shutil.copy(run / name, target)

    here = tmp_path / "here"
    fetch(download, here, accepted=True)
    before = artifact.read(here / "model").digest
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match="was altered"):
        fetch(download, here, accepted=True)
    assert artifact.read(here / "model").digest == before
    assert [p.name for p in here.iterdir() if p.name.startswith(".")] == []


def test_a_folder_that_is_no_artifact_is_not_replaced(run, tmp_path):
    mine = tmp_path / "here" / "model" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ArtifactError, match="not replaced"):
        fetch(lambda name, target: shutil.copy(run / name, target), tmp_path / "here", accepted=True)
    assert mine.read_text() == "mine"


def test_a_manifest_that_cannot_be_read(run, tmp_path):
    (run / "model" / "manifest.json").write_text("<html>", "utf-8")
    with pytest.raises(ArtifactError, match="can't be read"):
        fetch(lambda name, target: shutil.copy(run / name, target), tmp_path / "here", accepted=True)


def test_a_manifest_can_name_nothing_outside(run, tmp_path):
    manifest = json.loads((run / "model" / "manifest.json").read_text("utf-8"))
    manifest["files"]["../../escaped"] = "0"
    (run / "model" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (run / "escaped").write_text("x")
    with pytest.raises(ArtifactError, match="outside"):
        fetch(lambda name, target: shutil.copy(run / "record.json" if "escaped" in name else run / name, target), tmp_path / "here", True)
    assert not (tmp_path / "escaped").exists()


def test_a_refused_model_is_not_fetched(run, tmp_path):
    fetch(lambda name, target: shutil.copy(run / name, target), tmp_path / "here", accepted=False)
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["events.jsonl", "record.json", "report.html"]
