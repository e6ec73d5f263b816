"""Metrics as Prometheus scrapes them.

    GET /metrics    of all replicas, whichever of them is asked; needs a key (`authorization: {credentials_file: ...}` of a scrape job)
"""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder

from lc_ray.serve.endpoint import Models
from lc_ray.serve.http import Request, Response, Route
from lc_ray.serve.metrics import Replicas

PUBLIC = ()
UNLIMITED = ("/metrics",)


def routes(models: Models) -> list[Route]:
    """The one operation."""

    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(Replicas(await models.everywhere("metrics"))), headers={"content-type": kind})

    return [Route("/metrics", metrics)]
