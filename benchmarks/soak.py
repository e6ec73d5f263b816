"""Does an endpoint hold under good, bad and aborted requests while replicas are killed and models replaced?

Two replicas answer clients that make good requests, bad ones and ones that they break off. Every 30 s a replica is killed; at a third of the time
the model is replaced by another version, at two thirds that is rolled back. Fails on a wrong answer, on a good request that the client's retries
could not save, on a bad one that was not refused as it should be, and where no replica was killed or no model replaced. Memory is sampled once
a second.
Use: python benchmarks/soak.py ARTIFACT OTHER [--seconds 600] [--clients 16] [--kill-every 30]
ARTIFACT and OTHER have one name, one text column and labels, which differ for some text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

import lc_ray
from lc_ray import AsyncClient, runtime
from lc_ray.errors import ServeError
from lc_ray.serve import app, rollout, update
from lc_ray.serving import ReplicasSpec, ServeSpec

WORDS = ["the", "flight", "was", "late", "and", "nobody", "told", "us", "why", "but", "thanks", "for", "the", "great", "service"]
TEXTS = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(3 + i)) for i in range(64)]  # of many lengths, each of which has its own kernels
BAD: list[tuple[Any, int]] = [
    ({"instances": [""]}, 400),
    ({"instances": [7]}, 400),
    ({"instances": "text"}, 400),
    ({}, 400),
    ({"instances": ["x"] * 100_000}, 413),
]
BUSY = {429, 502, 503}


def replicas() -> list[psutil.Process]:
    """Processes of the replicas, of this program's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that ends just now
            if "ServeReplica" in "".join(process.cmdline()):
                found.append(process)
    return found


class Soak:
    """The clients, and what they saw."""

    def __init__(self, url: str, key: str, name: str, answers: list[set[str]], seconds: float) -> None:
        self.url, self.key, self.name, self.answers = url, key, name, answers
        self.end = time.monotonic() + seconds
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[tuple[float, float]] = []

    async def good(self, seed: int) -> None:
        """Ask with retries; each answer must be that of one of the two versions."""
        choose = random.Random(seed)
        async with AsyncClient(self.url, self.key, timeout=60) as client:
            while time.monotonic() < self.end:
                number = choose.randrange(len(TEXTS))
                try:
                    (answer,) = await client.predict([TEXTS[number]], self.name)
                except ServeError as error:
                    self.wrong.append(f"lost: {error}")
                    continue
                self.seen["good"] += 1
                if answer["label"] not in self.answers[number]:
                    self.wrong.append(f"text {number}: {answer}")

    async def bad(self, seed: int) -> None:
        """Ask what must be refused."""
        choose = random.Random(seed)
        async with httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60) as http:
            while time.monotonic() < self.end:
                body, status = choose.choice(BAD)
                try:
                    response = await http.post(f"/v1/models/{self.name}:predict", json=body)
                except httpx.TransportError:
                    self.seen["bad, cut off by a kill"] += 1
                    continue
                self.seen["bad, refused" if response.status_code == status else "bad, busy or cut off"] += 1
                killed = response.status_code == 500 and response.text == "Internal Server Error"  # Serve's words for a replica that died
                if response.status_code not in {status, *BUSY} and not killed:
                    self.wrong.append(f"bad request answered {response.status_code}: {response.text[:200]}")
                await asyncio.sleep(0.05)

    async def aborted(self, seed: int) -> None:
        """Break requests off."""
        choose = random.Random(seed)
        while time.monotonic() < self.end:
            async with httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}) as http:
                body = {"instances": [TEXTS[choose.randrange(len(TEXTS))]] * 64}
                task = asyncio.create_task(http.post(f"/v1/models/{self.name}:predict", json=body, timeout=60))
                await asyncio.sleep(choose.uniform(0, 0.1))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.seen["aborted"] += 1
            await asyncio.sleep(0.05)

    async def kill(self, every: float) -> None:
        """Kill a replica every so often."""
        while time.monotonic() < self.end - every:
            await asyncio.sleep(every)
            if len(found := replicas()) > 1:
                random.choice(found).kill()
                self.seen["replicas killed"] += 1
            else:
                self.seen["kills put off, as one replica was left"] += 1

    async def replace(self, other: str, seconds: float) -> None:
        """Roll another version out, and back again."""
        folder = rollout.find(int(self.url.rpartition(":")[2]))
        await asyncio.sleep(seconds / 3)
        name, new = rollout.keep(folder, other)
        await asyncio.to_thread(update.replace, folder, rollout.rolled(rollout.read(folder), name, new))
        self.seen["models replaced"] += 1
        await asyncio.sleep(seconds / 3)
        await asyncio.to_thread(update.replace, folder, rollout.rolled_back(rollout.read(folder), name))
        self.seen["models replaced"] += 1

    async def watch(self) -> None:
        """Sample the replicas' memory, in MB, and this program's."""
        while time.monotonic() < self.end:
            held = []
            for process in replicas():
                with contextlib.suppress(psutil.Error):
                    held.append(process.memory_full_info().uss / 1e6)
            if held:
                self.memory.append((statistics.mean(held), psutil.Process().memory_full_info().uss / 1e6))
            await asyncio.sleep(1)

    async def run(self, other: str, seconds: float, clients: int, every: float) -> None:
        """All of it at once."""
        good = [self.good(n) for n in range(clients)]
        await asyncio.gather(*good, self.bad(1), self.bad(2), self.aborted(3), self.kill(every), self.replace(other, seconds), self.watch())

    def failures(self) -> list[str]:
        """What was wrong, and what had to happen but did not."""
        return self.wrong + [f"none at all: {what}" for what in ("good", "replicas killed", "models replaced") if not self.seen[what]]


def either(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[set[str]]:
    """The labels that two versions give each text; ends the program if they agree on all, since each would pass for the other."""
    found = [{answer["label"] for answer in pair} for pair in zip(first, second, strict=True)]
    if all(len(labels) == 1 for labels in found):
        raise SystemExit("both artifacts give all texts the same labels; take two that differ")
    return found


def main() -> None:
    """Run, print what happened, and fail if anything was wrong."""
    options = argparse.ArgumentParser()
    options.add_argument("artifact", type=Path)
    options.add_argument("other", type=Path)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--kill-every", type=float, default=30)
    chosen = options.parse_args()
    answers = either(*(lc_ray.load(path).predict(TEXTS) for path in (chosen.artifact, chosen.other)))
    key, name = os.urandom(8).hex(), lc_ray.load(chosen.artifact).artifact.manifest.name
    with runtime.session(cpus=4):
        url = app.start([chosen.artifact], ServeSpec(port=0, replicas=ReplicasSpec(min=2, max=2)), {"": key})
        soak = Soak(url, key, name, answers, chosen.seconds)
        asyncio.run(soak.run(str(chosen.other), chosen.seconds, chosen.clients, chosen.kill_every))
        app.stop()
    print(", ".join(f"{what}: {count}" for what, count in soak.seen.most_common()))
    tenth = max(1, len(soak.memory) // 10)
    for place, part in (("first", soak.memory[:tenth]), ("middle", soak.memory[len(soak.memory) // 2 :][:tenth]), ("last", soak.memory[-tenth:])):
        mine = statistics.median(m for m, _ in part)
        print(f"{place} tenth: a replica holds {mine:.0f} MB of its own, this program {statistics.median(m for _, m in part):.0f} MB")
    failures = soak.failures()
    for what in failures[:10]:
        print("WRONG", what)
    if failures:
        raise SystemExit(f"{len(failures)} wrong, lost or missing")
    print("no wrong answer, no request lost")


if __name__ == "__main__":
    main()
