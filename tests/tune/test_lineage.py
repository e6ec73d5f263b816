from lc_ray.train.segment import SegmentResult
from lc_ray.tune import lineage


def result(key, number, member, parent, accuracy):
    return SegmentResult(key, number, member, parent, key, 0.0, {"accuracy": accuracy}, [], {}, None)


RESULTS = [
    result("b1", 1, 1, "a0", 0.8),
    result("a0", 0, 0, None, 0.7),
    result("b0", 0, 1, None, 0.9),
    result("a1", 1, 0, "a0", 0.75),
]


def test_the_winner_is_the_best_that_finished():
    assert lineage.best(RESULTS, "accuracy").key == "b1"


def test_of_equals_the_first_member_wins_whichever_ended_first():
    equals = [result("a1", 1, 0, "a0", 0.8), result("b1", 1, 1, "a0", 0.8)]
    assert {lineage.best(order, "accuracy").key for order in (equals, equals[::-1])} == {"a1"}


def test_the_table_tells_exploits():
    table = lineage.table(RESULTS)
    assert [(r["segment"], r["member"], r["inherited"]) for r in table] == [(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, True)]
    assert "number" not in table[0]
