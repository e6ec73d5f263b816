"""What a submitted job says of its end."""

import contextlib
import json
import os
import signal
import sys
import time

import pytest

from lc_ray import pipeline, runtime
from lc_ray.cluster import remote
from lc_ray.errors import AcceptError, TrainError


@pytest.fixture
def submitted(monkeypatch, tmp_path, tiny_job):
    """submitted(error, results) → how a job ended whose run raised that."""

    def submitted(error, results):
        def run(*_):
            raise error

        monkeypatch.chdir(tmp_path)
        (tmp_path / remote.JOB).write_text(json.dumps({**tiny_job, "name": "tiny", "storage": str(tmp_path / "runs")}), "utf-8")
        folder = tmp_path / "runs" / "tiny"
        folder.mkdir(parents=True)
        (folder / pipeline.RECORD).write_text("{}", "utf-8")
        monkeypatch.setattr(runtime, "session", contextlib.nullcontext)
        monkeypatch.setattr(remote, "_show", lambda folder, name: None)
        monkeypatch.setattr(pipeline, "run", run)
        return remote.run("id", "digest", results)

    return submitted


def test_a_refused_model_s_record_is_copied(submitted, tmp_path):
    end = submitted(AcceptError("slower than it may be"), f"file://{tmp_path}/results")
    assert (end["kind"], end["what"]) == ("AcceptError", "slower than it may be")
    assert (tmp_path / "results" / "tiny" / pipeline.RECORD).exists()


def test_the_run_s_own_error_is_told_where_copying_fails_too(submitted):
    end = submitted(AcceptError("slower than it may be"), "nothing://bucket")
    assert end["kind"] == "AcceptError"
    assert end["what"].startswith("slower than it may be; and nothing://bucket/tiny: the run can't be copied")


def test_the_record_of_an_earlier_run_is_not_copied_again(submitted, tmp_path):
    end = submitted(TrainError("the loss is not a number"), f"file://{tmp_path}/results")
    assert end["kind"] == "TrainError"
    assert not (tmp_path / "results").exists()


def test_a_job_that_is_stopped_ends_as_after_ctrl_c(monkeypatch, capsys):
    left = []

    def run(*_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            left.append("nothing")

    monkeypatch.setattr(remote, "run", run)
    monkeypatch.setattr(sys, "argv", ["remote", "id", "digest"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            remote.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, left, capsys.readouterr().out) == (143, ["nothing"], "")
