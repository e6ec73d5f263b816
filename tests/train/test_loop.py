"""A worker's parts on a real DeepSpeed engine, alone and without Ray."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import deepspeed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from artifacts import save
from safetensors.torch import load_file
from torch import nn

from lc_ray import spec
from lc_ray.errors import TrainError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.section import override
from lc_ray.storage import StoragePath
from lc_ray.tasks import token_classification
from lc_ray.tasks.classification import Task
from lc_ray.train import checkpoint, loop
from lc_ray.train.segment import Segment, SegmentResult, learning_rate

JOB = {
    "model": {},
    "data": {"train": "t.csv", "inputs": [{"column": "x", "modality": "tabular"}], "target": "label"},
    "train": {"segments": 3, "batch_size": 4, "weight_decay": 0, "zero": {"stage": 2, "offload": "cpu"}},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group') / 'file'}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
        deepspeed.comm.comm.cdb = None


def worker(store, number=0, parent=None, removed=0.0, **values):
    """What a worker is before it has read anything."""
    job = spec.parse(override(JOB, values)).model_dump(mode="json")
    self = object.__new__(loop.Worker)
    self.segment = Segment(job, StoragePath("/prepared/key"), StoragePath(str(store)), number, 100, parent, None, 0, removed)
    self.spec, self.inputs, self.task, self.kept = self.segment.spec, self.segment.spec.inputs(), Task(["a", "b"]), {}
    self.rank, self.world, self.device, self.communicated = 0, 1, torch.device("cpu"), 0.0
    torch.manual_seed(0)
    self.model = load.pretrained(self.spec.model, self.inputs, self.task)
    return self


def step(self, engine, take=True):
    inputs = {"x.number": torch.tensor([1.0, 2, 3, 7]).to(engine.device), "x.category": torch.zeros(4, dtype=torch.long).to(engine.device)}
    outputs = engine(inputs)
    engine.backward(self.task.loss(outputs, torch.tensor([0, 1, 0, 1]).to(engine.device)))
    if take:
        engine.step()
    return outputs


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_worker_that_offloads_learns(alone, tmp_path, stage):
    self = worker(tmp_path, **{"train.zero.stage": stage})
    before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
    engine = self.initialize()
    step(self, engine)
    after = checkpoint.whole_weights(engine)
    assert not torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize("stage", [1, 3])
def test_one_worker_has_all_weights(alone, tmp_path, monkeypatch, stage):
    engine = worker(tmp_path, **{"train.zero.stage": stage}).initialize()
    assert checkpoint.whole_weights(engine)
    monkeypatch.setattr(checkpoint.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(checkpoint.deepspeed.zero, "GatheredParameters", lambda _: contextlib.nullcontext())  # which asks for the rank, too
    assert checkpoint.whole_weights(engine) == {}


def test_gradients_are_computed_in_bf16_and_reduced_in_fp32(alone, tmp_path, monkeypatch):
    from deepspeed.utils import safe_get_full_grad

    monkeypatch.setattr(loop, "emulates_bf16", lambda device: "")
    self = worker(tmp_path, **{"train.zero.stage": 1, "train.accumulate": 2, "train.batch_size": 8})
    engine = self.initialize()
    assert step(self, engine).dtype == torch.bfloat16
    step(self, engine, take=False)
    total = safe_get_full_grad(self.model.head.weight)  # of two gradients, each in bf16
    assert not torch.equal(total, total.bfloat16().float())


@pytest.mark.parametrize(("stage", "offload"), [(0, "none"), (2, "cpu"), (3, "cpu")])
def test_a_weight_without_a_dimension_learns_and_is_kept_as_it_is(alone, tmp_path, stage, offload):
    self = worker(tmp_path, **{"train.zero": {"stage": stage, "offload": offload}})
    self.data, scale = SimpleNamespace(key="data"), nn.Parameter(torch.tensor(2.0))
    self.model.head.register_parameter("scale", scale)
    self.model.head.register_forward_hook(lambda head, _, outputs: outputs * head.scale)
    self._original = lambda: self.model
    seen = self.model({"x.number": torch.ones(4), "x.category": torch.zeros(4, dtype=torch.long)})
    seen.sum().backward()  # as pruning does, and keeps
    self.model.zero_grad()
    engine = self.initialize()
    step(self, engine)
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "save", lambda folder, manifest, weights, columns: kept.append(weights))
        patch.setattr(StoragePath, "filled", lambda path, last: contextlib.nullcontext(tmp_path))
        self.columns = {}
        self.write_artifact(checkpoint.whole_weights(engine), {})
    ((found),) = [weights["head.scale"] for weights in kept]
    assert found.shape == ()
    assert found != 2


def test_biases_and_normalisation_do_not_decay(alone, tmp_path):
    self = worker(tmp_path, **{"train.weight_decay": 0.5, "train.learning_rate": 0.1})
    before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
    engine = self.initialize()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.1
    outputs = engine({"x.number": torch.ones(4), "x.category": torch.zeros(4, dtype=torch.long)})
    engine.backward(outputs.sum() * 0)  # nothing is learned
    engine.step()
    after = checkpoint.whole_weights(engine)
    matrices = {name for name, p in before.items() if p.ndim > 1}
    assert 0 < len(matrices) < len(before)
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights * (0.95 if name in matrices else 1))


def test_a_metric_that_is_no_number_fails_the_segment(tmp_path):
    self = worker(tmp_path)
    self.require_finite({"accuracy": 0.5, "log_loss": 1e30}, 7)
    with pytest.raises(TrainError, match="the log loss became nan at step 7"):
        self.require_finite({"accuracy": 0.5, "log_loss": float("nan")}, 7)


def test_timing_of_communication_keeps_nothing_of_each_operation(alone, tmp_path):
    comm = deepspeed.comm.comm
    self = worker(tmp_path)
    engine = self.initialize()
    comm.comms_logger.reset_data()
    seconds = [self.communicated]
    for _ in range(3):
        step(self, engine)
        seconds.append(self.communicated)
    assert 0 == seconds[0] < seconds[1] < seconds[2] < seconds[3]
    assert not comm.comms_logger.has_data()
    assert not any(timer.event_timers for timer in comm.timers.get_timers().values())


def test_an_heir_has_its_own_decay_and_clipping(alone, tmp_path):
    donor = worker(tmp_path, **{"train.weight_decay": 0.3, "train.clip_norm": 0.5})
    engine = donor.initialize()
    step(donor, engine)
    donor_folder = StoragePath(str(tmp_path / "donor"))
    kept = [checkpoint.save(engine, {"step": n, "history": []}, donor_folder / "checkpoints") for n in (1, 2)][-1]
    assert checkpoint.latest(donor_folder / "checkpoints") == kept == "step-2"
    assert not (donor_folder / "checkpoints" / "step-1").exists()
    SegmentResult("donor", 0, 1, None, "donor", 0.0, {}, [], {}, kept).write(donor_folder)

    heir = worker(tmp_path, 1, "donor", **{"train.weight_decay": 0.1, "train.clip_norm": 2.0})
    engine = heir.initialize()
    assert heir.resume(engine) == {"step": heir.segment.first, "history": []}
    assert [decays for _, decays in heir.groups] == [True, False]
    assert [group["weight_decay"] for group in engine.optimizer.param_groups] == [0.1, 0]
    assert engine.optimizer.clip_grad == 2.0
    assert engine.optimizer.state, "the donor's moments"


def test_an_heir_has_its_own_dropout(tmp_path):
    donor = worker(tmp_path, **{"model.dropout": 0.5})
    save(tmp_path / "donor" / "model", donor.model, donor.task, donor.inputs)
    heir = worker(tmp_path, 1, "donor", **{"model.dropout": 0.2})
    model = heir._starting_model()
    assert model.dropout.p == model.config["dropout"] == 0.2


def test_pruning_removes_what_is_missing_of_what_the_parent_lost(alone, tmp_path, monkeypatch):
    removed = []

    class Pruner:
        def __init__(self, model, example, keep):
            self.scores = torch.zeros(1)

        def observe(self):
            pass

        def remove(self, fraction):
            removed.append(fraction)
            return {"wide": {"before": 6, "after": 2, "size": 1}}

    self = worker(tmp_path, 2, "donor", 0.3, **{"prune": {"parameters": 0.6, "start": 0.3, "calibration": 4}})
    monkeypatch.setattr(loop.family, "load", lambda group, kind: SimpleNamespace(Pruner=Pruner))
    assert self.segment.prunes
    inputs = {"x.number": torch.ones(4), "x.category": torch.zeros(4, dtype=torch.long)}
    monkeypatch.setattr(self, "batches", lambda start: iter([(inputs, torch.zeros(4, dtype=torch.long))] * 2))
    self.kept = {"wide": {"before": 8, "after": 6, "size": 1}, "narrow": {"before": 4, "after": 1, "size": 8}}
    self.prune(lambda event: None)
    assert removed == pytest.approx([0.3 / 0.7])
    assert self.kept == {"wide": {"before": 8, "after": 2, "size": 1}, "narrow": {"before": 4, "after": 1, "size": 8}}


ROWS, STEPS = 24, 3
NAMES = {
    "data": {"train": "t.csv", "inputs": [{"column": "x", "modality": "words", "max_length": 32}], "target": "tags"},
    "task": {"kind": "token_classification", "class_weights": "balanced"},
    "train": {"epochs": STEPS, "batch_size": ROWS, "learning_rate": 1e-2, "warmup": 0.5, "weight_decay": 0.1, "clip_norm": 0.1}
    | {"checkpoint_every": 1},
}


@pytest.fixture
def segment(alone, tmp_path, tiny_base, monkeypatch):
    """segment(name, **values) → one over rows of 1 to 15 words, few of which are names; the rows, their columns and the task."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1))
    monkeypatch.setattr(loop.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    random, words = np.random.default_rng(0), ["all", "day", "flight", "good", "had", "late", "love"]
    texts = [" ".join(random.choice(words, random.integers(1, 16))) for _ in range(ROWS)]
    tags = [["B-name" if word == "flight" else "O" for word in text.split()] for text in texts]

    def segment(name, **values):
        job = spec.parse(override(NAMES | {"model": {"base": str(base), "dtype": "fp32", "dropout": 0}}, values))
        columns, task = load.modalities(job.inputs()), token_classification.Task.fit(tags, token_classification.Task.options(job.task), {})
        rows = prepare({"x": [columns["x"].decode(text) for text in texts]}, columns) | {TARGET: tags}
        folder = tmp_path / "prepared"
        for side in ("train", "validation"):
            (folder / "try" / side).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(rows), folder / "try" / side / "part.parquet")
        parts = {side: [{"file": "part.parquet", "rows": ROWS}] for side in ("train", "validation")}
        (folder / "data.json").write_text(json.dumps({"try": "try", "task": {"kind": "token_classification", **task.config}, **parts}))
        made = Segment(job.model_dump(mode="json"), StoragePath(str(folder)), StoragePath(str(tmp_path / name)), 0, ROWS)
        return made, rows, columns, task

    return segment


def trained(segment):
    loop.train_segment(segment, lambda event: None)
    return load_file(str(segment.folder / "model" / "model.safetensors"))


@pytest.mark.parametrize(("stage", "calls"), [(1, [16, 16, 1]), (3, [16, 16, 1, 16])])
def test_a_model_is_measured_with_little_more_memory_than_it_is_trained_with(tmp_path, stage, calls):
    self, seen = worker(tmp_path, **{"train.zero.stage": stage, "model.dtype": "fp32"}), []
    self.model.eval().register_forward_pre_hook(lambda _, given: seen.append(len(given[0]["x.number"])))
    batch = {"x.number": torch.arange(33.0), "x.category": torch.zeros(33, dtype=torch.long)}
    found = self._run(self.model, batch)
    assert seen == calls, "as often on all workers with ZeRO-3, which gathers weights from all at each call"
    assert found == pytest.approx(self.model(batch).detach().numpy(), abs=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_is_that_of_a_plain_loop_over_the_same_rows_in_however_many_parts(segment, parts):
    made, rows, columns, task = segment("parts", **{"train.accumulate": parts})
    torch.manual_seed(made.seed)
    model = load.pretrained(made.spec.model, made.spec.inputs(), task)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    inputs, targets = feed(rows, columns, task)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(1e-2, step, (0, STEPS), 0.5)
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    for name, weights in trained(made).items():
        torch.testing.assert_close(weights, model.state_dict()[name], atol=2e-4, rtol=1e-3)


def test_parts_share_a_step_by_what_they_hold_on_all_workers(segment, monkeypatch):
    self = object.__new__(loop.Worker)
    self.task, self.world, self.device = segment("shares")[-1], 2, torch.device("cpu")
    monkeypatch.setattr(loop.dist, "all_reduce", lambda total: total.add_(30))  # words of the other worker
    shares = self.shares([torch.tensor([[0, 1, -100]]), torch.tensor([[1] * 8])])
    assert shares.tolist() == pytest.approx([2 * 4 / 40, 8 * 4 / 40])


def test_a_segment_that_was_cut_off_ends_as_if_it_had_not_been(segment, monkeypatch):
    whole, made = (segment(name, **{"model.dropout": 0.3})[0] for name in ("whole", "cut"))
    whole = trained(whole)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", lambda peak, step, *others: learning_rate(peak, step, *others) if step < 2 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(made)
    for name, weights in trained(made).items():
        assert torch.equal(weights, whole[name]), name


class Started(Exception):
    """In place of an engine."""


@pytest.fixture
def on_a_gpu(tmp_path, monkeypatch):
    """A worker on the third GPU of those it sees, and what it gives to DeepSpeed."""
    self, given = worker(tmp_path, **{"train.workers.gpu": 1}), {}
    self.device, self.data = torch.device("cuda", 2), SimpleNamespace()
    self._original = lambda: self.model

    def initialize(**arguments):
        given.update(arguments)
        raise Started

    monkeypatch.setattr(loop.deepspeed, "initialize", initialize)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    return self, given


def test_deepspeed_is_where_the_model_is(on_a_gpu):
    """Else it would be on the GPU that has the number of this worker on its node: not that of Ray's where a node has more than ten."""
    self, given = on_a_gpu
    with pytest.raises(Started):
        self.initialize()
    assert given["args"].device_rank == 2


def test_a_gpu_without_bf16_computes_in_fp32(on_a_gpu, monkeypatch):
    self, given = on_a_gpu
    with pytest.raises(Started):
        self.initialize()
    assert "torch_autocast" not in given["config"]
    assert self.model_spec.dtype == "fp32"
    del self.model_spec
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    with pytest.raises(Started):
        self.initialize()
    assert given["config"]["torch_autocast"]["enabled"]


@pytest.mark.parametrize(("has", "dtype"), [("avx2", "fp32"), ("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("bf16", "bf16")])
def test_a_cpu_without_bf16_computes_in_fp32(tmp_path, monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True, "cpu_name": "EPYC"})
    assert worker(tmp_path).model_spec.dtype == dtype


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_gpu_does_not_wait_for_its_next_batch(on_a_gpu, monkeypatch, kind):
    self, fed = on_a_gpu[0], []
    self.device = torch.device(kind)
    monkeypatch.setattr(loop, "stream", lambda *_: iter(range(10)))
    monkeypatch.setattr(self, "_fed", lambda rows, random: fed.append(rows) or (rows, int(torch.randint(10**6, (), generator=random))))
    monkeypatch.setattr(self, "_placed", lambda batch: batch)
    batches = self.batches(start=3)
    found = [next(batches) for _ in range(3)]
    batches.close()
    assert fed == list(range(3 if kind == "cpu" else 4))
    assert found == [(row, int(torch.randint(10**6, (), generator=torch.Generator().manual_seed(self.seed(3 + row))))) for row in range(3)]
