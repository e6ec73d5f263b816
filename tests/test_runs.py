"""What runs leave on disk, and what of it can go."""

import json
import os

import pytest
from typer.testing import CliRunner

from lc_ray import cli, runs, storage
from lc_ray.errors import SpecError
from lc_ray.storage import names_in

RESULT = ["events.jsonl", "model/manifest.json", "quantized/q1/manifest.json", "record.json", "report.html", "segments/winner/model/manifest.json"]


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x" * 100, "utf-8")


def finish(root, name, artifact="digest"):
    """What a run of a winner, a loser and a quantized model leaves."""
    folder = root / name
    write(folder, "events.jsonl", "report.html", "model/manifest.json", "tune/x/pointer.json")
    write(folder, "quantized/q1/manifest.json", "quantized/q0/manifest.json")
    for one in ("winner", "loser"):
        write(folder, *(f"segments/{one}/{file}" for file in ("segment.json", "model/manifest.json", "checkpoints/step-4/deepspeed/optim.pt")))
    compared = [{"artifact": f"/where/it/was/{name}/{one}"} for one in ("segments/winner/model", "quantized/q1")]
    (folder / runs.RECORD).write_text(json.dumps({"artifact": artifact, "models": compared}), "utf-8")
    return folder


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "prepared/0123456789abcdef/data.json", "prepared/0123456789abcdef/1-ab/train/part.parquet", "inputs/0123/rows.csv")
    return tmp_path


def test_of_an_accepted_run_the_result_and_the_models_that_it_compares_stay(root):
    folder = finish(root, "good")
    (run,) = runs.find(str(root))
    assert (run.state, runs.size(run.spare)) == (runs.ACCEPTED, 700)
    dry = runs.prune(str(root), dry=True)
    assert len(names_in(root)) == 17, "it has told only, under a lock"
    assert dry == runs.prune(str(root)) == ({"good": 700, "prepared": 200}, [])
    assert [name for name in names_in(folder) if name != ".lock"] == RESULT
    assert names_in(root / "inputs") == ["0123/rows.csv"], "of which runs ask whether it has changed"
    assert runs.prune(str(root)) == ({}, [])


def test_what_is_unfinished_or_at_work_or_may_be_judged_again_stays(root):
    finish(root, "good")
    changed = finish(root, "changed")
    os.utime(changed / runs.EVENTS, (2e9, 2e9))  # by a later run that was cut off
    write(root / "new", "events.jsonl", "segments/a/segment.json")
    finish(root, "refused", artifact=None)
    busy = finish(root, "busy")
    before = names_in(root)
    with runs.alone(busy):
        gone, kept = runs.prune(str(root))
    assert gone == {"good": 700}
    assert [sentence.split()[0].rstrip(":") for sentence in kept] == ["busy", "changed", "new", "refused"]
    assert {name for name in set(before) - set(names_in(root)) if not name.startswith("good/")} == set()
    assert runs.prune(str(root), ["refused", "new"])[0] == {"refused": 700}


def test_a_run_may_be_called_as_the_folder_of_prepared_rows_is(root):
    finish(root, "prepared")
    assert runs.prune(str(root))[0] == {"prepared": 200}
    assert (root / "prepared" / "model" / "manifest.json").exists()


def test_what_is_removed_is_whole_or_gone(root, monkeypatch):
    folder = finish(root, "good")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(storage.StoragePath, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.prune(str(root))
    with runs.alone(folder):
        assert not [name for name in names_in(folder) if "/." in f"/{name}" and not name.endswith(".lock")], "the rest is swept"


def test_commands(root, tmp_path):
    finish(root, "good")
    shown = CliRunner().invoke(cli.app, ["runs", "list", "--storage", str(root), "--json"])
    found = json.loads(shown.stdout)
    assert found["prepared"] == 200
    assert [(one["name"], one["state"], one["spare"]) for one in found["runs"]] == [("good", "accepted", 700)]
    assert "good" in CliRunner().invoke(cli.app, ["runs", "list", "--storage", str(root)]).stdout
    shown = CliRunner().invoke(cli.app, ["runs", "prune", "good", "--storage", str(root), "--dry-run"])
    assert shown.stdout == "would remove 700 B of good\n"
    with pytest.raises(SpecError, match="no run 'bad'"):
        runs.prune(str(root), ["bad"])
    with pytest.raises(SpecError, match="no folder of this machine"):
        runs.find(str(tmp_path / "nowhere"))
