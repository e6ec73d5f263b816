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


@pytest.mark.parametrize(("validation", "rows"), [(0.01, 10), (0.99, 30), ("5 rows", 10), ("35 rows", 30), ("40 rows", 40)])
def test_few_groups_are_on_both_sides_where_a_part_is_asked_for(validation, rows):
    groups = (np.repeat([1, 2, 3, 4], 10) << 59) + np.arange(40)
    assert cut(groups, data(validation, split="speaker"), False) == rows
    assert cut(ORDER[:2], data(0.01), False) == cut(ORDER[:2], data(0.99), False) == 1
    assert cut(groups[:10], data(validation, split="speaker"), False) in (0, 10), "one group can't be divided"


def test_targets_of_which_each_has_too_few_rows_give_some_all_the_same():
    held = stratified(ORDER[:12], list("abcabcabcabc"), data(0.1, stratify=True))
    assert held.sum() == 1


def test_every_target_gives_its_part():
    targets = ["a"] * 900 + ["b"] * 100
    held = stratified(ORDER, targets, data(0.1, stratify=True))
    assert (held[:900].sum(), held[900:].sum()) == (90, 10)
