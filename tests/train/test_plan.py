import pytest

from lc_ray import spec
from lc_ray.errors import PlacementError
from lc_ray.spec import WorkersSpec
from lc_ray.train import plan
from lc_ray.train.plan import Resources

MILLION = 1_000_000


def test_zero_shards_what_the_paper_says():
    """AdamW in fp32: 4 bytes of weights, 4 of gradients, 8 of moments per parameter (Rajbhandari et al. 2020, section 3)."""
    by_stage = [sum(plan.memory(MILLION, MILLION, 4, stage, "none").values()) for stage in range(4)]
    assert by_stage == [16 * MILLION, (8 + 2) * MILLION, (4 + 1 + 2) * MILLION, 4 * MILLION]


def test_frozen_parameters_have_no_gradients_or_moments():
    assert sum(plan.memory(MILLION, MILLION // 2, 1, 0, "none").values()) == 4 * MILLION + 6 * MILLION


def test_offloaded_moments_leave_the_device():
    assert plan.memory(MILLION, MILLION, 1, 1, "cpu")["optimizer"] == 0


def test_the_teacher_counts():
    small = {"model": {"base": "b"}, "data": {"train": "t", "inputs": [{"column": "x"}], "target": "y"}, "train": {"segments": 2}}
    plain, pruned = spec.parse(small), spec.parse({**small, "prune": {}})
    assert plan.estimate(pruned, MILLION, MILLION)[1] - plan.estimate(plain, MILLION, MILLION)[1] == 4 * MILLION


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 4 + 12),  # weights, and a checkpoint meanwhile
        ({"train": {"segments": 3}}, 3 * 4 + (2 + 1) * 12),
        ({"train": {"segments": 3}, "prune": {"start": 0.6}}, 3 * 4 + (1 + 1) * 12),  # pruned weights have another optimizer
        ({"train": {"segments": 2}, "search": {"population": 4, "genes": {"train.warmup": {"uniform": [0, 0.1]}}}}, 8 * 4 + (4 + 1) * 12),
    ],
)
def test_what_segments_take_on_disk(fields, size):
    job = spec.parse({"model": {"base": "b"}, "data": {"train": "t", "inputs": [{"column": "x"}], "target": "y"}, **fields})
    assert plan.disk(job, MILLION, MILLION, 1) == size * MILLION


@pytest.mark.parametrize(
    ("workers", "nodes", "slots"),
    [
        (WorkersSpec(count=2, cpu=1), [Resources(2)], 1),
        (WorkersSpec(count=2, cpu=1), [Resources(4)], 2),
        (WorkersSpec(count=4, cpu=2), [Resources(4), Resources(4)], 1),
        (WorkersSpec(count=2, cpu=1, gpu=1), [Resources(16, 4), Resources(16, 1)], 2),
        (WorkersSpec(count=2, cpu=0.5), [Resources(1)], 1),
        (WorkersSpec(cpu=1, gpu=0.5), [Resources(16, 1), Resources(16, 2)], 6),
        (WorkersSpec(cpu=1, gpu=0.4), [Resources(16, 2)], 4),  # Ray gives no worker a part of two GPUs
    ],
)
def test_slots(workers, nodes, slots):
    assert plan.placement(workers, nodes).slots == plan.slots(workers, nodes) == slots


@pytest.mark.parametrize(
    ("workers", "population", "cores", "cpus"),
    [({}, 0, 8, 8), ({}, 4, 8, 2), ({}, 4, 2, 1), ({}, 4, 6, 1), ({"count": 2}, 2, 8, 2), ({"count": 4}, 0, 2, 1), ({"cpu": 1}, 0, 8, 1)],
)
def test_a_machine_is_shared_among_all_that_train_at_a_time(workers, population, cores, cpus):
    job = {"model": {"base": "b"}, "data": {"train": "t", "inputs": [{"column": "x"}], "target": "y"}, "train": {"workers": workers}}
    search = {"search": {"population": population, "genes": {"train.learning_rate": {"log_uniform": [1e-5, 1e-4]}}}} if population else {}
    assert plan.settled(spec.parse(job | search), cores).train.workers.cpu == cpus


@pytest.mark.parametrize(("gpu", "gpus", "cpus"), [(1, 1, 16), (1, 2, 8), (0.5, 1, 8), (1, 8, 4), (1, 0, 16)])
def test_cores_are_for_those_that_find_a_gpu(gpu, gpus, cpus):
    job = {"model": {"base": "b"}, "data": {"train": "t", "inputs": [{"column": "x"}], "target": "y"}, "train": {"workers": {"gpu": gpu}}}
    search = {"search": {"population": 4, "genes": {"train.learning_rate": {"log_uniform": [1e-5, 1e-4]}}}}
    assert plan.settled(spec.parse(job | search), 16, gpus).train.workers.cpu == cpus


def test_gpus_that_are_left_alone_are_told():
    assert "2 GPU(s)" in plan.idle(WorkersSpec(), [Resources(8, 2), Resources(8)])
    assert plan.idle(WorkersSpec(gpu=1), [Resources(8, 2)]) is None
    assert plan.idle(WorkersSpec(), [Resources(8)]) is None


@pytest.mark.parametrize(
    ("workers", "nodes", "message"),
    [
        (WorkersSpec(count=3, cpu=1), [Resources(2)], "need 3 CPUs; the cluster has 2"),
        (WorkersSpec(count=2, cpu=1, gpu=1), [Resources(8)], "need 2 GPUs; the cluster has 0"),
        (WorkersSpec(count=1, cpu=8), [Resources(4), Resources(4)], "no node has room for one worker of 8 CPU"),
        (WorkersSpec(count=3, cpu=2), [Resources(3), Resources(3)], "room for 1, 1"),
    ],
)
def test_what_is_missing_is_said_exactly(workers, nodes, message):
    with pytest.raises(PlacementError, match=message):
        plan.slots(workers, nodes)


def test_the_fix_names_what_would_fit():
    workers, nodes = WorkersSpec(count=8, cpu=1), [Resources(3)]
    with pytest.raises(PlacementError, match=r"set train\.workers\.count: 3"):
        plan.slots(workers, nodes)


GIB = 2**30
BY_STAGE = {0: 16 * GIB, 1: 12 * GIB, 2: 8 * GIB, 3: 4 * GIB}


@pytest.mark.parametrize(
    ("count", "nodes", "said"),
    [
        (2, [Resources(8, memory=32 * GIB)], None),
        (2, [Resources(8, memory=20 * GIB)], "train.zero.stage: 2 would fit"),
        (4, [Resources(8, memory=20 * GIB)], "train.zero.stage: 3 would fit"),
        (8, [Resources(8, memory=20 * GIB)], "a worker needs about 12.0 GiB; the largest node has 20.0 GiB, all have 20.0 GiB"),
        (2, [Resources(8, memory=10 * GIB)] * 4, "train.zero.stage: 2 would fit"),
    ],
)
def test_memory_that_is_not_there(count, nodes, said):
    found = plan.shortage(BY_STAGE, 1, WorkersSpec(count=count), nodes)
    assert (found is None) if said is None else (said in found)


def test_memory_of_gpus_is_not_judged():
    assert plan.shortage(BY_STAGE, 0, WorkersSpec(gpu=1), [Resources(8, 1, memory=GIB)]) is None
