"""How many JPEG rows per second reach the training loop, beside a torch DataLoader?

Ours: `prepare` (read, check, decode, resize, shuffle, write Parquet) and an epoch of `stream` and `feed`, then later epochs from the cached pixels.
The peer decodes with PIL, resizes with torchvision v2 and normalises in as many processes as we have CPUs, in every epoch.
Use: python benchmarks/image_path.py [--images 2000] [--rounds 3] [--processes 2]
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lc_ray import memory, runtime, spec
from lc_ray.data.batch import steps_per_epoch, stream
from lc_ray.data.prepare import prepare
from lc_ray.modalities.image import Encoder
from lc_ray.models.batches import feed
from lc_ray.models.load import modalities

SIDE, BATCH = 224, 32
LABELS = ("label0", "label1")
WIDTH, HEIGHT = 500, 375
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photograph(number: int) -> bytes:
    """A JPEG with the spectrum of a photograph: noise of every scale, the coarse the strongest."""
    random = np.random.default_rng(number)
    total = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for octave in range(8):
        cells = random.normal(0, 70 / 1.6**octave, (3 * 2**octave, 4 * 2**octave, 3)).clip(-128, 127) + 128
        layer = Image.fromarray(cells.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        total += np.asarray(layer, np.float32) - 128
    file = io.BytesIO()
    Image.fromarray((total + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path, numbers: range) -> int:
    """Photographs into two labels' folders; their bytes in all."""
    size = 0
    for number in numbers:
        data = photograph(number)
        (folder / f"label{number % 2}" / f"{number:06d}.jpg").write_bytes(data)
        size += len(data)
    return size


def transforms(augment: bool) -> v2.Compose:
    """What the peer does with a decoded image."""
    resize = [v2.Resize((SIDE, SIDE), antialias=True)]
    varied = [v2.RandomResizedCrop(SIDE, scale=(0.6, 1.0), antialias=True), v2.ColorJitter(0.2, 0.2, 0.2)]
    return v2.Compose([v2.PILToTensor(), *(varied if augment else resize), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def peer(folder: Path, processes: int, augment: bool) -> Callable[[], int]:
    """Epochs of a DataLoader whose processes stay alive; each returns its rows."""
    images = ImageFolder(str(folder), transform=transforms(augment))
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=processes, persistent_workers=True)
    return lambda: sum(len(pixels) for pixels, _ in loader)


def job(folder: Path, storage: str, augment: bool) -> spec.JobSpec:
    """The images as a job of ours. One row is held out, for there must be one."""
    image = {"column": "image", "modality": "image", "size": SIDE, "base": "resnet18", "weights": "random", "augment": augment}
    data = {"train": str(folder), "validation": "1 row", "inputs": [image], "target": "label"}
    return spec.parse({"model": {}, "data": data, "storage": storage})


def ours(asked: spec.JobSpec, encoder: nn.Module) -> Callable[[], int]:
    """Epochs of prepared rows in one process, as a training worker takes them, normalised as the model does it; each returns its rows."""
    data, _ = prepare(asked)
    columns = modalities(asked.inputs())
    task = data.task().bind(columns)
    steps, random = steps_per_epoch(data.count("train"), BATCH), torch.Generator()
    batches = itertools.count()
    stored = stream(data, 0, 1, BATCH, asked.seed)

    def epoch() -> int:
        rows = 0
        for number in itertools.islice(batches, steps):
            inputs, _ = feed(next(stored), columns, task, random.manual_seed(number), training=True)
            rows += len(encoder(inputs["image.pixels"])[0])
        return rows

    return epoch


def rate(epoch: Callable[[], int]) -> float:
    """Rows per second of an epoch."""
    start = time.perf_counter()
    rows = epoch()
    return rows / (time.perf_counter() - start)


def compare(folder: Path, storage: str, processes: int, ours_first: bool) -> dict[str, tuple[float, float]]:
    """A round: rows per second of ours and of the peer, by kind of epoch."""
    encoder = Encoder(nn.Identity(), {"mean": MEAN, "std": STD})
    found: dict[str, tuple[float, float]] = {}
    for augment in (False, True):
        sides: dict[str, Callable[[], Callable[[], int]]] = {
            "ours": functools.partial(ours, job(folder, storage, augment), encoder),
            "peer": functools.partial(peer, folder, processes, augment),
        }
        first, later = dict[str, float](), dict[str, float]()
        for name in sorted(sides, reverse=not ours_first):
            start = time.perf_counter()
            epoch = sides[name]()
            rows = epoch()
            first[name] = rows / (time.perf_counter() - start)
            later[name] = rate(epoch)
        if not augment:  # ours would find the data prepared
            found["first epoch"] = first["ours"], first["peer"]
        found["later epochs, augmented" if augment else "later epochs"] = later["ours"], later["peer"]
    return found


def main() -> None:
    """Print rows per second and ratios."""
    options = argparse.ArgumentParser()
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--processes", type=int, default=2)
    chosen = options.parse_args()
    memory.keep_freed()  # as a training worker does; the peer's processes inherit it
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        for label in LABELS:
            (folder / label).mkdir(parents=True)
        ends = [*range(0, chosen.images, 100), chosen.images]
        with ProcessPoolExecutor(chosen.processes, multiprocessing.get_context("spawn")) as pool:
            size = sum(pool.map(write, [folder] * (len(ends) - 1), map(range, ends, ends[1:])))
        print(f"{chosen.images} JPEGs of {WIDTH} × {HEIGHT}, {size / chosen.images / 1000:.0f} kB each; {chosen.processes} processes")
        start = time.perf_counter()
        with runtime.session(cpus=chosen.processes):
            print(f"Ray starts in {time.perf_counter() - start:.1f} s, not counted below")
            rounds = [compare(folder, f"{scratch}/{n}", chosen.processes, bool(n % 2)) for n in range(chosen.rounds)]
        print(f"first epoch of the first round, in which Ray's workers start: ours {rounds[0]['first epoch'][0]:.0f} rows/s")
        for kind in rounds[0]:
            pairs = [found[kind] for found in (rounds[1:] or rounds)]
            a, b, ratio = (statistics.median(side) for side in zip(*((x, y, x / y) for x, y in pairs), strict=True))
            print(f"{kind}: ours {a:.0f} rows/s, DataLoader {b:.0f} rows/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
