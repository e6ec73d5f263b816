"""What a step, a checkpoint and the head would cost on 8 and on 1,000 GPUs: a model, not a measurement. Its formulae are in docs/scaling.md.

Use: python benchmarks/scaling_model.py
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9
ADAM = 12  # bytes per parameter in a checkpoint: weights and two moments, fp32
FLOAT = 4
HEARTBEAT = 0.2  # seconds between the polls of one worker, from lc_ray/runtime.py


@dataclass(frozen=True)
class Model:
    """A model and how it is trained."""

    name: str
    parameters: float
    tokens: int  # per worker and step
    row: float  # bytes of one prepared row
    rows: int  # per worker and step


@dataclass(frozen=True)
class Hardware:
    """GPUs of one kind on machines of 8, with the network between the machines."""

    flops: float = 400e12  # dense bf16 that training gets out of an H100 at about 40% of its peak
    inside: float = 450 * GB  # bytes per second and direction of a GPU's NVLink
    between: float = 50 * GB  # bytes per second of a GPU's share of the network: 400 Gb/s each
    latency: float = 20e-6  # seconds per hop of a ring between machines
    storage: float = 20 * GB  # bytes per second of the shared storage, all workers together
    per_machine: int = 8


def traffic(parameters: float, workers: int, stage: int) -> float:
    """Bytes that each worker sends per step: gradients in fp32 as all of lc_ray's are, and for ZeRO-3 the parameters twice."""
    part = (workers - 1) / workers
    reduce_scatter = gather = part * parameters * FLOAT
    return {0: 2 * gather, 1: reduce_scatter + gather, 2: reduce_scatter + gather, 3: reduce_scatter + 2 * gather}[stage]


def communication(parameters: float, workers: int, stage: int, hardware: Hardware) -> float:
    """Seconds per step, if nothing of it overlaps with computing: the slowest link of a ring, and its hops."""
    bandwidth = hardware.inside if workers <= hardware.per_machine else hardware.between
    rings = {0: 2, 1: 2, 2: 2, 3: 3}[stage]
    hops = rings * (workers - 1) * (hardware.latency if workers > hardware.per_machine else 0)
    return traffic(parameters, workers, stage) / bandwidth + hops


def compute(model: Model, hardware: Hardware) -> float:
    """Seconds of a step's matrix products: 6 operations per parameter and token."""
    return 6 * model.parameters * model.tokens / hardware.flops


def memory(parameters: float, workers: int, stage: int) -> float:
    """Bytes of states per worker: weights, gradients and two moments, fp32, divided as ZeRO says (as in lc_ray/train/plan.py)."""
    weights, gradients, moments = (FLOAT * parameters, FLOAT * parameters, 2 * FLOAT * parameters)
    return weights / (workers if stage >= 3 else 1) + gradients / (workers if stage >= 2 else 1) + moments / (workers if stage >= 1 else 1)


MODELS = [
    Model("MiniLM-L6, 23 M", 22.7e6, 128 * 32, 600, 32),
    Model("1.1 B decoder", 1.1e9, 2048 * 4, 8200, 4),
    Model("8 B decoder", 8e9, 2048 * 4, 8200, 4),
]


def main() -> None:
    """Print the tables of docs/scaling.md."""
    hardware = Hardware()
    print("| model | GPUs | ZeRO | states per GPU | computing | communication, no overlap | of one GPU's speed, each | reading rows |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for model in MODELS:
        for workers in (8, 1000):
            for stage in (1, 2, 3):
                busy, wait = compute(model, hardware), communication(model.parameters, workers, stage, hardware)
                reading = model.rows * model.row * workers / (busy + wait)
                print(
                    f"| {model.name} | {workers:,} | {stage} | {memory(model.parameters, workers, stage) / GB:.2f} GB | {1e3 * busy:.1f} ms "
                    f"| {1e3 * wait:.1f} ms | {busy / (busy + wait):.0%}–{busy / max(busy, wait):.0%} | {reading / 1e6:,.1f} MB/s |"
                )
    print()
    print("| model | checkpoint | written at the storage's speed | read by 1,000 workers whose teacher is whole |")
    print("|---|---:|---:|---:|")
    for model in MODELS:
        size = ADAM * model.parameters
        teacher = FLOAT * model.parameters * 1000
        print(f"| {model.name} | {size / GB:.1f} GB | {size / hardware.storage:.1f} s | {teacher / hardware.storage:.1f} s |")
    print()
    for workers in (8, 1000):
        print(f"{workers:,} workers: {workers / HEARTBEAT:,.0f} polls per second by one controller")


if __name__ == "__main__":
    main()
