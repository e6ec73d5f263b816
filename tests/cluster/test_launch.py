"""The launcher files in cluster/, and the image."""

import re
from pathlib import Path

import pytest
import yaml

from lc_ray.cluster import launch
from lc_ray.errors import ClusterError

FILES = sorted(Path("cluster").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_file_is_what_rays_schema_says(file):
    config = launch.read(file)
    written = yaml.safe_load(file.read_text("utf-8"))
    assert set(written["provider"]) <= {"type", "region", "availability_zone", "cache_stopped_nodes", "project_id", "head_ip", "worker_ips"}
    assert config["head_start_ray_commands"] == written["head_start_ray_commands"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_cluster_asks_for_a_token_and_shows_no_port(file):
    config = launch.read(file)
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert not [option for option in config["docker"]["run_options"] if "publish" in option or option.startswith("-p")]


@pytest.mark.parametrize(("name", "who"), [("aws", "IamInstanceProfile"), ("gcp", "serviceAccounts")])
def test_every_machine_may_pull_the_image(name, who):
    config = launch.read(Path("cluster") / f"{name}.yaml")
    assert all(kind["node_config"].get(who) for kind in config["available_node_types"].values()), "workers have no account of their own"
    registry = config["docker"]["image"].partition("/")[0]
    assert [command for command in config["initialization_commands"] if "docker" in command and registry in command]


def test_a_container_with_a_gpu_waits_for_its_driver():
    config = launch.read(Path("cluster/gcp.yaml"))
    for kind in config["available_node_types"].values():
        assert ("install-nvidia-driver" in str(kind["node_config"].get("metadata"))) == ("GPU" in kind["resources"])
    assert [command for command in config["initialization_commands"] if "until nvidia-smi" in command]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_spot_machines_come_first_and_others_where_there_are_none(name):
    """Asked of the scheduler that Ray's autoscaler runs."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingNode
    from ray.autoscaler.v2.scheduler import ResourceRequestSource as Source
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    types = AutoscalingConfig(launch.read(Path("cluster") / f"{name}.yaml"), skip_content_hash=True).get_node_type_configs()
    assert types["gpu_spot"].resources == types["gpu_on_demand"].resources == {"CPU": 8, "GPU": 1}

    def chosen(failed):
        nodes = [SchedulingNode.from_node_config(types[kind], status=None, node_kind=None) for kind in ("gpu_on_demand", "gpu_spot")]
        wanted = [ResourceRequestUtil.make({"GPU": 1.0})]
        best, _, _ = ResourceDemandScheduler._sched_best_node(wanted, nodes, Source.PENDING_DEMAND, {}, failed)
        return best.node_type

    assert chosen({}) == "gpu_spot"
    assert chosen({"gpu_spot": 0.0}) == "gpu_on_demand"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster_name: [", "can't be read"),
        ("cluster_name: x\nprovider: {type: local, head_ip: a, worker_ips: []}\nauth: {ssh_user: me}\ndocker: {images: x}\n", "images"),
        ("just words", "not a launcher file of Ray: it names no provider"),
        ("", "it names no provider"),
    ],
)
def test_mistakes_are_told_before_rays_launcher_starts(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    with pytest.raises(ClusterError, match=message):
        launch.run("up", tmp_path / "x.yaml", yes=True)
    with pytest.raises(ClusterError, match="can't be read"):
        launch.run("up", tmp_path / "nothing.yaml", yes=True)


def test_the_image_is_pinned_and_not_root():
    text = Path("cluster/Dockerfile").read_text("utf-8")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    assert [stage.partition("\n")[0].partition(" AS ")[2] for stage in stages] == ["build", "runtime", "sagemaker", ""]
    installs = re.findall(r"pip install (.*)", text)
    assert installs
    assert [line for line in installs if "--constraint constraints.txt" not in line and "--no-deps ." not in line] == []
    for stage in stages[2:]:
        assert stage.startswith("runtime")
    assert re.findall(r"^USER (.*)$", stages[1], re.MULTILINE) == ["ray"]
    kept = [line[1:] for line in Path("cluster/Dockerfile.dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    copied = [name for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert set(copied) == set(kept)
    assert all(Path(name).exists() for name in kept)
    links = [str(link.resolve().relative_to(Path.cwd())) for link in Path("lc_ray").rglob("*") if link.is_symlink()]
    assert links
    assert [link for link in links if not any(Path(link).is_relative_to(name) for name in copied)] == [], "leads nowhere in the image"
    assert Path("cluster/serve").stat().st_mode & 0o111
