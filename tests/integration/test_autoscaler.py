"""Ray's own autoscaler brings nodes up when a job asks for workers, and takes them away; only the machines it starts are make-believe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import machines
import pytest

from lc_ray.cluster import check
from lc_ray.cluster.clusters import Cluster
from lc_ray.cluster.jobs import Jobs
from lc_ray.cluster.package import pack
from lc_ray.spec import parse

pytestmark = [pytest.mark.machines, pytest.mark.skipif(machines.missing() is not None, reason=machines.missing() or "")]

HEAD = "f" * 51 + "00000"  # as Ray's provider for tests numbers nodes
GROW = """
import json
from lc_ray import runtime
from lc_ray.spec import WorkersSpec
with runtime.session():
    print(json.dumps([node.cpu for node in runtime.grown(WorkersSpec(count=2), 1)]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machines.Cluster]:
    """A head without CPUs, and an autoscaler that may start two nodes of one."""
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    config = {
        **{f"{name}_commands": [] for name in commands},
        **{"auth": {}, "file_mounts": {}, "cluster_synced_files": []},
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "provider": {"type": "external", "module": provider, "disable_node_updaters": True, "launch_multiple": True, "head_node_id": HEAD},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }
    file = tmp_path_factory.mktemp("config") / "autoscaling.yaml"
    file.write_text(json.dumps(config), "utf-8")
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "PYTHONPATH": str(check.ours()[0].parent),
    }
    with machines.cluster(environment, workers=0, cpus=0, more=(f"--autoscaling-config={file}",)) as found:
        yield found


def test_nodes_come_for_a_job_and_go(cluster: machines.Cluster, tiny_job: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(cluster.token, "utf-8")
    jobs = Jobs(Cluster(address=cluster.url, token_file=str(tmp_path / "token"), storage=str(tmp_path / "runs")))
    package = pack(parse(tiny_job))
    found = check.look(jobs, package)
    assert [node.get("CPU", 0) for node in found["nodes"]] == [0]
    assert found["starting"], "the first look has made the autoscaler start nodes"
    check.require(found, package, jobs.address)
    assert json.loads(jobs.output(f"python -c {shlex.quote(GROW)}").splitlines()[-1]).count(1.0) == 2
    cluster.wait(1)
