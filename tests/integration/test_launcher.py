"""`lc-ray cluster up` with the launcher file for machines of one's own, on two machines that are there: a real sshd on each.

Left out of the file is Docker alone, so what its image and `run_options` bring is in the machines' profile.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import machines
import pytest
import yaml

from lc_ray import artifact
from lc_ray.section import override


def missing() -> str | None:
    """Why there can be no such machines here, if so."""
    lacking = [name for name in ("sshd", "ssh", "ssh-keygen", "rsync") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    return machines.missing() or (f"no {', '.join(lacking)} here (packages openssh-server and rsync)" if lacking else None)


pytestmark = [pytest.mark.machines, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240", "GLOO_SOCKET_IFNAME": "eth0"}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home, with an SSH key and a token of Ray's."""
    home = tmp_path_factory.mktemp("user")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32), "utf-8")
    for name in ("id", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    return home


@pytest.fixture(scope="module")
def network(user: Path) -> Iterator[machines.Network]:
    """Two machines that only know SSH."""
    made = machines.Network(ENVIRONMENT)
    try:
        home = made.temp / "home"  # of root, each machine its own
        lines = [f"HostKey {user}/host", f"AuthorizedKeysFile {user}/id.pub", "PermitRootLogin prohibit-password", "StrictModes no", "PidFile none"]
        (user / "sshd").write_text("\n".join(lines), "utf-8")
        profile = [f"export {name}={value}" for name, value in ENVIRONMENT.items()] + [f"export PATH={Path(sys.executable).parent}:$PATH"]
        (user / "profile").write_text("\n".join(profile), "utf-8")
        (user / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n", "utf-8")
        own = f"mount --bind {user}/passwd /etc/passwd && mkdir -p /tmp/ray /run/sshd && mount -t tmpfs tmpfs /tmp/ray"
        at_home = f"mkdir {home} && cp {user}/profile {home}/.profile && ln -s {Path.home()}/.cache {home}/.cache"  # what DeepSpeed compiled
        for _ in range(2):
            name, address = made.join()
            sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
            made.run(name, address, [str(sshd), "-D", "-e", "-f", f"{user}/sshd"], f"{own} && {at_home}")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def file(network: machines.Network, user: Path) -> Path:
    """The launcher file that is in cluster/, for these machines."""
    config = yaml.safe_load(Path("cluster/on_premises.yaml").read_text("utf-8"))
    head, worker = network.running
    del config["docker"]
    config["cluster_name"] = network.name
    config["provider"] |= {"head_ip": head, "worker_ips": [worker]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{user}/id"}
    (source,) = config["file_mounts"].values()
    config["file_mounts"] = {f"{network.temp}/home/.ray/auth_token": source}
    path = user / "cluster.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


@pytest.fixture(scope="module")
def environment(user: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(user), "XDG_CONFIG_HOME": str(user / ".config"), "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def lc(environment: dict[str, str]) -> Any:
    """lc(arguments...) → what `lc-ray` printed."""

    def lc(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "lc_ray", *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return lc


@pytest.fixture(scope="module")
def url(lc: Any, file: Path, environment: dict[str, str]) -> Iterator[str]:
    """The cluster's dashboard, as `ray dashboard` brings it here."""
    lc("cluster", "up", str(file), "--yes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", str(file), "--port", str(port)]
    with subprocess.Popen(ray, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as forwarding:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(forwarding.pid, 9)


@pytest.fixture(scope="module")
def nodes(url: str, lc: Any) -> list[str]:
    """The lines of `lc-ray cluster status` once the worker is there."""
    end = time.monotonic() + 300
    while True:
        try:
            lines: list[str] = lc("cluster", "status", "--address", url).splitlines()
            if sum("ALIVE" in line for line in lines) == 2:
                return lines
        except AssertionError:  # the way there is not open yet
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end
        time.sleep(2)


def test_head_and_worker_come_up_and_ask_for_the_token(nodes: list[str], url: str, network: machines.Network) -> None:
    assert all(any(address in line for line in nodes) for address in network.running)
    assert httpx.get(f"{url}/api/jobs/").status_code == 401


def test_a_job_runs_there(nodes: list[str], url: str, lc: Any, user: Path, tiny_job: dict[str, Any]) -> None:
    sections = {name: section for name, section in tiny_job.items() if name not in ("search", "prune", "quantize", "accept")}
    job = override(sections, {"storage": str(user / "runs"), "train.segments": 1, "train.workers.count": 1})
    (user / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")
    (user / ".config" / "lc_ray").mkdir(parents=True)
    named = {"own": {"address": url, "storage": str(user / "shared")}}
    (user / ".config" / "lc_ray" / "clusters.yaml").write_text(yaml.safe_dump(named), "utf-8")
    lc("submit", str(user / "job.yaml"), "--cluster", "own", "--quiet")
    assert artifact.read(user / "runs" / "tiny" / "model").manifest.metrics["accuracy"] > 0.5


def test_a_second_up_changes_nothing_and_down_ends_it(nodes: list[str], lc: Any, file: Path, url: str) -> None:
    lc("cluster", "up", str(file), "--yes")
    lc("cluster", "down", str(file), "--yes")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/api/jobs/")
    lc("cluster", "down", str(file), "--yes")
