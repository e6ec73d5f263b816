"""BentoML around our engine, with its adaptive batching. Run by `bentoml serve`."""

from __future__ import annotations

import os

import bentoml

import lc_ray


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 256})
class Service:
    """One row per request, batched."""

    def __init__(self) -> None:
        self.predictor = lc_ray.load(os.environ["ARTIFACT"], threads=os.cpu_count())

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000, route="/predict")
    def predict(self, instances: list[str]) -> list[dict[str, object]]:
        return self.predictor.predict(instances)
