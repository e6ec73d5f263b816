"""What Vertex AI asks of a container, at the paths that it gives in AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE; none of it elsewhere.

    GET  AIP_HEALTH_ROUTE     200, without a key
    POST AIP_PREDICT_ROUTE    {"instances": [...]}, and parameters as native.py has them → {"predictions": [...]}
"""

from __future__ import annotations

from lc_ray.errors import ServeError
from lc_ray.serve import openapi
from lc_ray.serve.endpoint import Models
from lc_ray.serve.http import JSONResponse, Request, Response, Route, instances_of, need, read_object
from lc_ray.serve.openapi import JSON, Operation

HEALTH, PREDICT = "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"
SETTINGS = (HEALTH, PREDICT)


def public(models: Models) -> list[str]:
    """The health route, if there is one."""
    return [models.settings[HEALTH]] if HEALTH in models.settings else []


def routes(models: Models) -> list[Route]:
    """The two operations.

    Raises:
        ServeError: a path that is none.
    """
    for name in SETTINGS:
        path = models.settings.get(name, "/")
        if not path.startswith("/") or {"{", "}", "?", "#"} & set(path):
            raise ServeError("not a path", f"{name}={path}", "give a path that begins with /")

    async def health(request: Request) -> Response:
        need(models.alive)
        return JSONResponse({"status": "ready"})

    async def predict(request: Request) -> Response:
        asked = instances_of(await read_object(request, models.spec.max_body))
        return JSONResponse({"predictions": await models.choose().predict(*asked)})

    found = []
    if HEALTH in models.settings:
        found.append(Route(models.settings[HEALTH], health))
    if PREDICT in models.settings:
        found.append(Route(models.settings[PREDICT], predict, methods=["POST"]))
    return found


def describe(models: Models) -> list[Operation]:
    """The two operations."""
    endpoints = [models.main(name) for name in models.names()]
    found = []
    if HEALTH in models.settings:
        ready = openapi.fields(status={"const": "ready"})
        found.append(Operation("get", models.settings[HEALTH], "Whether all models can answer", {JSON: ready}, errors=(503,)))
    if PREDICT in models.settings:
        answers = openapi.fields(predictions=openapi.predictions(endpoints)["properties"]["predictions"])
        takes = openapi.instances(endpoints, models.spec.max_instances)
        found.append(Operation("post", models.settings[PREDICT], "Answers of the model", {JSON: answers}, {JSON: takes}))
    return found
