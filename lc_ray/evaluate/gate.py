"""The accept gate: smaller is not enough."""

from __future__ import annotations

import math
from typing import Any

from lc_ray.spec import AcceptSpec


def judge(accept: AcceptSpec, objective: str, base: dict[str, Any], final: dict[str, Any]) -> dict[str, Any]:
    """Compare the final model with the dense one.

    Args:
        accept: the job's limits.
        objective: the metric that may not drop.
        base: `metrics` and `cost` of the dense fine-tuned model.
        final: those of the model to be promoted.

    Returns:
        `passed`, `drop` (a fraction), `speedup` (throughput as a multiple), the limits, and the `reasons` it was refused for.
    """
    drop = base["metrics"][objective] - final["metrics"][objective]
    speedup = final["cost"]["throughput"] / base["cost"]["throughput"]
    reasons = []
    if math.isnan(drop):
        reasons.append(f"{objective} is not a number")
    elif drop > accept.max_drop + 1e-9:
        reasons.append(f"{objective} dropped by {100 * drop:.2f} points, more than accept.max_drop ({100 * accept.max_drop:.2f})")
    if speedup < accept.min_speedup:
        smaller = final["cost"]["bytes"] < base["cost"]["bytes"]
        reasons.append(
            f"{'smaller but not fast enough' if smaller else 'not fast enough'}: {speedup:.2f} times the throughput, "
            f"less than accept.min_speedup ({accept.min_speedup:g})"
        )
    limits = {"max_drop": accept.max_drop, "min_speedup": accept.min_speedup}
    return {"passed": not reasons, "drop": drop, "speedup": speedup, **limits, "reasons": reasons}
