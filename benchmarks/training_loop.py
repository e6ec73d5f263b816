"""How much slower is a step of our training loop than a bare PyTorch loop's?

One worker, same model, data, batches, precision and threads, blocks of steps in turns in one process.
Use: python benchmarks/training_loop.py [--rounds 8] [--steps 10]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from lc_ray import runtime, spec
from lc_ray.data.prepare import prepare
from lc_ray.train.segment import Segment


def compare(config: dict) -> None:
    """Runs in the Ray Train worker: ours and bare in turns."""
    from lc_ray.train.loop import Worker

    worker = Worker(Segment(**config["segment"]))
    engine = worker.initialize()
    bare = Worker(Segment(**config["segment"])).model.train()
    parameters = [p for p in bare.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.01, fused=True)
    batches = worker.batches(start=0)
    ours, theirs = [], []

    def step_ours(inputs: dict, targets: torch.Tensor) -> float:
        loss = worker.loss(engine(inputs), inputs, targets, None)
        engine.backward(loss)
        engine.step()
        return loss.item()

    def step_bare(inputs: dict, targets: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = bare(inputs)
        loss = torch.nn.functional.cross_entropy(outputs.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    for number in range(config["rounds"] + 1):
        block = [next(batches) for _ in range(config["steps"])]
        pair = [(step_ours, ours), (step_bare, theirs)]
        for step, seconds in pair if number % 2 else pair[::-1]:
            start = time.perf_counter()
            losses = [step(*batch) for batch in block]
            if number:  # the first round warms up
                seconds.append((time.perf_counter() - start) / config["steps"])
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    found = {"ours": statistics.median(ours), "bare": statistics.median(theirs), "ratio": statistics.median(ratios), "loss": losses[-1]}
    Path(config["out"]).write_text(json.dumps(found), "utf-8")


def main() -> None:
    """Print milliseconds per step and the ratio."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--steps", type=int, default=10)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as storage, runtime.session():
        changes = {"storage": storage, "search": None, "prune": None, "train.workers": {"count": 1, "cpu": 2}, "train.epochs": 5}
        job = spec.read("jobs/sentiment_demo.yaml", changes)
        data, _ = prepare(job)
        segment = Segment(job.model_dump(mode="json"), str(data.path), storage, 0, data.count("train"))
        out = Path(storage) / "found.json"
        ray.train.torch.TorchTrainer(
            compare,
            train_loop_config={"segment": dataclasses.asdict(segment), "rounds": chosen.rounds, "steps": chosen.steps, "out": str(out)},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 2}),
            torch_config=ray.train.torch.TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(name="training_loop", storage_path=storage),
        ).fit()
        m = json.loads(out.read_text("utf-8"))
    print(f"ours {1000 * m['ours']:.1f} ms per step, bare PyTorch {1000 * m['bare']:.1f} ms, ratio {m['ratio']:.3f}")


if __name__ == "__main__":
    main()
