"""A job on a real cluster of two machines that share only a bucket: submitted, followed, hit by the loss of a machine, fetched."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import machines
import pytest
import yaml
from serving import KEY, asking

from lc_ray import artifact, spec
from lc_ray.cluster import check
from lc_ray.cluster.clusters import Cluster
from lc_ray.cluster.jobs import Jobs
from lc_ray.cluster.package import pack
from lc_ray.errors import ClusterError
from lc_ray.section import override
from lc_ray.serve import auth
from lc_ray.storage import StoragePath

pytestmark = [pytest.mark.machines, pytest.mark.skipif(machines.missing() is not None, reason=machines.missing() or "")]


@pytest.fixture(scope="module")
def bucket() -> Iterator[StoragePath]:
    """Which both machines reach, and this one."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="0.0.0.0", port=0, verbose=False)
    server.start()
    account = {"ENDPOINT_URL": f"http://{machines.GATEWAY}:{server.get_host_and_port()[1]}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (account | {"DEFAULT_REGION": "us-west-2"}).items():
            patch.setenv(f"AWS_{name}", value)
        yield StoragePath("s3://runs-of-all")
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket: StoragePath, tmp_path_factory: pytest.TempPathFactory) -> Iterator[machines.Cluster]:
    """Whose own lc_ray is another one, so that ours has to go along."""
    other = tmp_path_factory.mktemp("other") / "lc_ray"
    other.mkdir()
    (other / "__init__.py").write_text("", "utf-8")
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3"}
    with machines.cluster({"PYTHONPATH": str(other.parent), **quick}) as found:
        place = {"LocationConstraint": "us-west-2"}
        boto3.client("s3").create_bucket(Bucket=bucket.name, CreateBucketConfiguration=place)  # whose address is there now
        yield found


@pytest.fixture(scope="module")
def home(cluster: machines.Cluster, bucket: StoragePath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user's files are: the cluster's name and token, and a job that uses both machines."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "token").write_text(cluster.token, "utf-8")
    named = {"two": {"address": cluster.url, "token_file": str(folder / "token"), "storage": str(bucket)}}
    (folder / "lc_ray").mkdir()
    (folder / "lc_ray" / "clusters.yaml").write_text(yaml.safe_dump(named), "utf-8")
    return folder


@pytest.fixture(scope="module")
def there(cluster: machines.Cluster, home: Path) -> Jobs:
    return Jobs(Cluster(address=cluster.url, token_file=str(home / "token")))


@pytest.fixture(scope="module")
def job(tiny_job: dict[str, Any], home: Path) -> dict[str, Any]:
    sections = {name: section for name, section in tiny_job.items() if name not in ("search", "prune", "quantize", "accept")}
    return override(sections, {"storage": str(home / "runs"), "train.segments": 1, "train.epochs": 20, "train.checkpoint_every": 20})


@pytest.fixture(scope="module")
def lc(home: Path) -> Any:
    """lc(arguments...) → a running `lc-ray`."""

    def lc(*arguments: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"XDG_CONFIG_HOME": str(home)}
        command = [sys.executable, "-m", "lc_ray", *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return lc


def test_without_the_token_nobody_comes_in(cluster: machines.Cluster, tmp_path: Path) -> None:
    assert httpx.get(f"{cluster.url}/api/jobs/").status_code == 401
    assert httpx.post(f"{cluster.url}/api/jobs/", json={"entrypoint": "true"}).status_code == 401
    (tmp_path / "empty").write_text("", "utf-8")
    (tmp_path / "wrong").write_text("0" * 32, "utf-8")
    with pytest.raises(ClusterError, match="asks for a token"):
        Jobs(Cluster(address=cluster.url, token_file=str(tmp_path / "empty")))
    with pytest.raises(ClusterError, match="refuses the token"):
        Jobs(Cluster(address=cluster.url, token_file=str(tmp_path / "wrong")))


def test_what_a_cluster_lacks_is_told_before_anything_is_sent(there: Jobs, job: dict[str, Any], bucket: StoragePath, tmp_path: Path) -> None:
    package = pack(spec.parse(override(job, {"data.train": "/nowhere/rows.csv", "model.base": "package:nothing_there/x"})))
    named = there.cluster.model_copy(update={"storage": str(tmp_path)})
    found = check.look(Jobs(named), package)
    assert len(found["nodes"]) == 2
    assert found["lc_ray"] != check.ours()[1]
    assert found["unshared"] == []
    assert check.look(Jobs(there.cluster.model_copy(update={"storage": str(bucket)})), package)["unshared"] == []
    with pytest.raises(ClusterError) as told:
        check.require(found, package, there.address)
    assert "not all nodes see /nowhere/rows.csv" in str(told.value)
    assert "the package 'nothing_there' is missing" in str(told.value)
    assert there.all() == []
    assert check.look(Jobs(named.model_copy(update={"storage": "/dev/shm/runs"})), package)["unshared"], "each machine has its own"


@pytest.fixture(scope="module")
def run(cluster: machines.Cluster, job: dict[str, Any], home: Path, bucket: StoragePath, lc: Any) -> dict[str, Any]:
    """A submitted job's events and result; one machine is lost in mid-training, and another one joins."""
    (home / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")
    trained_on: set[str] = set()

    def lose() -> None:
        folder = bucket / "tiny" / "segments"
        while not any(name.endswith("progress.json") for name in folder.files()):  # of a whole checkpoint
            time.sleep(0.2)
        actors = cluster.get("/api/v0/actors?detail=1&limit=1000").json()["data"]["result"]["result"]
        trained_on.update(a["node_id"] for a in actors if a["class_name"] == "RayTrainWorker" and a["state"] == "ALIVE")
        cluster.network.kill(cluster.workers.pop())
        cluster.workers.append(cluster.network.worker(cluster.head))

    threading.Thread(target=lose, daemon=True).start()
    with lc("submit", str(home / "job.yaml"), "--json") as process:
        events = [json.loads(line) for line in process.stdout]
        errors = process.stderr.read()
    assert process.returncode == 0, f"{errors}\n{events[-5:]}"
    return {"events": events, "nodes": trained_on}


def test_a_job_trains_on_both_machines_and_survives_the_loss_of_one(run: dict[str, Any], home: Path) -> None:
    assert len(run["nodes"]) == 2
    seen = [(event["event"], event.get("step")) for event in run["events"] if event.get("event") in ("worker", "step")]
    first, second = (place for place, (event, _) in enumerate(seen) if event == "worker")
    assert seen[first + 1] == ("step", 1)
    assert seen[second + 1][1] >= 20, "training started once more, and went on from the checkpoint"
    assert seen[-1][1] == 480
    end = run["events"][-1]
    assert artifact.read(end["artifact"]).manifest.metrics["accuracy"] > 0.8
    assert Path(end["artifact"]) == home / "runs" / "tiny" / "model"
    assert "tiny" in Path(end["report"]).read_text("utf-8")


def test_the_same_job_is_not_run_twice(run: dict[str, Any], home: Path, there: Jobs, lc: Any) -> None:
    with lc("submit", str(home / "job.yaml"), "--json") as again:
        out, err = again.communicate()
    assert again.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == run["events"][-1]
    assert [job.status for job in there.all()] == ["SUCCEEDED"]


def test_a_stopped_job_is_over(there: Jobs, run: dict[str, Any], job: dict[str, Any], home: Path, lc: Any) -> None:
    (home / "other.yaml").write_text(yaml.safe_dump(job | {"name": "other"}), "utf-8")
    with lc("submit", str(home / "other.yaml"), "--detach", "--json") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    name = json.loads(out.splitlines()[-1])["id"]
    assert there.stop(name)
    assert there.follow(name, lambda line: None).status == "STOPPED"


def test_an_endpoint_of_both_machines_is_updated_under_load(
    cluster: machines.Cluster, there: Jobs, tiny_artifact: Path, second_artifact: Path
) -> None:
    environment = {"py_modules": [str(check.ours()[0])], "env_vars": {auth.VARIABLE: KEY}}
    settings = "--set host=0.0.0.0 --set replicas.min=2 --set replicas.max=2 --set replicas.cpu=0.5 --set timeout=90s"

    def deploy(path: Path, more: str = "") -> str:
        name = f"deploy-{uuid.uuid4().hex[:8]}"
        there.submit(f"python -m lc_ray deploy {path} --platform ray {settings} {more}", name, {}, environment)
        said: list[str] = []
        assert there.follow(name, said.append).status == "SUCCEEDED", said
        return said[-1]

    url = deploy(tiny_artifact).replace("127.0.0.1", cluster.head)
    old, new = (artifact.read(path).digest for path in (tiny_artifact, second_artifact))
    assert len(serving(cluster)) == 2
    with asking(url, KEY) as ask_until:
        ask_until({old})
        deploy(second_artifact)
        ask_until({new})
    assert len(serving(cluster)) == 2
    deploy(second_artifact, "--delete")
    assert not serving(cluster)


def serving(cluster: machines.Cluster) -> set[str]:
    """Nodes that have a replica."""
    actors = cluster.get("/api/v0/actors?detail=1&limit=1000").json()["data"]["result"]["result"]
    return {a["node_id"] for a in actors if a["class_name"].startswith("ServeReplica") and a["state"] == "ALIVE"}
