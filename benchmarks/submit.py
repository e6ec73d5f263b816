"""What does a cluster cost: from the command to the first step by `lc-ray submit` and by `lc-ray run`, and crossing machines while training?

Machines are network namespaces of this one, as in tests/integration/machines.py (needs root), so that all runs have the same cores:
what is seen is the cost of the software between machines, not of a real network.

Use: python benchmarks/submit.py [--epochs 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integration"))
import machines

JOB = "benchmarks/compression.yaml"
SMALLER = {"quantize": None, "prune": None, "accept": None, "train.segments": 1, "train.workers.count": 2, "train.workers.cpu": 1}


def first_step(command: list[str], environment: dict[str, str]) -> tuple[float, list[float]]:
    """Seconds from the command to the first step, and between the steps that follow."""
    start, times = time.time(), []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event.get("event") == "step":
                times.append(event["time"])
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return times[0] - start, [b - a for a, b in itertools.pairwise(times)]


def main() -> None:
    """Run the same job locally, submitted to one machine, and submitted to two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=float, default=1.0)
    epochs = parser.parse_args().epochs
    if why := machines.missing():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as folder:
        for where, nodes in (("here", 0), ("submitted, 1 machine", 1), ("submitted, 2 machines", 2)):
            name = f"nodes{nodes}"
            sets = {**SMALLER, "train.epochs": epochs, "name": name, "storage": f"{folder}/{name}"}
            options = [part for path, value in sets.items() for part in ("--set", f"{path}={yaml.safe_dump(value).splitlines()[0]}")]
            lc = [sys.executable, "-m", "lc_ray"]
            if not nodes:
                took, steps = first_step([*lc, "run", JOB, "--json", *options], dict(os.environ))
            else:
                with machines.cluster({}, workers=nodes - 1, cpus=2 // nodes) as cluster:
                    Path(folder, "lc_ray").mkdir(exist_ok=True)
                    named = {"here": {"address": cluster.url, "storage": f"{folder}/shared"}}
                    Path(folder, "lc_ray", "clusters.yaml").write_text(yaml.safe_dump(named), "utf-8")
                    environment = {**os.environ, "XDG_CONFIG_HOME": folder, "RAY_AUTH_TOKEN": cluster.token}
                    took, steps = first_step([*lc, "submit", JOB, "--json", *options], environment)
            print(f"{where}: first step after {took:.1f} s, then {1000 * statistics.median(steps):.0f} ms each, median of {len(steps)}")


if __name__ == "__main__":
    main()
