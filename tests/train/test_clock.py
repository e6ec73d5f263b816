import time

import pytest

from lc_ray.train.clock import Clock


def test_parts_add_up_to_the_total():
    clock = Clock()
    with clock("data"):
        time.sleep(0.02)
    with clock("compute"):
        time.sleep(0.03)
    clock.move(0.01, "compute", "communication")
    seconds = clock.total()
    assert seconds["communication"] == 0.01
    assert seconds["data"] >= 0.02
    assert sum(v for k, v in seconds.items() if k != "total") == pytest.approx(seconds["total"])


def test_no_more_is_moved_than_there_is():
    clock = Clock()
    clock.move(5, "compute", "communication")
    assert clock.seconds["compute"] == 0


def test_time_counts_when_the_block_fails():
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock("data"):
        1 / 0  # noqa: B018
    assert clock.seconds["data"] > 0
