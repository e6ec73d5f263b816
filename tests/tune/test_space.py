import math

import pytest

from lc_ray import spec
from lc_ray.errors import SpecError
from lc_ray.spec import SearchSpec
from lc_ray.tune.space import draw, perturb, require

SEARCH = SearchSpec(
    population=4,
    genes={
        "train.learning_rate": {"log_uniform": [1e-5, 1e-3]},
        "prune.parameters": {"uniform": ["30%", "70%"]},
        "train.batch_size": {"choice": [16, 32, 64]},
    },
)


def test_few_members_cover_the_range():
    rates = sorted(math.log10(draw(SEARCH, m, 0)["train.learning_rate"]) for m in range(4))
    strips = [math.floor((r + 5) / 2 * 4) for r in rates]
    assert strips == [0, 1, 2, 3]


def test_the_same_seed_draws_the_same():
    assert draw(SEARCH, 2, 7) == draw(SEARCH, 2, 7) != draw(SEARCH, 2, 8)
    genes = draw(SEARCH, 0, 7)
    assert perturb(SEARCH, genes, 1, 2, 7) == perturb(SEARCH, genes, 1, 2, 7) != perturb(SEARCH, genes, 1, 3, 7)


def test_perturbed_genes_stay_in_range_and_move():
    genes, moved = draw(SEARCH, 0, 0), 0
    for segment in range(200):
        changed = perturb(SEARCH, genes, 0, segment, 0)
        assert 1e-5 <= changed["train.learning_rate"] <= 1e-3
        assert 0.3 <= changed["prune.parameters"] <= 0.7
        assert changed["train.batch_size"] in (16, 32, 64)
        moved += changed != genes
        genes = changed
    assert moved > 190


def test_most_steps_are_by_a_factor():
    genes = {"train.learning_rate": 1e-4, "prune.parameters": 0.5, "train.batch_size": 32}
    ratios = [perturb(SEARCH, genes, m, 1, 0)["train.learning_rate"] / 1e-4 for m in range(200)]
    stepped = [r for r in ratios if min(abs(r - 1.2), abs(r - 1 / 1.2)) < 1e-9]
    assert 0.6 < len(stepped) / 200 < 0.9


def test_genes_become_a_job():
    data = {"train": "t", "inputs": [{"column": "x"}], "target": "y"}
    job = spec.parse({"model": {"base": "b"}, "data": data, "train": {"segments": 2}, "prune": {}})
    changed = job.set({"train.learning_rate": 3e-4, "prune.parameters": 0.4})
    assert (changed.train.learning_rate, changed.prune.parameters) == (3e-4, 0.4)
    with pytest.raises(SpecError, match="do not divide"):
        job.set({"train.workers.count": 2}).set({"train.batch_size": 15})


@pytest.mark.parametrize(
    ("path", "how", "said"),
    [
        ("train.learning_rate", {"choice": [1e-4, "high"]}, r"train\.learning_rate: high can't be: train\.learning_rate: .*valid number"),
        ("train.batch_size", {"choice": [16, 15]}, "15 can't be: job: train.batch_size: 15 rows do not divide among 2 workers"),
        ("train.batch_size", {"uniform": [16, 64]}, "a whole number"),
        ("train.warmup", {"uniform": ["0%", "150%"]}, "1.5 can't be"),
        ("train.segments", {"choice": [1, 2]}, "the same for all members"),
        ("model.base", {"choice": ["b", "c"]}, "the same for all members"),
        ("data.rows", {"choice": [10, 20]}, "the same for all members"),
    ],
)
def test_genes_that_can_not_be_are_told_before_anything_starts(path, how, said):
    data = {"train": "t", "inputs": [{"column": "x"}], "target": "y"}
    job = spec.parse({"model": {"base": "b"}, "data": data, "train": {"workers": {"count": 2}}, "search": {"genes": {path: how}}})
    with pytest.raises(SpecError, match=said):
        require(job)


def test_genes_that_can_be():
    genes = {**SEARCH.genes, "prune.end": {"uniform": [0.5, 0.9]}, "model.dropout": {"uniform": [0, "95%"]}}
    data = {"train": "t", "inputs": [{"column": "x"}], "target": "y"}
    require(spec.parse({"model": {"base": "b"}, "data": data, "train": {"segments": 2}, "prune": {}, "search": {"genes": genes}}))
    for together in (
        {"prune.start": {"choice": [0.2, 0.3]}, "prune.end": {"uniform": [0.35, 0.45]}},
        {"train.batch_size": {"choice": [12, 24]}, "train.accumulate": {"choice": [1, 3]}},
    ):
        require(spec.parse({"model": {"base": "b"}, "data": data, "train": {"segments": 2}, "prune": {}, "search": {"genes": together}}))
