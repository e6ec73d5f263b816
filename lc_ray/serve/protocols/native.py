"""The KServe v1 protocol, which Vertex AI speaks too, and the health routes.

    POST /v1/models/NAME[/versions/VERSION]:predict
                                   {"instances": [...], "parameters": {...}} → {"predictions": [...], "model": NAME, "version": DIGEST}
    GET  /v1/models                {"models": [NAME, ...]}, and the same as OpenAI has it
    GET  /v1/models/NAME           what it takes and what it answers, and its versions with their shares of the requests
    GET  /healthz, /readyz         200, without a key

An instance is an object by column; with one column, its value alone will do. A picture or sound is base64, with or without a data URI's
beginning, alone or as {"b64": ...}, or a URL where `serve.urls` allows its host. A multipart form does too, with a field or file per column:

    curl -F photo=@cat.png -F question="how many?" .../v1/models/NAME:predict

Language models take parameters: `max_new_tokens` or `max_tokens`, `temperature`, `top_p`, `seed`, `stop`.
"""

from __future__ import annotations

from typing import Any

from lc_ray.serve import openapi
from lc_ray.serve.endpoint import Endpoint, Models
from lc_ray.serve.forms import read_request
from lc_ray.serve.http import JSONResponse, Request, Response, Route, instances_of, need
from lc_ray.serve.openapi import FORM, JSON, TEXT, Operation

PUBLIC = ("/healthz", "/readyz")
_OF_TRAINING = ("base", "weights", "rate", "augment", "path")  # which tell nothing of requests, and where folders were


def routes(models: Models) -> list[Route]:
    """The operations on served models."""

    async def predict(request: Request) -> Response:
        endpoint = models.choose(request.path_params["name"], request.path_params.get("version"))
        answers = await endpoint.predict(*instances_of(await read_request(request, models.spec.max_body, endpoint)))
        return JSONResponse({"predictions": answers, "model": endpoint.name, "version": endpoint.version})

    async def every(request: Request) -> Response:
        known = [_listed(models.main(name)) for name in models.names()]
        return JSONResponse({"object": "list", "data": known, "models": models.names()})

    async def one(request: Request) -> Response:
        endpoint = models.main(request.path_params["name"])
        manifest = endpoint.predictor.artifact.manifest
        shares = {known.version: share for known, share in models.weights(endpoint.name).items()}
        about = _listed(endpoint) | {"name": endpoint.name, "version": endpoint.version, "versions": shares, "ready": endpoint.alive}
        inputs = [{field: value for field, value in column.items() if field not in _OF_TRAINING} for column in manifest.inputs]
        return JSONResponse(about | {"inputs": inputs, "task": manifest.task, "engine": manifest.engine, "metrics": manifest.metrics})

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        need(models.alive)
        return JSONResponse({"status": "ready"})

    return [
        Route("/v1/models/{name:name}:predict", predict, methods=["POST"]),
        Route("/v1/models/{name:name}/versions/{version:name}:predict", predict, methods=["POST"]),
        Route("/v1/models", every),
        Route("/v1/models/{name:name}", one),
        Route("/healthz", alive),
        Route("/readyz", ready),
    ]


def describe(models: Models) -> list[Operation]:
    """The operations, those on models for each model."""
    listed = openapi.fields(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)
    about: dict[str, Any] = {**listed["properties"], "name": TEXT, "version": TEXT, "ready": {"type": "boolean"}, "task": {"type": "object"}}
    about |= {"inputs": openapi.array({"type": "object"}), "engine": TEXT, "metrics": {"type": "object"}}
    every = openapi.fields(object={"const": "list"}, data=openapi.array(listed), models=openapi.array(TEXT))
    found = [
        Operation("get", "/v1/models", "Which models are served", {JSON: every}),
        Operation("get", "/healthz", "Whether the endpoint runs", {JSON: openapi.fields(status={"const": "alive"})}),
        Operation("get", "/readyz", "Whether all models can answer", {JSON: openapi.fields(status={"const": "ready"})}, errors=(503,)),
    ]
    for endpoint in map(models.main, models.names()):
        path, most = f"/v1/models/{endpoint.name}", models.spec.max_instances
        takes = {JSON: openapi.instances([endpoint], most), FORM: openapi.named(f"{endpoint.name}.Form")}
        answers = {JSON: openapi.predictions([endpoint])}
        version = openapi.parameter("path", "version", {"enum": [known.version for known in models.versions(endpoint.name)]})
        found += [
            Operation("post", f"{path}:predict", f"Answers of {endpoint.name}", answers, takes),
            Operation("post", f"{path}/versions/{{version}}:predict", f"Answers of a version of {endpoint.name}", answers, takes, [version], (404,)),
            Operation("get", path, f"What {endpoint.name} takes and answers", {JSON: openapi.fields(**about)}),
        ]
    return found


def _listed(endpoint: Endpoint) -> dict[str, Any]:
    """A model in OpenAI's form."""
    return {"id": endpoint.name, "object": "model", "created": int(endpoint.created), "owned_by": "lc_ray"}
