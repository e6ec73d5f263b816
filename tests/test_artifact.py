import json
import resource
import shutil
from pathlib import Path

import pytest
import torch

from lc_ray import artifact
from lc_ray.artifact import MANIFEST, Manifest
from lc_ray.errors import ArtifactError
from lc_ray.models import load

MANIFEST_OF_TEST = Manifest(name="x", task={"kind": "classification", "labels": ["a", "b"]}, inputs=[], architecture={})


def fill(partial):
    (partial / "processor").mkdir()
    (partial / "processor" / "vocab.txt").write_text("words", "utf-8")
    (partial / "processor" / "vocab.txt").chmod(0o600)


@pytest.fixture
def written(tmp_path):
    return artifact.write(tmp_path / "a", MANIFEST_OF_TEST, fill)


def test_what_was_written_is_read(written):
    again = artifact.read(written.path)
    assert again.manifest == written.manifest
    assert list(again.manifest.files) == ["processor/vocab.txt"]
    assert again.digest == written.digest


def test_who_may_read_the_manifest_may_read_all(written):
    modes = {file.stat().st_mode for file in written.path.rglob("*") if file.is_file()}
    assert len(modes) == 1


def test_writing_over_an_artifact_replaces_it(written):
    artifact.write(written.path, MANIFEST_OF_TEST.model_copy(update={"name": "y"}), fill)
    assert artifact.read(written.path).manifest.name == "y"
    assert [p.name for p in written.path.parent.iterdir()] == ["a"]


def test_an_altered_file_is_noticed(written):
    (written.path / "processor" / "vocab.txt").write_text("other", "utf-8")
    with pytest.raises(ArtifactError, match=r"vocab\.txt was altered"):
        artifact.read(written.path)


def test_a_missing_file_is_noticed(written):
    (written.path / "processor" / "vocab.txt").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        artifact.read(written.path, verify=False)


def test_a_manifest_can_not_reach_outside(written, tmp_path):
    (tmp_path / "secret").write_text("x", "utf-8")
    manifest = json.loads((written.path / MANIFEST).read_text("utf-8"))
    manifest["files"]["../secret"] = "0" * 64
    (written.path / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match="outside"):
        artifact.read(written.path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": 3}', "\udcff"])
def test_a_broken_manifest(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text, "utf-8", errors="surrogateescape")
    with pytest.raises(ArtifactError, match="can't be read") as raised:
        artifact.read(tmp_path)
    assert "\n" not in raised.value.what


def test_a_newer_format(written):
    manifest = json.loads((written.path / MANIFEST).read_text("utf-8"))
    (written.path / MANIFEST).write_text(json.dumps(manifest | {"format": 2, "new": 0}), "utf-8")
    with pytest.raises(ArtifactError, match=r"newer lc_ray, in format 2; this one reads 1\n.*install"):
        artifact.read(written.path)


def test_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        artifact.read(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        artifact.read(tmp_path / "file")


def test_a_failure_while_writing_leaves_nothing_and_keeps_what_was_there(written):
    def fails(partial: Path) -> None:
        (partial / "half").write_text("x", "utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.write(written.path, MANIFEST_OF_TEST, fails)
    assert artifact.read(written.path).digest == written.digest
    assert [p.name for p in written.path.parent.iterdir()] == ["a"]


def test_a_full_disk_is_explained(tiny_artifact, written):
    """A limit on the size of files stands in for the disk: the system refuses the same write."""
    found = artifact.read(tiny_artifact)
    weights = load.open_model(found).state_dict()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(ArtifactError, match="can't write"):
            load.save(written.path, found.manifest, weights, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert artifact.read(written.path).digest == written.digest
    assert [p.name for p in written.path.parent.iterdir()] == ["a"]


def test_no_space_says_what_to_do(tmp_path):
    def full(partial: Path) -> None:
        import safetensors

        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ArtifactError, match="free some space"):
        artifact.write(tmp_path / "a", MANIFEST_OF_TEST, full)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_the_manifest(tiny_artifact, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(tiny_artifact, folder)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["architecture"]["config"]["encoders"]["text"]["config"]["intermediate_size"] = 8
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match="do not fit"):
        load.open_model(artifact.read(folder))


def test_an_artifact_gives_the_weights_back(tiny_artifact):
    found = artifact.read(tiny_artifact)
    model = load.open_model(found)
    assert not model.training
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert load.parameters(model) * 4 < found.bytes < load.parameters(model) * 4 + 20_000
