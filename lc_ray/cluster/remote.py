"""What a submitted job is on the cluster: `python -m lc_ray.cluster.remote ID DIGEST [RESULTS]`, in the package's folder.

It prints what `lc-ray run --json` prints, and last how it ended: a line that `follow` reads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
import ray._private.worker  # the folder of logs is told nowhere else

from lc_ray import pipeline, runtime, spec
from lc_ray.cluster.jobs import TAG
from lc_ray.cluster.package import FOLDER, JOB
from lc_ray.errors import AcceptError, ClusterError, LcRayError, unwrap
from lc_ray.results import publish
from lc_ray.storage import storage_path


def run(name: str, digest: str, results: str | None) -> dict[str, Any]:
    """Run the packaged job; how it ended.

    Args:
        name: id of the job.
        digest: of its files.
        results: URI below which the finished run is copied.
    """
    try:
        job = spec.parse(json.loads(Path(JOB).read_text("utf-8")))
        # Where all nodes see them, and later runs find them as old as they were.
        (storage_path(job.storage) / "inputs" / digest).complete(Path(FOLDER))
        target = storage_path(results) / job.name if results else None
        with runtime.session():
            _show(job.folder, name)
            try:
                done = pipeline.run(job, "json")
            except AcceptError as refused:  # whose record and report are finished too
                try:
                    if target:
                        publish(job.folder, target)
                except ClusterError as error:
                    refused.what += f"; and {error}"
                raise
            if target:
                publish(job.folder, target)
        return {"event": "result", "metrics": done.metrics, "reused": done.reused}
    except Exception as error:
        ours = unwrap(error)
        if not isinstance(ours, LcRayError):
            raise
        return {"event": "error", "kind": type(ours).__name__, "what": ours.what, "where": ours.where, "fix": ours.fix}


def _show(folder: Path, name: str) -> None:
    """Make the run's folder readable through the dashboard, which serves what is below the logs."""
    link = Path(ray._private.worker._global_node.get_logs_dir_path()) / TAG / name
    link.parent.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        os.symlink(folder, link)


def main() -> None:
    """Entry point; exits as `lc-ray run` does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of `lc-ray jobs stop`: as after Ctrl-C, nothing is to be left on the cluster
    try:
        end = run(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    print(json.dumps(end), flush=True)
    sys.exit(0 if end["event"] == "result" else 3 if end["kind"] == AcceptError.__name__ else 1)


if __name__ == "__main__":
    main()
