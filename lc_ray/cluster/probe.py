"""What a cluster is and has. The text of this file runs as a job there before anything is sent, so it imports nothing of ours."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWERS = 60.0  # seconds in which every node has to
_DECIDES = 15.0  # seconds in which an autoscaler has begun to start nodes, if it can


def digest(package: Path) -> str:
    """Name of a Python package's content."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            found.update(f"{file.relative_to(package)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def look(wanted: dict[str, Any]) -> dict[str, Any]:
    """Describe the cluster.

    Args:
        wanted: `storage`, a folder for runs, made if missing, or a bucket; `paths` that all nodes should see; `packages` that should be importable;
            `versions`, distributions whose version to tell; `workers`, that train one model: `count`, and `cpu` and `gpu` each.
    """
    ray.init("auto", log_to_driver=False)
    storage = wanted["storage"] if "://" in wanted["storage"] else str(Path(wanted["storage"]).expanduser().absolute())
    mark = f"{storage.rstrip('/')}/.{uuid.uuid4().hex}"
    refused = _refused(mark)
    alive = [node for node in ray.nodes() if node["Alive"]]
    try:
        absent = _absent(alive, [mark, *wanted["paths"]])
    finally:
        if not refused:
            system, path = _system(mark)
            system.delete_file(path)
    ours = importlib.util.find_spec("lc_ray")
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in wanted["versions"]},
        "lc_ray": digest(Path(ours.submodule_search_locations[0])) if ours and ours.submodule_search_locations else None,
        "packages": [name for name in wanted["packages"] if not _importable(name)],
        "storage": storage,
        "nodes": [node["Resources"] for node in alive],
        "starting": _starting(wanted["workers"], [node["Resources"] for node in alive]),
        "refused": refused,
        "unshared": sorted(node for node, paths in absent.items() if mark in paths and not refused),
        "absent": sorted({path for paths in absent.values() for path in paths} - {mark}),
    }


def _refused(file: str) -> str:
    """Why an empty file can't be written; nothing if it was."""
    try:
        system, path = _system(file)
        if system.type_name == "local":
            system.create_dir(path.rpartition("/")[0], recursive=True)
        system.open_output_stream(path).close()
    except (OSError, ValueError, NotImplementedError) as error:  # of pyarrow's, several are one of these
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _absent(alive: list[Any], paths: list[str]) -> dict[str, list[str]]:
    """By the address of each node, the paths that it does not see."""

    def missing() -> list[str]:
        return [path for path in paths if not _exists(path)]

    task = ray.remote(num_cpus=0)(missing)
    asked = {
        node["NodeManagerAddress"]: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in alive
    }
    return dict(zip(asked, ray.get(list(asked.values()), timeout=_ANSWERS), strict=True))


def _exists(path: str) -> bool:
    try:
        system, inside = _system(path)
        return bool(system.get_file_info(inside).type != pyarrow.fs.FileType.NotFound)
    except (OSError, ValueError, NotImplementedError):
        return False


def _system(path: str) -> tuple[Any, str]:
    """The file system of a path or URI, and its path there; as in `lc_ray.storage`."""
    uri = urllib.parse.quote(path, safe="%/:@?&=+,;[]!$'()*~")
    return pyarrow.fs.FileSystem.from_uri(uri) if "://" in path else (pyarrow.fs.LocalFileSystem(), path)


def _starting(workers: dict[str, Any], nodes: list[dict[str, float]]) -> bool:
    """Whether the workers find too few nodes, and an autoscaler has begun to start more."""
    each = {name: workers[key] for name, key in (("CPU", "cpu"), ("GPU", "gpu")) if workers[key]}
    if sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in each.items()) for node in nodes) >= workers["count"]:
        return False
    end = time.monotonic() + _DECIDES
    try:
        while time.monotonic() < end:
            request_resources(bundles=[each] * workers["count"])  # again and again: another job's takes its place
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            if status.pending_launches or status.pending_nodes:
                return True
            time.sleep(0.5)
        return False
    finally:
        request_resources(bundles=[])  # the job asks again; a request that nobody takes back would keep nodes for ever


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # of the package that it would be in
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(look(json.loads(sys.argv[1]))))
