"""Runs that are stopped and go on."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

import lc_ray
from lc_ray.section import override


def left(mark: str) -> list[str]:
    """Commands of the processes that have been started with a mark in their environment, where Ray has written their names over its beginning."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if f"LC_RAY_TEST={mark}\0".encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(f"{process.pid} {process.cmdline()}")
    return found


@pytest.mark.cluster
def test_stopped_runs_go_on(tiny_job, tmp_path):
    """Ctrl-C, then SIGKILL, then to the end, then again: the same command each time."""
    mark = str(tmp_path)
    changes = {"search": None, "prune": None, "quantize": None, "train.epochs": 12, "train.workers.count": 1}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(override({**tiny_job, "storage": str(tmp_path / "runs")}, changes)), "utf-8")
    command = [sys.executable, "-m", "lc_ray", "run", str(file), "--json"]

    def run(until=None, number=None):
        """Events of a run, stopped by a signal at the first event that `until` accepts."""
        events = []
        hears = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which what runs in the background does not
        pipes, env = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}, os.environ | {"LC_RAY_TEST": mark}
        with subprocess.Popen(command, **pipes, env=env, preexec_fn=hears) as process:
            for line in process.stdout:
                events.append(json.loads(line))
                if until and until(events[-1]):
                    os.kill(process.pid, number)
                    until = None
            errors = process.stderr.read()
        return process.returncode, events, errors

    code, _, errors = run(lambda e: e.get("event") == "step", signal.SIGINT)
    assert code == 130, errors
    assert "go on where it was" in errors
    deadline = time.monotonic() + 15
    while left(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left(mark) == []

    code, events, _ = run(lambda e: e.get("event") == "segment", signal.SIGKILL)
    assert code == -signal.SIGKILL
    finished = [e["segment"] for e in events if e["event"] == "segment"]

    code, events, errors = run()
    assert code == 0, errors
    assert finished[0] in [e["segment"] for e in events if e.get("event") == "reused"]
    assert finished[0] not in [e["segment"] for e in events if e.get("event") == "step"]
    assert next(e for e in events if e.get("event") == "stage_end" and e["name"] == "prepare")["reused"] is True
    end = events[-1]
    assert lc_ray.load(end["artifact"]).predict(["i love that flight"])[0]["label"] == "positive"

    start = time.perf_counter()
    code, events, _ = run()
    assert code == 0
    assert events == [end | {"reused": True}]
    assert time.perf_counter() - start < 20
