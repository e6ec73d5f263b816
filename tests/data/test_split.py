"""Which rows are held out, decided on their orders alone."""

import numpy as np
import pytest

from lc_ray.data.split import cut, stratified
from lc_ray.spec import DataSpec

ORDER = np.sort(np.random.default_rng(0).integers(0, 2**63, 1000))


def data(validation, **values):
    return DataSpec(train="a.csv", inputs=[{"column": "text"}], target="label", validation=validation, **values)


@pytest.mark.parametrize(("validation", "limited", "rows"), [("30 rows", False, 30), (0.25, True, 250), ("2000 rows", False, 1000)])
def test_counts_are_kept(validation, limited, rows):
    assert cut(ORDER, data(validation), limited) == rows


def test_a_fraction_of_all_rows_is_a_place_whatever_else_there_is():
    first = cut(ORDER, data(0.25), False)
    assert 200 < first < 300
    fewer = np.sort(ORDER[::3])
    assert set(fewer[: cut(fewer, data(0.25), False)]) == set(ORDER[:first]) & set(fewer)


def test_neither_equal_rows_nor_groups_are_divided():
    assert cut(np.repeat(ORDER, 4), data("30 rows"), False) == 32
    groups = (np.arange(100) // 10 << 32) + np.arange(100)
    assert cut(groups, data("31 rows", split="camera"), False) == 40


def test_every_target_gives_its_part():
    targets = ["a"] * 900 + ["b"] * 100
    held = stratified(ORDER, targets, data(0.1, stratify=True))
    assert (held[:900].sum(), held[900:].sum()) == (90, 10)
