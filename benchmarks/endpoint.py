"""How much of the bare engine's throughput reaches HTTP clients, and how do other servers do on the same cores?

First the engine in a loop (the floor), then, one after the other, our endpoint and the peers in benchmarks/peers: around the same engine (FastAPI,
LitServe, BentoML) and around the dense model (transformers' pipeline in fp32, ONNX Runtime in dynamic int8). wrk, in C, makes the requests, a row
each, so that the clients take little of the cores that all share. Last, what a lone request's overhead is made of.
Use: python benchmarks/endpoint.py ARTIFACT [--seconds 10] [--peers PYTHON]
ARTIFACT has one text column; PYTHON is that of a virtual environment with lc_ray and benchmarks/peers/requirements.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
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
from typing import Any

import httpx
import psutil

from lc_ray import load, runtime
from lc_ray.models.batches import prepare
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


def bare(path: str, seconds: float, batch: int) -> float:
    """Rows per second of tokenising and running batches in a loop."""
    predictor = load(path, threads=os.cpu_count())
    column = predictor.inputs[0].column
    predictor.predict(TEXTS[:64])
    start, rows = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        chosen = [TEXTS[(rows + i) % len(TEXTS)] for i in range(batch)]
        predictor.outputs(prepare({column: chosen}, predictor.columns), batch)
        rows += batch
    return rows / (time.perf_counter() - start)


def attack(url: str, path: str, key: str, connections: int, seconds: float) -> str:
    """A row of the table: rows per second, and percentiles of latency."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as bodies:
        bodies.writelines(json.dumps({"instances": [text]}) + "\n" for text in TEXTS)
        bodies.flush()
        load_test = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(HERE / "peers" / "load.lua")]
        told = subprocess.run([*load_test, url, "--", path, key, bodies.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"found (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", told)
    assert found, told
    requests, duration, p50, p95, p99, wrong = map(int, found.groups())
    failed = f" ({wrong} FAILED)" if wrong else ""
    return f"{requests / duration * 1e6:7.0f} rows/s, p50 {p50 / 1e3:7.1f} ms, p95 {p95 / 1e3:7.1f} ms, p99 {p99 / 1e3:7.1f} ms{failed}"


def rounds(name: str, url: str, path: str, key: str, seconds: float) -> None:
    """Warm up, then print a line for each number of connections."""
    for connections in CONNECTIONS:
        attack(url, path, key, connections, 2)
        print(f"{name:36} {connections:3d} connections: {attack(url, path, key, connections, seconds)}", flush=True)


def turns(url: str, path: str, key: str, at: str, seconds: float = 2, rounds: int = 16) -> None:
    """Print what a lone client gets of the endpoint and of FastAPI around the same engine, asked in turns: this machine's speed changes by half from
    one minute to the next. Ray stands still in the peer's turns."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_rate(attack(url, path, key, 1, seconds)))
        ray = [one for one in psutil.Process().children(recursive=True) if "engine.py" not in " ".join(one.cmdline())]
        for one in ray:
            one.suspend()
        theirs.append(_rate(attack(at, "/predict", "none", 1, seconds)))
        for one in ray:
            one.resume()
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"1 connection, in turns: {statistics.median(ours):.0f} rows/s, FastAPI, same engine {statistics.median(theirs):.0f}; ", end="")
    print(f"ratio {statistics.median(ratios):.2f} (quartiles {ratios[len(ratios) // 4]:.2f} to {ratios[-len(ratios) // 4]:.2f})", flush=True)


def _rate(told: str) -> float:
    return float(told.split()[0])


@contextlib.contextmanager
def peer(python: str, file: str, environment: dict[str, str]) -> Iterator[str]:
    """A peer's server; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [python, str(HERE / "peers" / file)]
    if file == "bento.py":
        started = [python, "-m", "bentoml", "serve", "bento:Service", "--working-dir", str(HERE / "peers"), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(started, env=os.environ | environment | {"PORT": str(port)}, stdout=log, stderr=log, start_new_session=True)
        try:
            url, body = f"http://127.0.0.1:{port}", {"instances": [TEXTS[0]]}
            for _ in range(240):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.post(f"{url}/predict", json=body, timeout=30).is_success:
                        break
                if process.poll() is not None:
                    break
                time.sleep(0.5)
            else:
                process.terminate()
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(log.read().decode(errors="replace")[-2000:])
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def dense(python: str, folder: Path) -> dict[str, str]:
    """Where the dense model is that peers run."""
    subprocess.run([python, str(HERE / "peers" / "dense.py"), str(folder)], check=True, capture_output=True)
    return {"DENSE": str(folder / "dense"), "ONNX": str(folder / "int8.onnx")}


def median(call: Callable[[str], Any], seconds: float) -> float:
    """Milliseconds of a call, over the texts."""
    took, end, i = [], time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        start = time.perf_counter()
        call(TEXTS[i % len(TEXTS)])
        took.append(1000 * (time.perf_counter() - start))
        i += 1
    return statistics.median(took)


def overhead(path: str, whole: float, seconds: float) -> None:
    """Print what a lone request costs, layer by layer, each without the ones below it."""
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

    alone = median(lambda text: predictor.predict([text]), seconds)
    with asyncio.Runner() as runner:
        batched = median(lambda text: runner.run(endpoint.predict([text])), seconds)
        application = median(lambda text: runner.run(call(text)), seconds)
    print(f"engine alone {alone:.2f} ms; + batching thread {batched - alone:.2f}; + protocol, keys, limits {application - batched:.2f}; ", end="")
    print(f"+ HTTP server, HAProxy, client, Serve {whole - application:.2f}; in all {whole:.2f} ms")
    endpoint.close()


def main() -> None:
    """Print the floor, the endpoint's figures, the peers' and the parts of the overhead."""
    options = argparse.ArgumentParser()
    options.add_argument("artifact")
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--peers", metavar="PYTHON")
    chosen = options.parse_args()
    path = str(Path(chosen.artifact).resolve())
    floor, alone = bare(path, chosen.seconds, 32), bare(path, chosen.seconds, 1)
    print(f"engine in a loop: {floor:.0f} rows/s in batches of 32; {alone:.0f} rows/s, {1000 / alone:.1f} ms, one by one", flush=True)
    key, name = os.urandom(8).hex(), load(path).artifact.manifest.name
    with runtime.session():
        url = app.start([path], ServeSpec(port=0, replicas=ReplicasSpec(cpu=os.cpu_count() or 1)), {"": key})
        rounds("lc_ray", url, f"/v1/models/{name}:predict", key, chosen.seconds)
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
            whole = median(lambda text: http.post(f"/v1/models/{name}:predict", json={"instances": [text]}).raise_for_status(), chosen.seconds)
        if chosen.peers:
            with peer(chosen.peers, "engine.py", {"ARTIFACT": path}) as at:
                turns(url, f"/v1/models/{name}:predict", key, at)
        app.stop()
    if chosen.peers:
        with tempfile.TemporaryDirectory() as folder:
            environment = dense(chosen.peers, Path(folder)) | {"ARTIFACT": path}
            for label, file in PEERS.items():
                with peer(chosen.peers, file, environment) as at:
                    rounds(label, at, "/predict", "none", chosen.seconds)
    overhead(path, whole, chosen.seconds)
    again = bare(path, chosen.seconds, 32)
    print(f"engine in a loop, again: {again:.0f} rows/s in batches of 32 ({again / floor - 1:+.0%} against the first)")


if __name__ == "__main__":
    main()
