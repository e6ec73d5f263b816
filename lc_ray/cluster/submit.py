"""`lc-ray submit`: a job packed, checked, sent to a cluster, followed as if it ran here, and its result fetched."""

from __future__ import annotations

import functools
import json
import os
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

from lc_ray import runtime
from lc_ray.cluster import check
from lc_ray.cluster.jobs import TAG, Job, Jobs
from lc_ray.cluster.package import Package, pack
from lc_ray.errors import AcceptError, ClusterError, LcRayError
from lc_ray.progress import Display, Mode
from lc_ray.results import fetch, published
from lc_ray.runs import RECORD
from lc_ray.spec import JobSpec
from lc_ray.storage import storage_path

_STOPS = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}  # until Ray kills one that is stopped: after its usual 3 an endpoint would stay, which outlives jobs
_LINES = 10  # of a job that ended without a word, shown


def submit(spec: JobSpec, jobs: Jobs, display: Display) -> Job:
    """Send a job to a cluster, unless this very job is there already and waits, runs, or was the last of its name and succeeded; as it is there.

    One whose data is not sent along is sent again once it has succeeded: whether the data is the same is found there, and then nothing is done.

    Raises:
        DataError: its data is not here.
        ClusterError: the cluster can't run it, or runs another job of the same name.
    """
    with display.stage("pack", "pack: find the files that the job names"):
        package = pack(spec, jobs.cluster.storage)
        key = package.key(check.ours()[1])
    before = [job for job in jobs.all() if job.name == spec.name]
    kept = before[-1:] if package.whole else []  # the last, whose result is in the run's folder
    if known := next((job for job in before if job.key == key and (job.active or (job in kept and job.status == "SUCCEEDED"))), None):
        return known
    if other := next((job for job in before if job.active), None):
        fix = f"`lc-ray jobs stop {other.id}`, or give the job another name"
        raise ClusterError(f"another job named '{spec.name}' runs there and writes to the same folder", other.id, fix)
    with display.stage("check", "check: ask the cluster for versions, room and storage"):
        found = check.look(jobs, package)
        check.require(found, package, jobs.address)
    attempts = sum(job.key == key for job in before)
    name = f"{spec.name}-{key[:8]}" + (f"-{attempts + 1}" if attempts else "")
    with display.stage("upload", f"upload: {len(package.files)} file(s)"):
        try:
            _send(jobs, package, found, name, {TAG: key, "name": spec.name})
        except ClusterError:
            if not any(job.id == name for job in jobs.all()):  # else somebody has sent it meanwhile, or the answer was lost on the way
                raise
    return jobs.get(name)


def _send(jobs: Jobs, package: Package, found: dict[str, Any], name: str, metadata: dict[str, str]) -> None:
    folder, digest = check.ours()
    results = jobs.cluster.results or (found["storage"] if "://" in found["storage"] else "")
    command = ["python", "-m", "lc_ray.cluster.remote", name, package.digest, *([jobs.cluster.results] if jobs.cluster.results else [])]
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "job.zip"
        package.write(archive, found["storage"])
        environment = {
            "working_dir": str(archive),
            "env_vars": {name: os.environ.get(name, value) for name, value in (runtime.ENVIRONMENT | _STOPS).items()},
            # The cluster's own lc_ray if it is the very same, else this one goes along.
            **({} if found["lc_ray"] == digest else {"py_modules": [str(folder)]}),
        }
        jobs.submit(shlex.join(command), name, metadata | {"results": results}, environment)


def tell(jobs: Jobs, name: str, display: Display, raw: bool = False, wait: bool = True) -> tuple[Job, dict[str, Any], list[str]]:
    """Show what a job prints.

    Args:
        jobs: of its cluster.
        name: its id.
        display: for its events.
        raw: print lines as they are instead.
        wait: until it is over, not only what it has printed by now.

    Returns:
        The job; how it ended, if it told; and the last of what else it printed.
    """
    said: list[str] = []
    end: dict[str, Any] = {}

    def take(line: str) -> None:
        event = _event(line)
        if raw:
            print(line, flush=True)
        elif event is None:
            said.append(line)
            del said[:-_LINES]
        elif event["event"] in ("result", "error"):
            end.update(event)
        else:
            display.show(event)

    if not wait:
        for line in jobs.said(name).splitlines():
            take(line)
        return jobs.get(name), end, said
    with display.bars():
        return jobs.follow(name, take), end, said


def follow(jobs: Jobs, name: str, display: Display) -> Job:
    """Show a job's events until it is over.

    Raises:
        LcRayError: what the job ended with.
    """
    job, end, said = tell(jobs, name, display)
    judge(job, end, said)
    return job


def judge(job: Job, end: dict[str, Any], said: list[str]) -> None:
    """Raise what a job ended with, if that is an error; takes what `tell` returns."""
    if end.get("event") == "error":
        kinds = {kind.__name__: kind for kind in LcRayError.__subclasses__()}
        raise kinds.get(end["kind"], ClusterError)(end["what"], end["where"], end["fix"])
    if job.status != "SUCCEEDED":
        last = "\n  ".join([job.message, *said])
        raise ClusterError(f"the job ended as {job.status}: {last}", job.id, "submit it again to go on where it was")


def _event(line: str) -> dict[str, Any] | None:
    """The event that a line is, if it is one."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if found and "event" in found else None


def bring(jobs: Jobs, job: Job, folder: Path, accepted: bool = True) -> dict[str, Any]:
    """Fetch a finished run into a folder here; its record.

    Raises:
        ClusterError: it is not over, or a later job of the same name has written to the run's folder.
    """
    if job.active:
        raise ClusterError(f"the job is {job.status}", job.id, f"follow it: lc-ray jobs logs -f {job.id}")
    last = next(one for one in reversed(jobs.all()) if one.name == job.name)
    if last.id != job.id:
        raise ClusterError("a later job of that name has written over its folder", job.id, f"fetch that one, {last.id}, or submit this one again")
    download = published(storage_path(job.results) / job.name) if job.results else functools.partial(jobs.download, job)
    fetch(download, folder, accepted)
    return dict(json.loads((folder / RECORD).read_text("utf-8")))


def run(spec: JobSpec, jobs: Jobs, mode: Mode, wait: bool = True) -> tuple[Job, dict[str, Any] | None]:
    """Submit a job, follow it, and fetch its result into storage/name here.

    Args:
        spec: the job.
        jobs: of the cluster.
        mode: what to show meanwhile.
        wait: whether to follow it to its end.

    Returns:
        The job, and the record of its run, if it was followed.

    Raises:
        AcceptError: the model did not pass the gate; record and report are fetched.
        ClusterError: see `submit`.
    """
    folder = spec.folder
    display = Display(None, mode)
    job = submit(spec, jobs, display)
    if not wait:
        return job, None
    display.show({"event": "submitted", "job": job.id, "status": job.status, "time": time.time()})
    try:
        job = follow(jobs, job.id, display)
    except AcceptError as error:
        bring(jobs, jobs.get(job.id), folder, accepted=False)
        raise AcceptError(error.what, str(folder / "report.html"), error.fix) from None
    return job, bring(jobs, job, folder)
