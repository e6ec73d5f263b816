"""What a submitted job is on the cluster: `python -m lc_ray.cluster.remote ID DIGEST [RESULTS]`, in the package's folder.

It prints what `lc-ray run --json` prints, and last how it ended: a line that `follow` reads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import ray
import ray._private.worker  # the folder of logs is told nowhere else

from lc_ray import pipeline, runtime, spec
from lc_ray.cluster.fetch import publish
from lc_ray.cluster.jobs import TAG
from lc_ray.cluster.package import FOLDER, JOB
from lc_ray.errors import AcceptError, ClusterError, LcRayError, unwrap


def run(name: str, digest: str, results: str | None) -> dict[str, Any]:
    """Run the packaged job; how it ended.

    Args:
        name: id of the job.
        digest: of its files.
        results: URI below which the finished run is copied.
    """
    try:
        job = spec.parse(json.loads(Path(JOB).read_text("utf-8")))
        _place(Path(FOLDER), Path(job.storage) / "inputs" / digest)
        folder = Path(job.storage) / job.name
        with runtime.session():
            _show(folder, name)
            try:
                done = pipeline.run(job, "json")
            except AcceptError as refused:  # whose record and report are finished too
                try:
                    publish(folder, results)
                except ClusterError as error:
                    refused.what += f"; and {error}"
                raise
            publish(folder, results)
        return {"event": "result", "metrics": done.metrics, "reused": done.reused}
    except Exception as error:
        ours = unwrap(error)
        if not isinstance(ours, LcRayError):
            raise
        return {"event": "error", "kind": type(ours).__name__, "what": ours.what, "where": ours.where, "fix": ours.fix}


def _place(source: Path, target: Path) -> None:
    """Copy the job's files to storage, where all nodes see them, and later runs find them as old as they were."""
    if target.exists() or not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    shutil.copytree(source, partial)
    try:
        partial.rename(target)
    except OSError:  # another job was first
        shutil.rmtree(partial)


def _show(folder: Path, name: str) -> None:
    """Make the run's folder readable through the dashboard, which serves what is below the logs."""
    link = Path(ray._private.worker._global_node.get_logs_dir_path()) / TAG / name
    link.parent.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        os.symlink(folder, link)


def main() -> None:
    """Entry point; exits as `lc-ray run` does."""
    end = run(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    print(json.dumps(end), flush=True)
    sys.exit(0 if end["event"] == "result" else 3 if end["kind"] == AcceptError.__name__ else 1)


if __name__ == "__main__":
    main()
