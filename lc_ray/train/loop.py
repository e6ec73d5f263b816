"""What each worker of a segment does."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import deepspeed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lc_ray import artifact, family, memory
from lc_ray.artifact import Manifest
from lc_ray.data.batch import ahead, stream
from lc_ray.data.prepare import Prepared, open_prepared
from lc_ray.errors import TrainError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed
from lc_ray.models.fusion import FusionModel
from lc_ray.models.shapes import difference
from lc_ray.spec import ModelSpec, module_name
from lc_ray.storage import StoragePath
from lc_ray.train import checkpoint, plan
from lc_ray.train.clock import Clock
from lc_ray.train.deepspeed import build, emulates_bf16
from lc_ray.train.deepspeed import config as deepspeed_config
from lc_ray.train.segment import CHECKPOINTS, Post, Segment, SegmentResult, finished, learning_rate

_EVALUATE, _LIGHTER = 64, 4  # rows at a time; rows that a model takes at once, for each of a training batch: without gradients it needs less memory
_BUCKET = 500_000_000  # DeepSpeed's own
_LEAST = 1e-9  # share that counts
Batch = tuple[dict[str, Tensor], Any]  # inputs by column.tensor, and targets: a tensor (batch, ...), or several by name


def train_segment(segment: Segment, post: Post) -> None:
    """Take a segment's steps and leave its artifact and record. Runs in every Ray Train worker, which may have trained others before."""
    worker = Worker(segment)
    clock, model = worker.clock, worker.model
    worker.tell(post, "worker")
    if not segment.number and worker.model_spec is not worker.spec.model:
        worker.tell(post, "note", text=f"member {segment.member} trains in fp32: {emulates_bf16(worker.device)} has no bf16")
    with clock("start"):
        teacher = worker.teacher()
        if segment.prunes:
            worker.prune(post)
        engine = worker.initialize()
        progress = worker.resume(engine)
    worker.tell(post, "model")
    history: list[dict[str, float]] = progress["history"]
    before = worker.communicated
    batches = worker.batches(start=progress["step"])
    for step in range(progress["step"], segment.until):
        rate = learning_rate(worker.spec.train.learning_rate, step, segment.phase, worker.spec.train.warmup)
        for group, (factor, _) in zip(engine.optimizer.param_groups, worker.groups, strict=True):
            group["lr"] = rate * factor
        losses = []
        torch.manual_seed(~worker.seed(step))  # of dropout, apart from what batches draw, and the same where a segment goes on
        with clock("data"):
            parts = list(itertools.islice(batches, worker.spec.train.accumulate))
        with clock("communication"):
            shares = worker.shares([targets for _, targets in parts])
        with clock("compute"):
            for (inputs, targets), share in zip(parts, shares, strict=True):
                loss = worker.loss(engine(inputs), inputs, targets, teacher)
                engine.backward(loss * share)
                engine.step()  # which changes weights with the last of them
                losses.append(loss.detach())
            value = float((torch.stack(losses) * shares).sum() / shares.sum().clamp(min=_LEAST))  # which waits for a GPU
        worker.require_finite({"loss": value}, step)
        if segment.told(step):
            history.append({"step": step, "loss": value, "learning_rate": rate})
            worker.tell(post, "step", step=step + 1, loss=value)
        every = worker.spec.train.checkpoint_every
        if every and (step + 1) % every == 0 and step + 1 < segment.until:
            with clock("checkpoint"):
                checkpoint.save(engine, {"step": step + 1, "history": history}, segment.checkpoints)
    clock.move(worker.communicated - before, "compute", "communication")
    with clock("evaluate"):
        metrics = worker.evaluate(model)
    worker.require_finite(metrics, segment.until - 1)  # the last step may have broken the weights: no loss has told of it
    with clock("checkpoint"):
        weights = checkpoint.whole_weights(engine)
        if worker.rank == 0:
            worker.write_artifact(weights, metrics)
        kept = checkpoint.save(engine, {"step": segment.until, "history": history}, segment.checkpoints) if segment.keeps_optimizer else None
    if worker.rank == 0:
        worker.write_record(metrics, history, clock.total(), kept)
    engine.destroy()  # its hooks would keep it, and DeepSpeed's log of communication the worker
    del engine, batches, model, teacher, worker, deepspeed.comm.comm.comms_logger.append
    gc.collect()
    torch.cuda.empty_cache()  # for another member on this GPU, or a segment of other shapes


class Worker:
    """One worker's model, data and place among the others.

    Args:
        segment: what to train.
    """

    def __init__(self, segment: Segment) -> None:
        context = ray.train.get_context()
        self.clock, self.communicated = Clock(), 0.0  # seconds in DeepSpeed's collective operations, waiting for other workers included
        self.segment, self.spec = segment, segment.spec
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(plan.cpus(self.spec.train.workers))))
            memory.keep_freed()
        else:
            torch.cuda.set_device(self.device)  # also for what is not told where to be
        self.data: Prepared = open_prepared(segment.prepared)
        self.task = self.data.task()
        self.inputs = self.spec.inputs()
        with self.clock("start"):
            self.columns = load.modalities(self.inputs)
            self.task.bind(self.columns)
            self.kept: dict[str, Any] = {}
            torch.manual_seed(segment.seed)
            self.model = self._starting_model().to(self.device)

    def _starting_model(self) -> nn.Module:
        if self.segment.parent is None:
            return load.pretrained(self.spec.model, self.inputs, self.task)
        with self._artifact(self.segment.parent).here() as folder:
            parent = artifact.read(folder, verify=False)
            self.kept = parent.manifest.lineage.get("kept", {})
            model = load.open_model(parent)
            if isinstance(model, FusionModel):
                model.dropout.p = self.spec.model.dropout  # a member that inherits has its own
            return load.freeze(model, self.spec.model.freeze, self.inputs)

    def _artifact(self, key: str) -> StoragePath:
        return self.segment.store / key / "model"

    def tell(self, post: Post, event: str, **fields: Any) -> None:
        """Post an event of this segment, once for all workers, with the steps of its member's whole training."""
        if self.rank == 0:
            post({"event": event, "segment": self.segment.key, "member": self.segment.member, "steps": self.segment.total, **fields})

    def teacher(self) -> nn.Module | None:
        """The unpruned parent, while recovering by distillation."""
        prune = self.spec.prune
        if prune is None or self.segment.dense is None or not self.segment.pruned or not prune.recover.distill:
            return None
        with self._artifact(self.segment.dense).here() as folder:
            return load.open_model(artifact.read(folder, verify=False)).requires_grad_(False).to(self.device)

    @functools.cached_property
    def model_spec(self) -> ModelSpec:
        """The job's, in fp32 where the device has no bf16."""
        slow = self.spec.model.dtype == "bf16" and emulates_bf16(self.device)
        return self.spec.model.model_copy(update={"dtype": "fp32"}) if slow else self.spec.model

    def prune(self, post: Post) -> None:
        """Remove units by an importance that is summed over the workers."""
        spec, gone = self.spec.prune, self.segment.removed
        assert spec is not None
        batches = self.batches(start=self.segment.first)
        first, _ = next(batches)
        pruner = family.load("prune", spec.kind).Pruner(self.model, {k: v[:2] for k, v in first.items()}, keep=self.model.keep)
        trained = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.model.eval().requires_grad_(True)
        for inputs, targets in itertools.islice(batches, max(1, spec.calibration // self.spec.train.micro_batch)):
            self.model.zero_grad()
            with self._autocast():
                outputs = self.model(inputs)
            self.task.loss(outputs, targets).backward()
            pruner.observe()
        self.model.zero_grad()
        scores = pruner.scores.to(self.device)
        dist.all_reduce(scores)
        pruner.scores = scores.cpu()
        removed = pruner.remove((self.segment.pruned - gone) / (1 - gone))
        # What has one unit left is found no more, and stays on record.
        self.kept |= {name: units | {"before": self.kept.get(name, units)["before"]} for name, units in removed.items()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trained[name])
        self.tell(post, "pruned", kept=self.kept)

    def initialize(self) -> Any:
        """The DeepSpeed engine around the model."""
        build()
        self.shapes = difference(self.model, self._original())  # before ZeRO-3 leaves this worker with a slice of each tensor
        self.scalars = {name: p for name, p in self.model.named_parameters() if not p.ndim}  # such as SpeechT5's
        for name, parameter in self.scalars.items():  # which DeepSpeed can't send to other workers: while training they have a dimension
            path, _, leaf = name.rpartition(".")
            longer = nn.Parameter(parameter.detach().view(1), parameter.requires_grad)
            setattr(self.model.get_submodule(path), leaf, longer)
        load.train(self.model)
        groups = self._groups()
        self.groups = list(groups)
        trained = [{"params": parameters, "weight_decay": self._decay(decays)} for (_, decays), parameters in groups.items()]
        optimizer = torch.optim.AdamW(trained, lr=self.spec.train.learning_rate, fused=True)
        settings = deepspeed_config(self.spec.train, self.model_spec)
        numbers = sum(p.numel() for parameters in groups.values() for p in parameters)
        settings["zero_optimization"]["reduce_bucket_size"] = min(_BUCKET, numbers)  # for which memory is taken, however small the model
        deepspeed.comm.comm.comms_logger.append = self._communicated
        own = SimpleNamespace(device_rank=self.device.index or 0)  # else it would take that of its number among this node's workers
        engine, *_ = deepspeed.initialize(args=own, model=self.model, optimizer=optimizer, config=settings)
        self.communicated = 0.0  # by steps
        # Alone and without ZeRO, gradients would be copied to and fro; ZeRO's optimizer is handed them by nothing else.
        engine.enable_backward_allreduce = self.world > 1 or engine.zero_optimization_stage() > 0
        return engine

    def _groups(self) -> dict[tuple[float, bool], list[Any]]:
        """Trained parameters by the factor on their learning rate, and whether they decay: biases and scales of normalisation do not."""
        of_encoder = {f"encoders.{module_name(i.column)}.": i.rate for i in self.inputs}
        groups: dict[tuple[float, bool], list[Any]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                rate = next((r for prefix, r in of_encoder.items() if name.startswith(prefix)), 1.0)
                groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
        return groups

    def _decay(self, decays: bool) -> float:
        return self.spec.train.weight_decay if decays else 0.0

    def resume(self, engine: Any) -> dict[str, Any]:
        """Progress of this segment: its own checkpoint after a failure, else its parent's optimizer, else a fresh start."""
        if own := checkpoint.latest(self.segment.checkpoints):
            return checkpoint.restore(engine, self.segment.checkpoints / own)
        if self.segment.parent and not self.segment.prunes:
            parent = finished(self.segment.store / self.segment.parent)
            if parent and parent.checkpoint:
                checkpoint.restore(engine, self.segment.store / parent.key / CHECKPOINTS / parent.checkpoint)
                self._own_settings(engine)
        return {"step": self.segment.first, "history": []}

    def _own_settings(self, engine: Any) -> None:
        """Put this segment's settings in place of those that were loaded with its parent's optimizer."""
        for group, (_, decays) in zip(engine.optimizer.param_groups, self.groups, strict=True):
            group["weight_decay"] = self._decay(decays)
        if hasattr(engine.optimizer, "clip_grad"):
            engine.optimizer.clip_grad = self.spec.train.clip_norm

    def batches(self, start: int) -> Iterator[Batch]:
        """This worker's training batches from a step on, as many for each step as gradients are accumulated over."""
        random, passes = torch.Generator(), start * self.spec.train.accumulate
        rows = stream(self.data, self.rank, self.world, self.spec.train.micro_batch, self.segment.seed, passes)
        made = (self._fed(one, random.manual_seed(self.seed(number))) for number, one in enumerate(rows, passes))
        yield from map(self._placed, made if self.device.type == "cpu" else ahead(made))  # a GPU leaves the CPU to the next one meanwhile

    def seed(self, number: int) -> int:
        """Of what this worker draws for a step or a batch."""
        return int(self.segment.seed * 1_000_003 + number) * 1009 + int(self.rank)

    def _fed(self, rows: dict[str, list[Any]], random: torch.Generator, training: bool = True) -> Batch:
        """A batch; varied, and with columns hidden, while training."""
        return feed(rows, self.columns, self.task, random, training, self.spec.model.fusion.drop)

    def _placed(self, batch: Batch) -> Batch:
        """A batch on the device."""
        inputs, targets = {k: v.to(self.device) for k, v in batch[0].items()}, batch[1]
        return inputs, {k: v.to(self.device) for k, v in targets.items()} if isinstance(targets, dict) else targets.to(self.device)

    def shares(self, targets: list[Any]) -> Tensor:
        """What the losses of a step's parts weigh, 1 on average over all workers, so that gradients are those of one mean over all their items."""
        items = [self.task.items(one) for one in targets]
        if items[0] is None:
            return torch.ones(len(items), device=self.device)
        own = torch.stack(items).float()
        total = own.sum()
        dist.all_reduce(total)
        shares: Tensor = own * (self.world * len(own) / total.clamp(min=1))
        return shares

    def loss(self, outputs: Tensor, inputs: dict[str, Tensor], targets: Any, teacher: nn.Module | None) -> Tensor:
        """The task's loss, mixed with distance from the teacher while recovering."""
        loss: Tensor = self.task.loss(outputs, targets)
        if teacher is None or self.spec.prune is None:
            return loss
        recover = self.spec.prune.recover
        with torch.no_grad(), self._autocast():
            soft = teacher(inputs)
        softened: Tensor = self.task.distill(outputs, soft, targets, recover.temperature)
        return (1 - recover.distill) * loss + recover.distill * softened

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics over `evaluate.rows` validation rows: each worker takes some parts, and none is dropped to make shares equal."""
        scores, encoded = list[Any](), list[Any]()
        self._agree(model)
        model.eval()
        parts = self.data.held_out(self.spec, comparing=True)
        batches = [table for part in parts[self.rank :: self.world] for table in _by_length(*part)]
        spare = next(_by_length(*parts[0]))
        for step in range(self._most(len(batches))):
            # A worker that is done goes on with spare rows while others need it: with ZeRO-3 each forward gathers weights from all.
            rows = self.data.values(batches[step] if step < len(batches) else spare)
            inputs, targets = self._placed(self._fed(rows, torch.Generator().manual_seed(step), training=False))
            found = self.task.score(lambda batch: self._run(model, batch), inputs, targets)
            if step < len(batches):
                scores += found
                encoded += [self.task.encode(t) for t in rows[TARGET]]
        load.train(model)
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, (scores, encoded))
        metrics = self.task.metrics(*([x for part in gathered for x in part[i]] for i in (0, 1)))
        return {name: float(value) for name, value in metrics.items()}

    def require_finite(self, values: dict[str, float], step: int) -> None:
        """Raise TrainError where one of the values is infinite or no number."""
        for name, value in values.items():
            if not np.isfinite(value):
                fix = "lower train.learning_rate, or set model.dtype: fp32"
                raise TrainError(f"the {name.replace('_', ' ')} became {value} at step {step}", self.segment.key, fix)

    def _run(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        rows, size = len(next(iter(batch.values()))), _LIGHTER * self.spec.train.micro_batch // self.world
        found = []
        with torch.no_grad(), self._autocast():
            for start in range(0, max(rows, _EVALUATE) if self.spec.train.zero.stage == 3 else rows, size):  # with ZeRO-3 all call it as often
                piece = slice(start, start + size) if start < rows else slice(size)
                found.append(model({k: v[piece].to(self.device) for k, v in batch.items()}).float().cpu())
        return torch.cat(found)[:rows].numpy()

    def _agree(self, model: nn.Module) -> None:
        """Average what workers have counted by themselves, such as the statistics of batch normalisation."""
        for buffer in model.buffers():
            if self.world > 1 and buffer.is_floating_point() and buffer.numel():
                dist.all_reduce(buffer)
                buffer /= self.world

    def _most(self, count: int) -> int:
        """The largest of all workers' counts."""
        most = torch.tensor(count, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.model_spec.dtype == "bf16")

    def _communicated(self, operation: str, name: str, milliseconds: float, size: int) -> None:
        """Called by DeepSpeed after each collective operation. By itself it keeps them all, and sums up all that came before at each."""
        deepspeed.comm.comm.timers(name).reset()
        self.communicated += milliseconds / 1000

    def write_artifact(self, weights: dict[str, Tensor], metrics: dict[str, float]) -> None:
        """The model as it is now."""
        shapes, attributes = self.shapes
        weights = {name: w.squeeze() if name in self.scalars else w for name, w in weights.items()}
        manifest = Manifest(
            name=self.spec.name,
            task={"kind": self.spec.task.kind, **self.task.config},
            inputs=[i.model_dump(mode="json") for i in self.inputs],
            architecture=load.describe(self.model, shapes, attributes),
            metrics=metrics,
            lineage={
                "base": [i.base for i in self.inputs if i.base],
                "segment": self.segment.key,
                "parent": self.segment.parent,
                "pruned": self.segment.pruned,
                "kept": self.kept,
                "seed": self.spec.seed,
                "data": self.data.key,
            },
        )
        with self._artifact(self.segment.key).filled(last=artifact.MANIFEST) as folder:
            load.save(folder, manifest, weights, self.columns)

    def _original(self) -> nn.Module:
        with torch.device("meta"):
            plain = Manifest(
                name="",
                task={"kind": self.spec.task.kind, **self.task.config},
                inputs=[],
                architecture=load.describe(self.model, {}, {}),
            )
            return load.rebuild(plain)

    def write_record(
        self, metrics: dict[str, float], history: list[dict[str, float]], seconds: dict[str, float], kept: str | None
    ) -> None:
        """The segment's result, with which it is finished. Checkpoints that nobody goes on from are removed."""
        segment = self.segment
        genes = {path: self.spec.get(path) for path in (self.spec.search.genes if self.spec.search else ())}
        dense = segment.key if not segment.pruned else segment.dense or ""
        SegmentResult(
            segment.key, segment.number, segment.member, segment.parent, dense, segment.pruned, metrics, history, seconds, kept, genes
        ).write(segment.folder)
        if kept is None:
            segment.checkpoints.remove()


def _by_length(part: StoragePath, rows: int) -> Iterator[pa.Table]:
    """The first rows of a file in batches of like length."""
    table = pq.read_table(part.open()).slice(0, rows).sort_by("_size")
    for start in range(0, table.num_rows, _EVALUATE):
        yield table.slice(start, _EVALUATE)
