"""How much of the bare engine's throughput reaches HTTP clients, and how do other servers do on the same cores?

Our endpoint takes turns with the engine in a loop (the floor), then with each of the peers in benchmarks/peers: around the same engine (FastAPI,
LitServe, BentoML) and around the dense model (transformers' pipeline in fp32, ONNX Runtime in dynamic int8). wrk, in C, makes the requests, a row
each, so that the clients take little of the cores that all share. Last, what a lone request's overhead is made of.
Use: python benchmarks/endpoint.py ARTIFACT [--seconds 2] [--rounds 8] [--peers PYTHON]
ARTIFACT has one text column; PYTHON is that of a virtual environment with lc_ray and benchmarks/peers/requirements.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil

from lc_ray import load, runtime
from lc_ray.models.batches import prepare
from lc_ray.predictor import Predictor
from lc_ray.serve import app, auth
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serving import ReplicasSpec, ServeSpec

TEXTS = [" ".join(["the flight was late and nobody told us why"] * (1 + i % 4)) for i in range(256)]
PEERS = {
    "FastAPI, same engine": "engine.py",
    "LitServe, same engine": "lit.py",
    "BentoML, same engine": "bento.py",
    "FastAPI, transformers pipeline fp32": "pipeline.py",
    "FastAPI, ONNX Runtime int8": "ort.py",
}
CONNECTIONS = (1, 8, 32, 128)
HERE = Path(__file__).parent
_TRIES = 240  # in which a peer is up, one every half second


class Told(NamedTuple):
    """What was seen: rows per second, and percentiles of latency in milliseconds."""

    rate: float
    p50: float
    p95: float
    p99: float
    failed: int


def bare(predictor: Predictor, batch: int, seconds: float) -> Told:
    """Tokenising and running batches in a loop."""
    column = predictor.inputs[0].column
    took: list[float] = []
    while sum(took) < seconds:
        start = time.perf_counter()
        chosen = [TEXTS[(len(took) * batch + i) % len(TEXTS)] for i in range(batch)]
        predictor.outputs(prepare({column: chosen}, predictor.columns), batch)
        took.append(time.perf_counter() - start)
    return Told(len(took) * batch / sum(took), *(1e3 * float(value) for value in np.percentile(took, (50, 95, 99))), 0)


def attack(url: str, path: str, key: str, connections: int, seconds: float) -> Told:
    """Requests of a row each, over so many connections."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as bodies:
        bodies.writelines(json.dumps({"instances": [text]}) + "\n" for text in TEXTS)
        bodies.flush()
        load_test = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(HERE / "peers" / "load.lua")]
        told = subprocess.run([*load_test, url, "--", path, key, bodies.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"found (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", told)
    assert found, told
    requests, duration, p50, p95, p99, failed = map(int, found.groups())
    return Told(requests / duration * 1e6, p50 / 1e3, p95 / 1e3, p99 / 1e3, failed)


class Party(NamedTuple):
    """One of two who take turns.

    Attributes:
        ask: what it has at a number of connections.
        processes: its own.
    """

    ask: Callable[[int], Told]
    processes: list[psutil.Process]


@contextlib.contextmanager
def still(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that take no time of the cores."""
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends workers that it does not need
            one.suspend()
    try:
        yield
    finally:
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
        if processes:
            time.sleep(1)  # in which they make up for what they missed


def turns(label: str, connections: int, rounds: int, mine: Party, other: Party) -> None:
    """Print what both have. They take turns, since this machine's speed changes by half from one minute to the next; in each one's, the other stands
    still."""
    seen: list[tuple[Told, Told]] = []
    for _ in range(rounds + 1):
        with still(other.processes):
            ours = mine.ask(connections)
        with still(mine.processes):
            seen.append((ours, other.ask(connections)))
    seen = seen[1:]  # the first turn warms both up
    ratios = sorted(ours.rate / theirs.rate if theirs.rate else math.inf for ours, theirs in seen)  # a turn may end before the first answer
    quartiles = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
    ours, theirs = (_row([pair[side] for pair in seen]) for side in (0, 1))
    print(f"| {label} | {connections} | {theirs} | {ours} | {statistics.median(ratios):.2f} ({quartiles}) |", flush=True)


def _row(told: list[Told]) -> str:
    rate, p50, p95, p99, failed = (statistics.median(values) for values in zip(*told, strict=True))
    return f"{rate:.0f}, {p50:.1f} / {p95:.1f} / {p99:.1f}" + (f" ({failed:.0f} FAILED)" if failed else "")


@contextlib.contextmanager
def peer(python: str, file: str, environment: dict[str, str], seconds: float) -> Iterator[Party]:
    """A peer's server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [python, str(HERE / "peers" / file)]
    if file == "bento.py":
        started = [python, "-m", "bentoml", "serve", "bento:Service", "--working-dir", str(HERE / "peers"), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(started, env=os.environ | environment | {"PORT": str(port)}, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _answers(url, process):
                log.seek(0)
                raise RuntimeError(f"{file} does not answer: {log.read().decode(errors='replace')[-2000:]}")
            first = psutil.Process(process.pid)
            processes = [first, *first.children(recursive=True)]
            yield Party(lambda connections: attack(url, "/predict", "none", connections, seconds), processes)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in psutil.Process(process.pid).children(recursive=True):  # some have sessions of their own
                    one.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a server answers before it ends, and before it was asked often enough."""
    for _ in range(_TRIES):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(f"{url}/predict", json={"instances": [TEXTS[0]]}, timeout=30).is_success:
                return True
        if process.poll() is not None:
            return False
        time.sleep(0.5)
    return False


def dense(python: str, folder: Path) -> dict[str, str]:
    """Where the dense model is that peers run."""
    subprocess.run([python, str(HERE / "peers" / "dense.py"), str(folder)], check=True, capture_output=True)
    return {"DENSE": str(folder / "dense"), "ONNX": str(folder / "int8.onnx")}


def medians(calls: list[Callable[[str], Any]], seconds: float) -> list[float]:
    """Milliseconds of each call, over the texts; they take turns, each after the same rest, in which caches and cores go cold."""
    took: list[list[float]] = [[] for _ in calls]
    texts, end = itertools.cycle(TEXTS), time.perf_counter() + seconds
    while time.perf_counter() < end:
        text = next(texts)
        for call, seen in zip(calls, took, strict=True):
            time.sleep(0.005)
            start = time.perf_counter()
            call(text)
            seen.append(1000 * (time.perf_counter() - start))
    return [statistics.median(seen) for seen in took]


def overhead(path: str, whole: Callable[[str], Any], seconds: float) -> None:
    """Print what a lone request costs, layer by layer, each without the ones below it; `whole` has all of them."""
    predictor = load(path, threads=os.cpu_count())
    endpoint = Endpoint(predictor, ServeSpec())
    served = asgi(Models([endpoint], endpoint.spec), {auth.digest("key"): ""})
    route = f"/v1/models/{endpoint.name}:predict"
    headers = [(b"authorization", b"Bearer key"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": route, "raw_path": route.encode(), "query_string": b""}

    async def call(text: str) -> None:
        body = json.dumps({"instances": [text]}).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200

        await served(scope | {"headers": headers}, receive, send)

    with asyncio.Runner() as runner:
        layers = [
            lambda text: predictor.predict([text]),
            lambda text: runner.run(endpoint.predict([text])),
            lambda text: runner.run(call(text)),
        ]
        alone, batched, application = medians(layers, seconds)
        (all_of_it,) = medians([whole], seconds)  # not in turns with the others: its engine, of another process, would take the caches from theirs
    print(f"engine alone {alone:.2f} ms; + batching thread {batched - alone:.2f}; + protocol, keys, limits {application - batched:.2f}; ", end="")
    print(f"+ HTTP server, HAProxy, client, Serve {all_of_it - application:.2f}; in all {all_of_it:.2f} ms")
    endpoint.close()


def main() -> None:
    """Print the endpoint's figures beside the floor's and the peers', and the parts of its overhead."""
    options = argparse.ArgumentParser()
    options.add_argument("artifact")
    options.add_argument("--seconds", type=float, default=2, help="of a turn")
    options.add_argument("--rounds", type=int, default=8, help="turns of each")
    options.add_argument("--peers", metavar="PYTHON")
    chosen = options.parse_args()
    path = str(Path(chosen.artifact).resolve())
    predictor = load(path, threads=os.cpu_count())
    key, route = os.urandom(8).hex(), f"/v1/models/{predictor.artifact.manifest.name}:predict"
    with runtime.session(), tempfile.TemporaryDirectory() as folder:
        url = app.start([path], ServeSpec(port=0, replicas=ReplicasSpec(cpu=os.cpu_count() or 1)), {"": key})
        ray = psutil.Process().children(recursive=True)
        mine = Party(lambda connections: attack(url, route, key, connections, chosen.seconds), ray)
        print("rows/s, p50 / p95 / p99 in ms\n\n| | connections | theirs | lc_ray | ratio (quartiles) |\n|---|---:|---|---|---|", flush=True)
        for connections in (1, 32):
            loop = Party(lambda batch: bare(predictor, batch, chosen.seconds), [])
            turns("engine in a loop, batches of as many", connections, chosen.rounds, mine, loop)
        environment = dense(chosen.peers, Path(folder)) | {"ARTIFACT": path} if chosen.peers else {}
        for label, file in PEERS.items() if chosen.peers else ():
            with peer(chosen.peers, file, environment, chosen.seconds) as other:
                for connections in CONNECTIONS:
                    turns(label, connections, chosen.rounds, mine, other)
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
            overhead(path, lambda text: http.post(route, json={"instances": [text]}).raise_for_status(), 5 * chosen.seconds)
        app.stop()


if __name__ == "__main__":
    main()
