"""Does memory stay flat when a dataset is larger than the object store?

Prepares pictures, whose pixels are as many bytes as the store and several times that, and streams an epoch of each. Meanwhile a thread samples
what the driver and Ray's processes hold (of pages that several share, each its part) and what of the store is in use.
Use: python benchmarks/memory.py [--store 100] [--times 1 4 8 16]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import ray
from PIL import Image

from lc_ray import runtime, spec
from lc_ray.data.batch import steps_per_epoch, stream
from lc_ray.data.prepare import prepare

SIDE, BATCH = 224, 32
EVERY = 0.2  # seconds between samples


def resident() -> tuple[int, int]:
    """Bytes of memory of this process and those below it, and the largest one's; pages that several share are shared out among them."""
    found = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found.append(process.memory_full_info().pss)
    return sum(found), max(found)


@contextlib.contextmanager
def watched(peaks: dict[str, int]) -> Iterator[None]:
    """Keep the peaks of what is sampled meanwhile."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(EVERY):
            every, largest = resident()
            peaks["all processes"] = max(peaks.get("all processes", 0), every)
            peaks["largest process"] = max(peaks.get("largest process", 0), largest)
            used = ray.cluster_resources().get("object_store_memory", 0) - ray.available_resources().get("object_store_memory", 0)
            peaks["object store"] = max(peaks.get("object store", 0), int(used))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def pictures(folder: Path, count: int) -> None:
    """Small files that become SIDE × SIDE pixels."""
    for number in range(count):
        colours = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(colours).save(file, "PNG")
        path = folder / f"label{number % 2}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())


def run(folder: str, storage: str) -> float:
    """Prepare and stream an epoch; the bytes of pixels that came through."""
    image = {"column": "image", "modality": "image", "size": SIDE, "base": "resnet18", "weights": "random"}
    data = {"train": folder, "validation": "1 row", "inputs": [image], "target": "label"}
    prepared, _ = prepare(spec.parse({"model": {}, "data": data, "storage": storage}))
    batches = stream(prepared, 0, 1, BATCH, 0)
    return sum(len(row) for _ in range(steps_per_epoch(prepared.count("train"), BATCH)) for row in next(batches)["image.pixels"])


def main() -> None:
    """Print peaks by size of the dataset."""
    options = argparse.ArgumentParser()
    options.add_argument("--store", type=int, default=100, help="MB")
    options.add_argument("--times", type=float, nargs="+", default=[1, 4, 8, 16])
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name, value in runtime.ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        ray.init("local", num_cpus=2, object_store_memory=chosen.store * 10**6, include_dashboard=False, log_to_driver=False)
        pictures(Path(scratch) / "warm", 64)
        run(f"{scratch}/warm", f"{scratch}/runs")  # workers have imported what they need
        for times in chosen.times:
            folder, peaks = Path(scratch) / f"pictures-{times}", dict[str, int]()
            pictures(folder, int(times * chosen.store * 10**6 / (3 * SIDE**2)))
            start = time.perf_counter()
            with watched(peaks):
                seen = run(str(folder), f"{scratch}/runs")
            held = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in peaks.items())
            print(f"{times:g} × the store, {seen / 1e6:.0f} MB of pixels in {time.perf_counter() - start:.0f} s: {held}")
        ray.shutdown()


if __name__ == "__main__":
    main()
