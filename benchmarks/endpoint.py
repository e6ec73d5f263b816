"""How much of the bare engine's throughput reaches HTTP clients?

The artifact's engine in a loop on full batches (the floor), then the endpoint under 1, 8 and 32 connections, on the same cores in one run.
Use: python benchmarks/endpoint.py ARTIFACT [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time

import aiohttp

from lc_ray import load, runtime
from lc_ray.models.batches import prepare
from lc_ray.serve import app
from lc_ray.serving import ReplicasSpec, ServeSpec

TEXTS = [" ".join(["the flight was late and nobody told us why"] * (1 + i % 4)) for i in range(256)]


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


async def load_test(url: str, key: str, name: str, connections: int, seconds: float) -> tuple[float, list[float]]:
    """Requests per second and their latencies in milliseconds, one row per request."""
    latencies: list[float] = []
    headers = {"Authorization": f"Bearer {key}"}
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http:  # takes the least of the cores that both share
            i = number
            while time.perf_counter() < end:
                start = time.perf_counter()
                async with http.post(f"{url}/v1/models/{name}:predict", json={"instances": [TEXTS[i % len(TEXTS)]]}) as answer:
                    await answer.read()
                latencies.append(1000 * (time.perf_counter() - start))
                i += connections

    await asyncio.gather(*(client(n) for n in range(connections)))
    return len(latencies) / seconds, sorted(latencies)


def main() -> None:
    """Print the floor and the endpoint's figures."""
    options = argparse.ArgumentParser()
    options.add_argument("artifact")
    options.add_argument("--seconds", type=float, default=10)
    chosen = options.parse_args()
    floor = bare(chosen.artifact, chosen.seconds, 32)
    alone = bare(chosen.artifact, chosen.seconds, 1)
    print(f"bare engine in a loop: {floor:.0f} rows/s in batches of 32; {alone:.0f} rows/s, {1000 / alone:.1f} ms, one by one")
    key = os.urandom(8).hex()
    with runtime.session():
        url = app.start([chosen.artifact], ServeSpec(port=0, replicas=ReplicasSpec(cpu=os.cpu_count() or 1)), {"": key})
        name = load(chosen.artifact).artifact.manifest.name
        for connections in (1, 8, 32):
            asyncio.run(load_test(url, key, name, connections, 2))
            rate, latencies = asyncio.run(load_test(url, key, name, connections, chosen.seconds))
            p50, p95 = statistics.median(latencies), latencies[int(0.95 * len(latencies))]
            print(f"{connections:3d} connections: {rate:.0f} rows/s ({rate / floor:.0%} of batches in a loop), p50 {p50:.1f} ms, p95 {p95:.1f} ms")
        app.stop()


if __name__ == "__main__":
    main()
