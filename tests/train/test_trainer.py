"""Groups of workers, and what a segment that fails is told as, without a cluster: workers are threads."""

import asyncio
import dataclasses
import threading
from types import SimpleNamespace

import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError
from test_segment import segment

from lc_ray.errors import ModelError, SpecError, TrainError
from lc_ray.spec import WorkersSpec
from lc_ray.storage import storage_path
from lc_ray.train import trainer, worker
from lc_ray.train.segment import SegmentResult

NONE = SimpleNamespace(genes={})  # searched
DIED = WorkerHealthCheckFailedError("a health check failed", RayActorError())
KILLED = WorkerHealthCheckFailedError("a health check failed", OutOfMemoryError("1 worker(s) were killed\nTo disable worker killing, set ..."))


def failed(error):
    """As Ray Train tells of a worker's error."""
    return WorkerGroupError(f"[Rank 0]\nTraceback\n{error}", {0: error})


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """groups(count, work, max_failures=0, once=False) → groups whose runs call `work(segment)` of one segment after the other."""
    monkeypatch.setattr(trainer.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))

    def groups(count, work, max_failures=0, once=False, gpu=0):
        told, workers = [], WorkersSpec(count=1, gpu=gpu, max_failures=max_failures)
        made = trainer.WorkerGroups(count, workers, storage_path(tmp_path / "train"), told.append, own=False)
        made.told, made.starts, loop = told, [], asyncio.get_running_loop()

        def fit(options):
            place, seen = options["place"], 0
            made.starts.append(place)
            while given := asyncio.run_coroutine_threadsafe(made.given(place, seen, place), loop).result():
                seen, one = given
                work(one)
                kept, genes = ("step" if one.keeps_optimizer else None), {path: one.spec.get(path) for path in (one.spec.search or NONE).genes}
                SegmentResult(one.key, one.number, one.member, one.parent, one.key, 0.0, {"accuracy": 0.5}, [], {}, kept, genes).write(one.folder)
                asyncio.run_coroutine_threadsafe(made.ended(place, seen), loop).result()
                if once:
                    return

        def made_by(loop, train_loop_config, run_config, **options):
            made.environment = run_config.worker_runtime_env
            return SimpleNamespace(fit=lambda: fit(train_loop_config))

        monkeypatch.setattr(worker, "TorchTrainer", made_by)
        return made

    return groups


@pytest.fixture
def one(tmp_path):
    """one(member) → its first segment."""
    return lambda member=0, **changes: dataclasses.replace(segment(member=member, **changes), store=storage_path(tmp_path / "segments"))


def test_workers_start_once_for_many_segments(groups, one):
    async def run():
        made = groups(2, lambda segment: None)
        keys = [(await made.train(one(member))).key for member in range(3)]
        assert (await made.train(one(1))).key == keys[1], "it is on disk"
        await made.close()
        assert made.starts == [0], "the second group was never needed"
        assert await made.done() == keys
        assert [event["event"] for event in made.told] == ["segment", "segment", "segment", "reused"]

    asyncio.run(run())


def test_workers_that_have_ended_are_started_again(groups, one):
    async def run():
        made = groups(1, lambda segment: None, once=True)
        for member in range(3):
            await made.train(one(member))
        await made.close()
        assert made.starts == [0, 0, 0]
        assert {event["event"] for event in made.told} == {"segment"}

    asyncio.run(run())


def test_all_workers_end_whatever_they_are_at(groups, one, monkeypatch):
    busy, killed = threading.Event(), threading.Event()
    monkeypatch.setattr(trainer.ray, "kill", lambda worker: killed.set())

    def work(segment):
        busy.set()
        killed.wait()
        raise failed(DIED)

    async def run():
        made = groups(1, work, max_failures=2)
        ends = [asyncio.create_task(made.train(one(member))) for member in range(2)]  # the second one waits for the first
        await asyncio.to_thread(busy.wait)
        await made.close()
        for end in ends:
            with pytest.raises(TrainError, match="the search has ended"):
                await end
        assert made.starts == [0], "and are not started again"

    asyncio.run(run())


def test_so_many_train_at_a_time(groups, one):
    busy, most = set(), []

    def work(segment):
        busy.add(segment.member)
        most.append(len(busy))
        threading.Event().wait(0.05)
        busy.remove(segment.member)

    async def run():
        made = groups(2, work)
        await asyncio.gather(*(made.train(one(member)) for member in range(5)))
        await made.close()
        assert max(most) == 2
        assert sorted(made.starts) == [0, 1]

    asyncio.run(run())


def test_who_asks_again_waits_for_the_same(groups, one):
    trained = []

    async def run():
        made = groups(2, lambda segment: (threading.Event().wait(0.2), trained.append(segment.key)))
        first = asyncio.create_task(made.train(one()))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await made.train(one())).key == one().key
        assert len(trained) == 1
        await made.close()

    asyncio.run(run())


def test_a_segment_whose_optimizer_is_gone_is_trained_anew_for_a_further_heir(groups, one):
    genes = {"search": {"genes": {"train.learning_rate": {"uniform": [0.0, 1.0]}}}, "prune": None}
    first = one(**genes, **{"train.learning_rate": 0.25})
    second = dataclasses.replace(one(1, number=1, parent=first.key, **genes, **{"train.learning_rate": 0.5}), dense=first.key)
    third, other = (
        dataclasses.replace(one(m, number=2, parent=second.key, **genes, **{"train.learning_rate": 0.75}), dense=second.key) for m in (0, 1)
    )
    trained = []

    def work(segment):
        trained.append(segment.key)
        with (segment.checkpoints / "step" / "shard").create() as file:
            file.write(b"state")

    async def run():
        made = groups(1, work)
        for each in (first, second, third):
            await made.train(each)
        assert trained == [first.key, second.key, third.key]
        for each in (first, second):
            each.checkpoints.remove()
        await made.train(third)
        assert len(trained) == 3, "it is finished, and asks for no state"
        await made.train(other)
        assert trained[3:] == [first.key, second.key, other.key]
        await made.close()

    asyncio.run(run())


def test_workers_start_again_after_a_failure_and_why_is_told(groups, one):
    errors = [failed(RuntimeError("Connection\nreset by peer")), failed(DIED)]

    def work(segment):
        if errors:
            raise errors.pop(0)

    async def run():
        made = groups(1, work, max_failures=2)
        await made.train(one())
        errors.append(failed(DIED))
        await made.train(one(1))
        await made.close()
        assert made.starts == [0, 0, 0, 0]
        assert [event["reason"] for event in made.told if event["event"] == "restart"] == ["reset by peer", "a worker died", "a worker died"]

    asyncio.run(run())


def test_what_would_fail_again_is_not_tried_again(groups, one):
    errors = [failed(ModelError("no such layer"))]

    def work(segment):
        if errors:
            raise errors.pop()

    async def run():
        made = groups(1, work, max_failures=2)
        with pytest.raises(ModelError, match="no such layer"):
            await made.train(one())
        assert made.told == []
        await made.train(one())
        await made.close()
        assert made.starts == [0, 0], "the next finds other workers"

    asyncio.run(run())


@pytest.fixture
def fails(groups, one):
    """The error that is told of a segment whose worker raises one."""

    def fails(error):
        def work(segment):
            raise failed(error)

        async def run():
            with pytest.raises(TrainError) as found:
                await groups(1, work).train(one())
            return found.value

        return asyncio.run(run())

    return fails


@pytest.mark.parametrize("died", [DIED, KILLED])
def test_a_worker_that_died_is_told_without_rays_paragraph(fails, died):
    error = fails(died)
    assert error.what == "a worker died, as it does when its machine runs out of memory"
    assert "train.accumulate" in error.fix


def test_an_error_of_the_code_is_kept_in_full(fails):
    error = fails(ZeroDivisionError("division by zero"))
    assert error.what == "training failed: division by zero"
    assert "Traceback" in storage_path(error.fix.split()[-1]).read_text()


def test_storage_that_can_not_be_written_any_more_is_told_of(fails, monkeypatch):
    def refused(*_):
        raise OSError("ACCESS_DENIED")

    monkeypatch.setattr(trainer.StoragePath, "write_text", refused)
    error = fails(OSError("ACCESS_DENIED"))
    assert error.what == "training failed: ACCESS_DENIED"
    assert "nothing can be written to `storage`" in error.fix


def test_an_objective_that_the_task_does_not_measure_ends_the_search(groups, one):
    trained, search = [], {"population": 3, "objective": "auc", "genes": {"train.learning_rate": {"uniform": [0.1, 0.2]}}}

    async def run():
        made = groups(1, trained.append)
        found = await asyncio.gather(*(made.train(one(member, search=search)) for member in range(3)), return_exceptions=True)
        await made.close()
        assert [type(error) for error in found] == [SpecError] * 3
        assert "no metric 'auc'" in str(found[0])
        assert "use one of accuracy;" in str(found[0])
        assert len(trained) == 1, "no other has been trained in vain"

    asyncio.run(run())


@pytest.mark.parametrize("kind", [worker.TorchTrainer, worker._OwnTrainer])
def test_workers_of_an_own_ray_are_not_given_up_for_another_rays_word(kind):
    callbacks = kind(lambda: None)._create_default_callbacks()
    assert (PlacementGroupCleanerCallback in map(type, callbacks)) == (kind is worker.TorchTrainer)


@pytest.mark.parametrize(("gpu", "seen"), [(0, {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}), (1, {})])
def test_workers_see_gpus_only_if_they_have_asked_for_some(groups, one, gpu, seen):
    async def run():
        made = groups(1, lambda segment: None, gpu=gpu)
        await made.train(one())
        await made.close()
        assert made.environment == seen

    asyncio.run(run())


def test_a_gpu_that_is_too_small_is_told_and_not_tried_again(one, monkeypatch):
    from lc_ray.train import loop

    said = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB of which 1.20 GiB is free. Including non-PyTorch "
        "memory, this process has 13.37 GiB memory in use. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
    )

    def train_segment(segment, post):
        raise torch.OutOfMemoryError(said)

    monkeypatch.setattr(loop, "train_segment", train_segment)
    monkeypatch.setattr(trainer.ray, "get", lambda given: given)
    monkeypatch.setattr(trainer.ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    with pytest.raises(TrainError) as found:
        worker._work({"groups": SimpleNamespace(given=SimpleNamespace(remote=lambda *_: (1, one()))), "place": 0, "post": print})
    assert found.value.what.endswith("GPU 0 has a total capacity of 14.58 GiB of which 1.20 GiB is free")
    assert "train.accumulate" in found.value.fix
