"""Whether a cluster can run a job, found out before anything of it is uploaded."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import lc_ray
from lc_ray.cluster import probe
from lc_ray.cluster.jobs import Jobs
from lc_ray.cluster.package import Package
from lc_ray.errors import ClusterError
from lc_ray.train import plan

_HOME = "~/lc_ray_runs"  # of a cluster of one node, where no storage is named


def look(jobs: Jobs, package: Package) -> dict[str, Any]:
    """What `probe.look` finds on the cluster."""
    wanted = {
        "storage": storage(jobs, package),
        "paths": package.there,
        "packages": package.modules,
        "versions": [requirement.name for requirement in _requirements()],
        "workers": package.job.train.workers.model_dump(include={"count", "cpu", "gpu"}),
    }
    said = jobs.output(f"python -c {shlex.quote(Path(probe.__file__).read_text('utf-8'))} {shlex.quote(json.dumps(wanted))}")
    try:
        return dict(json.loads(said.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        raise ClusterError(f"a first look at the cluster said: {said[-500:]}", jobs.address) from None


def storage(jobs: Jobs, package: Package) -> str:
    """Where the cluster keeps runs."""
    named = package.job.storage
    place = jobs.cluster.storage or (named if named.startswith("/") or "://" in named else _HOME)
    return place.rstrip("/")


def require(found: dict[str, Any], package: Package, where: str) -> None:
    """Raise ClusterError with all that the cluster lacks."""
    lacks = [*_environment(found), *_places(found)]
    if not found["starting"]:
        nodes = [plan.Resources.of(node) for node in found["nodes"]]
        lacks += plan.placement(package.job.train.workers, nodes).missing
    if lacks:
        raise ClusterError("it can't run this job:\n  " + "\n  ".join(lacks), where, "nothing was uploaded")


def _environment(found: dict[str, Any]) -> list[str]:
    lacks = []
    if found["python"] not in (wanted := SpecifierSet(importlib.metadata.metadata("lc_ray")["Requires-Python"])):
        lacks.append(f"Python {found['python']} is there, {wanted} is needed")
    for requirement in _requirements():
        version = found["versions"].get(requirement.name)
        if version is None:
            lacks.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            lacks.append(f"{requirement.name} {version} is there, {requirement.specifier} is needed")
    return lacks + [f"the package '{name}' is missing" for name in found["packages"]]


def _places(found: dict[str, Any]) -> list[str]:
    lacks = [f"not all nodes see {path}" for path in found["absent"]]
    if found["refused"]:
        lacks.append(f"nothing can be written to its storage {found['storage']}: {found['refused']}")
    if found["unshared"]:
        nodes = ", ".join(found["unshared"])
        fix = "name a folder that all nodes mount, or a bucket, as `storage` of the cluster"
        lacks.append(f"node {nodes} does not see {found['storage']} as the head does: {fix}")
    return lacks


@functools.cache
def _requirements() -> tuple[Requirement, ...]:
    """What lc_ray needs, without extras."""
    every = (Requirement(text) for text in importlib.metadata.requires("lc_ray") or ())
    return tuple(r for r in every if r.marker is None or r.marker.evaluate({"extra": ""}))


@functools.cache
def ours() -> tuple[Path, str]:
    """The package lc_ray that runs here, and its digest."""
    folder = Path(lc_ray.__file__).parent
    return folder, probe.digest(folder)
