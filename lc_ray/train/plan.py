"""Memory, disk and placement, worked out before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from lc_ray.errors import PlacementError
from lc_ray.spec import JobSpec, WorkersSpec
from lc_ray.train.deepspeed import emulates_bf16
from lc_ray.train.segment import removed_at
from lc_ray.units import size_text

_FLOAT = 4  # bytes
_MOMENTS = 2 * _FLOAT  # AdamW keeps two per trained parameter
_ACTIVATIONS = 20  # numbers kept per token and unit of width in a transformer layer, attention maps left out (Korthikanti et al. 2022)


@dataclass(frozen=True)
class Resources:
    """What one node has. Memory in bytes."""

    cpu: float
    gpu: float = 0.0
    memory: int = 0

    @classmethod
    def of(cls, node: Mapping[str, float]) -> Self:
        """As Ray describes a node."""
        return cls(node.get("CPU", 0.0), node.get("GPU", 0.0), int(node.get("memory", 0)))


@dataclass(frozen=True)
class Placement:
    """What a cluster can do for a job.

    Attributes:
        slots: members that can train at the same time.
        missing: what is missing for even one, in sentences.
    """

    slots: int
    missing: tuple[str, ...]


def memory(parameters: int, trained: int, workers: int, stage: int, offload: str) -> dict[str, int]:
    """Bytes per worker on its device, by part, after Rajbhandari et al. 2020 (arXiv:1910.02054).

    Args:
        parameters: of the model.
        trained: those that are not frozen.
        workers: that share a member.
        stage: of ZeRO; 1 shards optimizer states, 2 gradients too, 3 parameters too.
        offload: "cpu" keeps optimizer states off the device.

    Weights and gradients are fp32. What ZeRO-3 gathers at a time, and the allocator's slack, are left out.
    """
    states = 0 if offload == "cpu" else trained * _MOMENTS
    return {
        "weights": parameters * _FLOAT // (workers if stage >= 3 else 1),
        "gradients": trained * _FLOAT // (workers if stage >= 2 else 1),
        "optimizer": states // (workers if stage >= 1 else 1),
    }


def estimate(job: JobSpec, parameters: int, trained: int, width: int = 0, layers: int = 0) -> dict[int, int]:
    """Bytes per worker by ZeRO stage: the above, the teacher while recovering, and activations of one pass.

    Args:
        job: the job.
        parameters: of the model.
        trained: those that are not frozen.
        width: of the widest encoder's hidden vectors.
        layers: of that encoder.
    """
    import torch  # which the plan alone does not need

    workers = job.train.workers.count
    positions = sum(i.max_length for i in job.data.inputs)
    half = job.model.dtype == "bf16" and (job.train.workers.gpu or not emulates_bf16(torch.device("cpu")))
    activations = job.train.micro_batch // workers * positions * width * layers * _ACTIVATIONS * (2 if half else _FLOAT)
    teacher = parameters * _FLOAT if job.prune is not None and job.prune.recover.distill else 0
    shared = activations + teacher
    return {s: shared + sum(memory(parameters, trained, workers, s, job.train.zero.offload).values()) for s in (0, 1, 2, 3)}


def disk(job: JobSpec, parameters: int, trained: int, at_once: int) -> int:
    """Bytes that a search leaves at most: weights of each segment, and the optimizer's state, with fp32 weights, where a later one may go on from it.

    Args:
        job: the job.
        parameters: of the model before it is pruned.
        trained: those that are not frozen.
        at_once: members that train at a time, each of which has a checkpoint of its own meanwhile.
    """
    removed = [removed_at(job, number) for number in range(job.train.segments)]
    kept = sum(before == after for before, after in itertools.pairwise(removed))
    return job.members * len(removed) * parameters * _FLOAT + (job.members * kept + at_once) * trained * (_FLOAT + _MOMENTS)


def settled(job: JobSpec, cores: int, gpus: float = 0.0) -> JobSpec:
    """The job on a machine of its own: workers that ask for no CPUs share the cores among all that train at a time, for which there must be GPUs."""
    workers = job.train.workers
    if workers.cpu is not None:
        return job
    room = min(cores, _on_gpus(workers, gpus)) if workers.gpu else cores
    at_once = workers.count * max(1, min(job.members, room // workers.count))
    shared = workers.model_copy(update={"cpu": float(max(1, cores // at_once))})
    return job.model_copy(update={"train": job.train.model_copy(update={"workers": shared})})


def cpus(workers: WorkersSpec) -> float:
    """CPUs of each worker; one where none are asked for."""
    return workers.cpu or 1.0


def reserved(workers: WorkersSpec) -> dict[str, float]:
    """What each worker has for itself, by Ray's names."""
    return {"CPU": cpus(workers)} | ({"GPU": workers.gpu} if workers.gpu else {})


def idle(workers: WorkersSpec, nodes: list[Resources]) -> str | None:
    """What is said of GPUs that a job leaves alone, or None."""
    gpus = sum(n.gpu for n in nodes)
    return f"{gpus:g} GPU(s) are left alone; --set train.workers.gpu=1 trains on one for each worker" if gpus and not workers.gpu else None


def placement(workers: WorkersSpec, nodes: list[Resources]) -> Placement:
    """How many members fit on the nodes. A worker fits on one node; the workers of a member may be on several."""
    rooms = [_room(workers, node) for node in nodes]
    if sum(rooms) >= workers.count:
        return Placement(sum(rooms) // workers.count, ())
    each = f"{cpus(workers):g} CPU" + (f" and {workers.gpu:g} GPU" if workers.gpu else "")
    missing = []
    if not any(rooms):
        missing.append(f"no node has room for one worker of {each}")
    for name, need, have in (
        ("CPUs", workers.count * cpus(workers), sum(n.cpu for n in nodes)),
        ("GPUs", workers.count * workers.gpu, sum(n.gpu for n in nodes)),
    ):
        if need > have:
            missing.append(f"{workers.count} workers of {each} need {need:g} {name}; the cluster has {have:g} on {len(nodes)} node(s)")
    if not missing:
        missing.append(f"{workers.count} workers of {each} do not fit: the nodes have room for {', '.join(map(str, rooms))}")
    return Placement(0, tuple(missing))


def shortage(by_stage: dict[int, int], stage: int, workers: WorkersSpec, nodes: list[Resources]) -> str | None:
    """What is missing of the nodes' memory, in a sentence, or None. The memory of GPUs is not known to Ray, so theirs is not judged.

    Args:
        by_stage: bytes per worker by ZeRO stage, from `estimate`.
        stage: of the job.
        workers: how many, and where.
        nodes: what there is.
    """
    largest, total = max(n.memory for n in nodes), sum(n.memory for n in nodes)

    def fits(size: int) -> bool:
        return size <= largest and size * workers.count <= total

    if workers.gpu or fits(by_stage[stage]):
        return None
    enough = next((f"; train.zero.stage: {s} would fit" for s, size in by_stage.items() if s > stage and fits(size)), "")
    return f"a worker needs about {size_text(by_stage[stage])}; the largest node has {size_text(largest)}, all have {size_text(total)}{enough}"


def slots(workers: WorkersSpec, nodes: list[Resources]) -> int:
    """How many members can train at the same time, at least one.

    Raises:
        PlacementError: what is missing, and what would fit.
    """
    found = placement(workers, nodes)
    if not found.missing:
        return found.slots
    room = sum(_room(workers, node) for node in nodes)
    fix = f"set train.workers.count: {room}, or add nodes" if room else "ask for less per worker, or add nodes"
    raise PlacementError("; ".join(found.missing), "train.workers", fix)


def _room(workers: WorkersSpec, node: Resources) -> int:
    """Workers that fit on a node."""
    by_cpu = int(node.cpu / cpus(workers) + 1e-9)
    return max(0, min(by_cpu, _on_gpus(workers, node.gpu)) if workers.gpu else by_cpu)


def _on_gpus(workers: WorkersSpec, gpus: float) -> int:
    """Workers that fit on a node's GPUs, each on one of them: what is left of two is no room for a third."""
    return int(gpus) * int(1 / workers.gpu + 1e-9)
