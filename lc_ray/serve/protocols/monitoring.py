"""What is watched, of all replicas, whichever of them is asked.

    GET /metrics                  for Prometheus; needs a key like all else (`authorization: {credentials_file: ...}` of its scrape job)
    GET /v1/models/NAME/drift     how far the last rows are from those of training, by version and feature

    {"model": NAME, "versions": {DIGEST: {"question.tokens": {"psi": 0.03, "rows": 800, "needed": 500, "bins": [...]}, ...}}}

`psi` is null until as many rows as needed were seen. A version whose artifact has no statistics has no features, and none that were measured of
fewer than 100 rows.
"""

from __future__ import annotations

from typing import Any

from prometheus_client.exposition import choose_encoder

from lc_ray.serve import drift as drifts
from lc_ray.serve import openapi
from lc_ray.serve.endpoint import Endpoint, Models
from lc_ray.serve.http import JSONResponse, Request, Response, Route
from lc_ray.serve.metrics import Replicas
from lc_ray.serve.openapi import JSON, TEXT, Operation, Schema

PUBLIC = ()
UNLIMITED = ("/metrics",)


def routes(models: Models) -> list[Route]:
    """The two operations."""

    async def metrics(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(Replicas(await models.everywhere("metrics"))), headers={"content-type": kind})

    async def drift(request: Request) -> Response:
        name = request.path_params["name"]
        known = models.versions(name)
        counted = list((await models.everywhere("drift", name)).values())
        return JSONResponse({"model": name, "versions": {one.version: _drift(one, counted) for one in known}})

    return [Route("/metrics", metrics), Route("/v1/models/{name:name}/drift", drift)]


def describe(models: Models) -> list[Operation]:
    """The operations, that on drift for each model."""
    bins = openapi.array(openapi.fields(bin=TEXT, training={"type": "integer"}, now={"type": "integer"}))
    feature = openapi.fields(psi={"type": ["number", "null"]}, rows={"type": "integer"}, needed={"type": "integer"}, bins=bins)
    version: Schema = {"type": "object", "additionalProperties": feature}
    found = [Operation("get", "/metrics", "Metrics of all replicas, for Prometheus", {"text/plain": TEXT})]
    for name in models.names():
        told = openapi.fields(model={"const": name}, versions={"type": "object", "additionalProperties": version})
        found.append(Operation("get", f"/v1/models/{name}/drift", f"How far what {name} is asked is from its training rows", {JSON: told}))
    return found


def _drift(endpoint: Endpoint, replicas: list[dict[str, dict[str, list[int]]]]) -> dict[str, Any]:
    """A version's features, with the counts of all replicas that have it."""
    found = {}
    for name, feature in endpoint.drift.features.items():
        if counts := [of[endpoint.version][name] for of in replicas if endpoint.version in of]:  # none have it if it is replaced just now
            found[name] = drifts.describe(feature, [sum(bins) for bins in zip(*counts, strict=True)])
    return found
