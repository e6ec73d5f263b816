"""Machines on this machine: a network namespace each, joined by a bridge, with processes and memory of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

PORT = 8265
PREFIX = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
GATEWAY = f"{PREFIX}.1"  # this machine, as the others see it


def missing() -> str | None:
    """Why there can be no machines here, if so."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "no `ip` or `unshare` here (packages iproute2 and util-linux)"
    probe = f"lcr{os.getpid()}"
    made = subprocess.run(["ip", "link", "add", probe, "type", "bridge"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", probe], capture_output=True, check=False)
    netns = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if made.returncode == netns.returncode == 0 else "namespaces and bridges can't be made here"


class Network:
    """A bridge and the machines on it. What is started here ends with `close`.

    Args:
        environment: of all machines' processes.
        cpus: of each machine.
    """

    def __init__(self, environment: dict[str, str], cpus: int = 1) -> None:
        self.cpus = cpus
        self.name = f"lcr{os.getpid() % 100000}"
        self.temp = Path(tempfile.mkdtemp(prefix="lcr", dir="/tmp"))  # a short path: sockets are below it
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        usual = {"GLOO_SOCKET_IFNAME": "eth0", "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240", "RAY_worker_niceness": "0", "PATH": path}
        self.environment = {**os.environ, **usual, **environment}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.count = 1
        _sh(f"ip link add {self.name} type bridge && ip addr add {GATEWAY}/24 dev {self.name} && ip link set {self.name} up")

    def join(self) -> tuple[str, str]:
        """A new machine's name and address."""
        self.count += 1
        name, address = f"{self.name}n{self.count}", f"{PREFIX}.{self.count}"
        _sh(
            f"ip netns add {name} && ip link add {name} type veth peer name eth0 netns {name} && ip link set {name} master {self.name} up"
            f" && ip -n {name} addr add {address}/24 dev eth0 && ip -n {name} link set eth0 up && ip -n {name} link set lo up"
            f" && ip -n {name} route add default via {GATEWAY}"  # by which Ray finds out its own address
        )
        return name, address

    def run(self, name: str, address: str, command: Sequence[str], first: str = "true") -> None:
        """Run a command on a machine, and before it what the shell is to do there."""
        # Folders that machines do not share: shared memory and Ray's own files.
        enter = f'mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs {self.temp} && {first} && "$@" && exec sleep infinity'
        within = ["ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", enter, "sh"]
        with open(self.temp / f"{name}.log", "wb") as log:
            self.running[address] = subprocess.Popen([*within, *command], env=self.environment, stdout=log, stderr=log, cwd="/")

    def start(self, *ray: str) -> str:
        """Start a Ray node on a new machine; its address."""
        name, address = self.join()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *ray, f"--node-ip-address={address}", f"--num-cpus={self.cpus}"]
        self.run(name, address, [*command, "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats"])
        return address

    def head(self, *more: str) -> str:
        """Start a head; its address."""
        address = f"{PREFIX}.{self.count + 1}"
        ports = ["--port=6379", f"--dashboard-host={address}", f"--dashboard-port={PORT}", f"--temp-dir={self.temp}"]
        return self.start("--head", *ports, *more)

    def worker(self, head: str) -> str:
        """Start a worker; its address."""
        return self.start(f"--address={head}:6379")

    def kill(self, address: str) -> None:
        """Take a machine's power away."""
        process = self.running.pop(address)
        process.send_signal(signal.SIGKILL)
        process.wait()
        name = f"{self.name}n{address.rpartition('.')[2]}"
        _sh(f"ip netns del {name}; ip link del {name} 2>/dev/null || true")

    def close(self) -> None:
        """End all machines."""
        for address in list(self.running):
            self.kill(address)
        _sh(f"ip link del {self.name}")
        shutil.rmtree(self.temp, ignore_errors=True)


class Cluster:
    """Ray machines that ask for a token.

    Args:
        environment: of their processes.
        workers: machines beside the head.
        cpus: of each machine.
        more: options of the head.

    Attributes:
        url: of the dashboard.
        token: that it asks for.
    """

    def __init__(self, environment: dict[str, str], workers: int = 1, cpus: int = 1, more: tuple[str, ...] = ()) -> None:
        self.token = secrets.token_hex(16)
        self.network = Network({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, **environment}, cpus)
        self.head = self.network.head(*more)
        self.url = f"http://{self.head}:{PORT}"
        self.wait(1)
        self.workers = [self.network.worker(self.head) for _ in range(workers)]
        self.wait(1 + workers)

    def get(self, path: str) -> httpx.Response:
        """Ask the dashboard."""
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.token}"}, timeout=10)

    def alive(self) -> list[str]:
        """Addresses of the nodes that are."""
        nodes = self.get("/api/v0/nodes?detail=1").json()["data"]["result"]["result"]
        return [node["node_ip"] for node in nodes if node["state"] == "ALIVE"]

    def wait(self, nodes: int, seconds: float = 240) -> None:
        """Wait until so many nodes are alive."""
        end = time.monotonic() + seconds
        found: list[str] = []
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
                if len(found := self.alive()) == nodes:
                    return
            time.sleep(0.5)
        logs = "\n".join(log.read_text("utf-8", "replace") for log in self.network.temp.glob("*.log"))
        raise AssertionError(f"{nodes} nodes wanted, {found} found within {seconds} s\n{logs}")


@contextlib.contextmanager
def cluster(environment: dict[str, str], workers: int = 1, cpus: int = 1, more: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """A cluster while the block runs."""
    made: Cluster = Cluster.__new__(Cluster)
    try:
        made.__init__(environment, workers, cpus, more)  # type: ignore[misc]
        yield made
    finally:
        if hasattr(made, "network"):
            made.network.close()


def _sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True)
