"""What the search decides by itself, without a cluster."""

import random
from types import SimpleNamespace

import pytest

from lc_ray import spec
from lc_ray.storage import StoragePath, names_in
from lc_ray.train.segment import CHECKPOINTS, SegmentResult
from lc_ray.tune import population
from lc_ray.tune.population import Pointer, Search, _InStep, _same

JOB = {
    "model": {"base": "b"},
    "data": {"train": "t.csv", "inputs": [{"column": "text"}], "target": "label"},
    "train": {"segments": 3},
    "prune": {"parameters": 0.6, "start": 0.3},
    "search": {"population": 2, "genes": {"prune.parameters": {"uniform": [0.59, 0.61]}}},
}


class Trial(SimpleNamespace):
    __hash__ = object.__hash__


def donors(seed, time, order=1):
    """Who the members 0 to 7 of a population of 16 inherit from, if 8 to 15 are the best."""
    step = _InStep("training_iteration", "accuracy", "max", 1, custom_explore_fn=_same, quantile_fraction=0.5, synch=True, seed=seed)
    members = [Trial(trial_id=f"abc_{n:05d}") for n in range(16)]
    for m in members:
        step._trial_state[m] = SimpleNamespace(last_train_time=time, last_checkpoint="kept")
    found = {}
    step._exploit = lambda controller, heir, donor: found.update({heir.trial_id: donor.trial_id})
    for heir in members[:8][::order]:
        step._checkpoint_or_exploit(heir, None, members[8:][::order], members[:8])
    return [int(found[m.trial_id][-2:]) for m in members[:8]]


def test_donors_are_drawn_by_seed_member_and_time_alone():
    random.seed(1)
    drawn = donors(seed=7, time=1)
    random.seed(2)
    assert donors(seed=7, time=1, order=-1) == drawn
    assert len(set(drawn)) > 2
    assert set(drawn) <= set(range(8, 16))
    assert donors(seed=7, time=2) != drawn != donors(seed=8, time=1)


def test_an_heir_prunes_on_from_what_its_donor_lost(monkeypatch):
    trained = []

    def train(segment):
        trained.append(segment)
        return SegmentResult(segment.key, segment.number, segment.member, segment.parent, "dense", segment.pruned, {}, [], {}, None)

    monkeypatch.setattr(population.ray, "get", lambda result: result)
    groups = SimpleNamespace(train=SimpleNamespace(remote=train))
    search = Search(spec.parse(JOB), StoragePath("/prepared/key"), 100, StoragePath("/store"), groups, lambda event: None)
    donor = Pointer(1, ("a", "b"), "a", 0.3, {"prune.parameters": 0.3})
    _, pointer = search.advance(donor, member=0)
    (segment,) = trained
    assert (segment.number, segment.parent, segment.dense, segment.removed) == (2, "b", "a", 0.3)
    assert segment.prunes
    assert pointer.pruned == segment.pruned == pytest.approx(pointer.genes["prune.parameters"])


def test_all_workers_and_members_can_wait_for_one_another(monkeypatch):
    """Each in a call to the same actor, of which Ray has 1,000 at a time unless it is told otherwise."""
    given = {}

    def remote(**options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(population.runtime, "beside", dict)
    monkeypatch.setattr(population.ray, "remote", remote)
    job = spec.parse(JOB | {"train": JOB["train"] | {"workers": {"count": 8}}})
    with pytest.raises(KeyboardInterrupt):
        population.search(job, StoragePath("/prepared/key"), 100, StoragePath("/store"), 125, "accuracy", lambda event: None)
    assert given["max_concurrency"] > 8 * 125 + 2


def test_of_a_search_that_is_over_no_optimizers_state_stays(tmp_path):
    store = StoragePath(str(tmp_path))
    results = [SegmentResult(key, 0, 0, None, key, 0.0, {}, [], {}, kept) for key, kept in (("a", "step-4"), ("b", None))]
    for one in results:
        one.write(store / one.key)
        with (store / one.key / "model" / "model.safetensors").create() as file:
            file.write(b"weights")
    with (store / "a" / CHECKPOINTS / "step-4" / "shard.pt").create() as file:
        file.write(b"state")
    population.forget(results, store)
    assert names_in(tmp_path) == [f"{key}/{file}" for key in "ab" for file in ("model/model.safetensors", "segment.json")]
