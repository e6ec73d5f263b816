"""The KServe v1 protocol, which Vertex AI speaks too, and the health routes.

    POST /v1/models/NAME:predict   {"instances": [...]} → {"predictions": [...], "model": NAME, "version": DIGEST}
    GET  /v1/models                {"models": [NAME]}
    GET  /v1/models/NAME           what it takes and what it answers
    GET  /healthz, /readyz         200, without a key

An instance is an object by column; with one column, its value alone will do.
"""

from __future__ import annotations

from lc_ray.serve.endpoint import Endpoint
from lc_ray.serve.http import HttpError, Request, Response, Route


def routes(endpoint: Endpoint) -> list[Route]:
    """The operations on a served model."""

    def known(request: Request) -> None:
        if request.params["name"] != endpoint.name:
            raise HttpError(404, "unknown_model", f"no model '{request.params['name']}' is served here; served: {endpoint.name}")

    async def predict(request: Request) -> Response:
        known(request)
        content = request.json()
        if "instances" not in content:
            raise HttpError(400, "malformed_request", 'expected {"instances": [...]}', "instances")
        if content.get("parameters"):
            raise HttpError(400, "unknown_parameter", "this model takes no parameters", "parameters")
        return Response({"predictions": await endpoint.predict(content["instances"]), "model": endpoint.name, "version": endpoint.version})

    async def models(request: Request) -> Response:
        return Response({"models": [endpoint.name]})

    async def model(request: Request) -> Response:
        known(request)
        manifest = endpoint.predictor.artifact.manifest
        about = {"name": endpoint.name, "version": endpoint.version, "ready": endpoint.batcher.alive}
        return Response(about | {"inputs": manifest.inputs, "task": manifest.task, "engine": manifest.engine, "metrics": manifest.metrics})

    async def alive(request: Request) -> Response:
        return Response({"status": "alive"})

    async def ready(request: Request) -> Response:
        if not endpoint.batcher.alive:
            raise HttpError(503, "not_ready", "the model can't run")
        return Response({"status": "ready"})

    return [
        Route("POST", "/v1/models/{name}:predict", predict),
        Route("GET", "/v1/models", models),
        Route("GET", "/v1/models/{name}", model),
        Route("GET", "/healthz", alive, public=True),
        Route("GET", "/readyz", ready, public=True),
    ]
