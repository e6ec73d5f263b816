"""What does a cluster cost: from the command to the first step and to the end by `lc-ray submit` and by `lc-ray run`, and from step to step, with
storage in a folder that all machines mount, and in a bucket?

Machines are network namespaces of this one, as in tests/integration/machines.py (needs root), so that all runs have the same cores; the bucket is
moto's on this machine, in a process of its own. What is seen is the cost of the software between machines, not of a real network.

Use: python benchmarks/submit.py [--rounds 2]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integration"))
import machines

JOB = "benchmarks/compression.yaml"
SMALLER = {"quantize": None, "prune": None, "accept": None, "data.rows": 3000, "data.validation": "500 rows"}
SMALLER |= {"train.epochs": 1, "train.segments": 1, "train.workers.count": 2, "train.workers.cpu": 1}
LC = [sys.executable, "-m", "lc_ray"]
RUNS = [("run", 0, False), ("submit, 1 machine", 1, False), ("submit, 2 machines", 2, False)]
RUNS += [("submit, 1 machine, bucket", 1, True), ("submit, 2 machines, bucket", 2, True)]
S3 = 5005


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds from the command to the first step, between steps (median), and from the command to its end."""
    start, times = time.time(), []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            event = json.loads(line)
            if event.get("event") == "step":
                times.append(event["time"])
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return times[0] - start, statistics.median(b - a for a, b in itertools.pairwise(times)), time.time() - start


@contextlib.contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """moto's S3 for all machines; the environment in which it is found."""
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(S3)], stderr=subprocess.DEVNULL)
    account = {"ENDPOINT_URL": f"http://{machines.GATEWAY}:{S3}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}
    try:
        yield {f"AWS_{name}": value for name, value in account.items()}
    finally:
        server.kill()
        server.wait()


def submitted(folder: str, options: list[str], nodes: int, aws: dict[str, str]) -> tuple[float, float, float]:
    """`timed` of a job that is submitted to so many machines."""
    with machines.cluster(aws, workers=nodes - 1, cpus=2 // nodes) as cluster:
        storage = f"{folder}/shared"
        if aws:
            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{S3}", aws_access_key_id="a", aws_secret_access_key="b").create_bucket(Bucket="shared")
            storage = "s3://shared"
        Path(folder, "lc_ray").mkdir(exist_ok=True)
        named = {"here": {"address": cluster.url, "storage": storage}}
        Path(folder, "lc_ray", "clusters.yaml").write_text(yaml.safe_dump(named), "utf-8")
        return timed([*LC, "submit", JOB, "--json", *options], {**os.environ, **aws, "XDG_CONFIG_HOME": folder, "RAY_AUTH_TOKEN": cluster.token})


def main() -> None:
    """Run the same job in each way, in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if why := machines.missing():
        sys.exit(why)
    for turn in range(options.rounds):
        for where, nodes, shared in RUNS:
            with tempfile.TemporaryDirectory() as folder, bucket() if shared else contextlib.nullcontext({}) as aws:
                sets = {**SMALLER, "name": "cost", "storage": f"{folder}/runs"}
                given = [part for path, value in sets.items() for part in ("--set", f"{path}={yaml.safe_dump(value).splitlines()[0]}")]
                found = submitted(folder, given, nodes, aws) if nodes else timed([*LC, "run", JOB, "--json", *given], dict(os.environ))
            first, step, end = found
            print(f"{turn + 1} {where:28} first step after {first:5.1f} s, then {1000 * step:4.0f} ms each; done after {end:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
