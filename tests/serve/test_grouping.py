import itertools

import pytest

from lc_ray.serve.grouping import Grouping


@pytest.mark.parametrize(
    ("sizes", "limit", "chosen"),
    [
        ([], 4, []),
        ([5], 4, [0]),
        ([0] * 5, 3, [0, 1, 2]),
        ([8, 8, 8, 8, 8], 3, [0, 1, 2]),
        ([8] * 40, 32, list(range(32))),
        ([10, 128, 12, 128, 9], 4, [0, 2, 4]),  # long rows would pad the short ones
        ([128, 10, 100, 12], 4, [0, 2]),
        ([3, 20], 4, [0, 1]),  # a batch of its own would cost more than the padding
        ([24, 40] * 16, 32, list(range(32))),  # to part them would save a seventh
        ([16, 40] * 16, 32, list(range(0, 32, 2))),  # and here a quarter
        ([40, *[8] * 32, *[40] * 31], 32, [0, *range(33, 64)]),
        ([8, *[40] * 16, *[8] * 15], 32, [0, *range(17, 32)]),
        ([16, 8, 24, 8, 16, 24], 2, [0, 4]),  # of a group that is too large, those nearest in size to the oldest
    ],
)
def test_rows_of_like_size_run_together(sizes, limit, chosen):
    assert Grouping(limit).choose(sizes) == chosen


def test_no_row_is_left_for_ever():
    grouping, waiting, ran = Grouping(4), [9, 300, 8, 290, 10, 40, 44, 8, 9, 41], []
    while waiting:
        chosen = grouping.choose(waiting)
        assert chosen[0] == 0
        assert len(chosen) <= 4
        ran += [waiting[i] for i in chosen]
        waiting = [size for i, size in enumerate(waiting) if i not in chosen]
    assert sorted(ran) == [8, 8, 9, 9, 10, 40, 41, 44, 290, 300]


def runs(grouping, itself):
    """Batches of a machine on which one costs as much as so many tokens, by itself."""
    for rows, size in itertools.islice(itertools.product(range(1, 33), (16, 64, 128)), 96):
        grouping.ran(rows, size, 1e-5 * (itself + rows * size))


@pytest.mark.parametrize("itself", [30.0, 100.0, 2000.0])
def test_what_a_batch_costs_by_itself_is_learned(itself):
    grouping = Grouping(32)
    runs(grouping, itself)
    assert grouping.itself == pytest.approx(itself, rel=0.3)


def test_rows_hardly_part_where_batches_are_dear():
    sizes = [10, 100, 12, 100]
    slow, fast = Grouping(32), Grouping(32)
    runs(slow, 20.0)
    runs(fast, 5000.0)
    assert slow.choose(sizes) == [0, 2]
    assert fast.choose(sizes) == [0, 1, 2, 3]


def test_batches_that_are_all_alike_teach_nothing():
    grouping = Grouping(32)
    for _ in range(100):
        grouping.ran(32, 0, 0.01)
    assert grouping.itself == pytest.approx(64.0)
