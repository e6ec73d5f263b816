import pytest

from lc_ray.evaluate.gate import judge
from lc_ray.spec import AcceptSpec

BASE = {"metrics": {"accuracy": 0.90}, "cost": {"throughput": 100.0, "bytes": 100.0}}


def final(accuracy, throughput):
    return {"metrics": {"accuracy": accuracy}, "cost": {"throughput": throughput, "bytes": 50.0}}


@pytest.mark.parametrize(
    ("accuracy", "throughput", "passed", "reasons"),
    [
        (0.89, 150, True, []),
        (0.95, 500, True, []),
        (0.88, 500, False, ["accuracy dropped by 2.00 points"]),
        (0.90, 140, False, ["1.4"]),
        (0.80, 90, False, ["accuracy dropped", "throughput"]),
        (float("nan"), 500, False, ["accuracy is not a number"]),
    ],
)
def test_the_gate(accuracy, throughput, passed, reasons):
    verdict = judge(AcceptSpec(max_drop=0.01, min_speedup=1.5), "accuracy", BASE, final(accuracy, throughput))
    assert verdict["passed"] is passed
    assert len(verdict["reasons"]) == len(reasons)
    assert all(part in reason for part, reason in zip(reasons, verdict["reasons"], strict=True))


def test_a_model_that_is_smaller_but_not_faster_is_refused():
    small = {"metrics": {"accuracy": 0.90}, "cost": {"throughput": 100.0, "bytes": 1.0}}
    verdict = judge(AcceptSpec(), "accuracy", BASE, small)
    assert not verdict["passed"]
    assert "smaller but not fast enough" in verdict["reasons"][0]
