"""The Open Inference Protocol, version 2, which KServe and Triton speak, with the binary tensor data extension.

    GET  /v2                                                 name, version, extensions
    GET  /v2/health/live, /v2/health/ready                   200, without a key
    GET  /v2/models/NAME[/versions/VERSION]                  what it takes and what it answers
    GET  /v2/models/NAME[/versions/VERSION]/ready            200 or 503
    POST /v2/models/NAME[/versions/VERSION]/infer            {"inputs": [tensors]} → {"outputs": [tensors]}

A column is a tensor of shape [n] or [n, 1]: BYTES, or numbers where the column takes them. A column that rows may lack is left out, or has
empty bytes or NaN in their place. Pictures and sounds are a file's bytes, or base64 where the tensor is in JSON. Outputs are `answer`, each
row's as JSON, and beside it what the task's answers have as tensors: `label` and `probabilities`, `value`, `text`. Language models take
the parameters of native.py.
"""

from __future__ import annotations

import json
from typing import Any

from lc_ray import __version__
from lc_ray.serve import openapi
from lc_ray.serve.endpoint import Endpoint, Models
from lc_ray.serve.http import HttpError, JSONResponse, Request, Response, Route, need, parse_object, read_body
from lc_ray.serve.openapi import JSON, TEXT, Operation, Schema
from lc_ray.serve.protocols import _tensors
from lc_ray.serve.protocols._tensors import Tensor, malformed

PUBLIC = ("/v2/health/live", "/v2/health/ready")
ERRORS = {"/v2": lambda content: _told(content["error"])}
ERROR = openapi.fields("where", error=TEXT, code=TEXT, where=TEXT)
LENGTH = "inference-header-content-length"
_OWN = {"binary_data_output", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end"}  # parameters of the protocol, not of models
_NUMBERS = {"tabular": "FP64", "seed": "INT64"}  # modalities whose cells are numbers; of all others they are BYTES


def routes(models: Models) -> list[Route]:
    """The operations on the server and on its models."""

    async def server(request: Request) -> Response:
        return JSONResponse({"name": "lc_ray", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        need(models.alive)
        return JSONResponse({"ready": True})

    async def model(request: Request) -> Response:
        return JSONResponse(metadata(_about(models, request), models))

    async def model_ready(request: Request) -> Response:
        endpoint = _about(models, request)
        need(endpoint.alive)
        return JSONResponse({"name": endpoint.name, "ready": True})

    async def infer(request: Request) -> Response:
        endpoint = _chosen(models, request)
        content, binary = _split(await read_body(request, models.spec.max_body), request.headers.get(LENGTH))
        if not _tensors.is_text(content.get("id", "")):
            raise malformed("the id is a text", "id")
        rows = instances(_tensors.read(content.get("inputs"), models.spec.max_instances, binary), endpoint)
        try:
            answers = await endpoint.predict(rows, _parameters(content) if endpoint.generator else None)
        except HttpError as error:
            raise _renamed(error) from None
        return _response(endpoint, content, outputs(answers, endpoint.sample))

    found = [Route("/v2", server), Route("/v2/health/live", live), Route("/v2/health/ready", ready)]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [Route(path, model), Route(f"{path}/ready", model_ready), Route(f"{path}/infer", infer, methods=["POST"])]
    return found


def describe(models: Models) -> list[Operation]:
    """The operations, those on models for each model and for its versions."""
    server = openapi.fields(name=TEXT, version=TEXT, extensions=openapi.array(TEXT))
    found = [
        Operation("get", "/v2", "What serves here", {JSON: server}),
        Operation("get", "/v2/health/live", "Whether the endpoint runs", {JSON: openapi.fields(live={"const": True})}),
        Operation("get", "/v2/health/ready", "Whether all models can answer", {JSON: openapi.fields(ready={"const": True})}, errors=(503,)),
    ]
    for name in models.names():
        endpoint, versions = models.main(name), [known.version for known in models.versions(name)]
        version = openapi.parameter("path", "version", {"enum": versions}, "digest of an artifact")
        found += _described(f"/v2/models/{name}", endpoint, []) + _described(f"/v2/models/{name}/versions/{{version}}", endpoint, [version])
    return found


def _described(path: str, endpoint: Endpoint, parameters: list[Schema]) -> list[Operation]:
    """The operations on a model."""
    shape = openapi.array({"type": "integer", "minimum": 0})
    values = openapi.array({"type": ["string", "number", "boolean", "array"]})
    about, parts = {"name": TEXT, "datatype": TEXT, "shape": openapi.array({"type": "integer"})}, {"type": "object"}
    known = openapi.fields(name=TEXT, versions=openapi.array(TEXT), platform=TEXT, inputs=_listed(about), outputs=_listed(about))
    column = {"name": {"enum": list(endpoint.predictor.columns)}, "datatype": {"enum": _tensors.DATATYPES}, "shape": shape}
    given = openapi.array(openapi.fields("data", "parameters", **column, data=values, parameters=parts))
    asked = _listed({"name": {"enum": [tensor.name for tensor in outputs([endpoint.sample], endpoint.sample)]}})
    takes = openapi.fields("id", "outputs", "parameters", id=TEXT, inputs=given | {"minItems": 1}, outputs=asked, parameters=parts)
    made = openapi.array(openapi.fields("data", "parameters", name=TEXT, datatype=TEXT, shape=shape, data=values, parameters=parts))
    answers = {JSON: openapi.fields("id", model_name=TEXT, model_version=TEXT, id=TEXT, outputs=made), "application/octet-stream": {}}
    length = openapi.parameter("header", LENGTH, {"type": "integer"}, "bytes of JSON, if tensors follow it")
    missing = (404,) if parameters else ()
    ready = openapi.fields(name=TEXT, ready={"const": True})
    of = f"a version of {endpoint.name}" if parameters else endpoint.name
    return [
        Operation("get", path, f"What {of} takes and answers", {JSON: known}, parameters=parameters, errors=missing),
        Operation("get", f"{path}/ready", f"Whether {of} can answer", {JSON: ready}, parameters=parameters, errors=(*missing, 503)),
        Operation("post", f"{path}/infer", f"Tensors of {of}", answers, {JSON: takes}, [*parameters, length], missing),
    ]


def _listed(about: dict[str, Schema]) -> Schema:
    return openapi.array(openapi.fields(**about))


def metadata(endpoint: Endpoint, models: Models) -> dict[str, Any]:
    """What a model takes and answers."""
    columns = endpoint.predictor.columns
    made = outputs([endpoint.sample], endpoint.sample)
    return {
        "name": endpoint.name,
        "versions": [known.version for known in models.versions(endpoint.name)],
        "platform": f"lc_ray_{endpoint.predictor.artifact.manifest.engine}",
        "inputs": [{"name": c, "datatype": _NUMBERS.get(m.spec.modality, "BYTES"), "shape": [-1]} for c, m in columns.items()],
        "outputs": [{"name": t.name, "datatype": t.datatype, "shape": [-1, *t.shape[1:]]} for t in made],
    }


def instances(tensors: list[Tensor], endpoint: Endpoint) -> list[dict[str, Any]]:
    """Rows of a request, an object by column.

    Raises:
        HttpError: 400, a tensor of no column, or of another length than the first.
    """
    columns, rows = endpoint.predictor.columns, tensors[0].shape[0] if tensors[0].shape else 0
    found: list[dict[str, Any]] = [{} for _ in range(rows)]
    for tensor in tensors:
        if tensor.name not in columns:
            raise malformed(f"no input '{tensor.name}'; expected {', '.join(columns)}", f"inputs.{tensor.name}")
        if tensor.shape not in ((rows,), (rows, 1)):
            raise malformed(f"expected the shape [{rows}] or [{rows}, 1], got {list(tensor.shape)}", f"inputs.{tensor.name}")
        for row, value in zip(found, tensor.values, strict=True):
            # No picture or sound is ASCII alone, so this is base64, or a URL.
            plain = tensor.name in endpoint.media and isinstance(value, bytes) and value.isascii()
            row[tensor.name] = value.decode("ascii") if plain else value
    return found


def outputs(answers: list[dict[str, Any]], sample: dict[str, Any]) -> list[Tensor]:
    """Tensors of answers.

    Args:
        answers: of a request's rows.
        sample: any answer of the model, whose fields say which tensors there are.
    """
    rows = len(answers)
    found = [Tensor("answer", "BYTES", (rows,), [json.dumps(answer) for answer in answers])]
    for name, value in sample.items():
        values = [answer[name] for answer in answers]
        if name == "probabilities":
            table = [p for row in values for p in row.values()]
            found.append(Tensor(name, "FP64", (rows, len(value)), table, {"labels": json.dumps(list(value))}))
        elif isinstance(value, float):
            found.append(Tensor(name, "FP64", (rows,), values))
        elif isinstance(value, str) and not value.startswith("data:"):
            found.append(Tensor(name, "BYTES", (rows,), values))
    return found


def _told(error: dict[str, str]) -> dict[str, Any]:
    """An error as this protocol has it: a string, without which Triton's client can't show it; beside it what programs read."""
    where = f"{error['where']}: " if error.get("where") else ""
    return {"error": where + error["message"].removeprefix(where), **{name: value for name, value in error.items() if name != "message"}}


def _chosen(models: Models, request: Request) -> Endpoint:
    return models.choose(request.path_params["name"], request.path_params.get("version"))


def _about(models: Models, request: Request) -> Endpoint:
    """The version that a question about a model is on: the one asked for, or the main one, so that the answer stays the same in a canary."""
    return _chosen(models, request) if "version" in request.path_params else models.main(request.path_params["name"])


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """A request's JSON, and the bytes after it."""
    if length is None:
        return parse_object(body), b""
    if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= len(body)):
        raise malformed(f"Inference-Header-Content-Length {length} is more than the body has", "")
    return parse_object(body[: int(length)]), body[int(length) :]


def _renamed(error: HttpError) -> HttpError:
    """An error whose field is told as this protocol has it: instances.3.text → inputs.text.3."""
    about = error.content["error"]
    part, *rest = about.get("where", "").split(".", 2)
    where = ".".join(["inputs", *reversed(rest)]) if part == "instances" else ".".join([part, *rest])
    return HttpError(error.status_code, about["code"], about["message"], where, dict(error.headers or {}))


def _parameters(content: dict[str, Any]) -> Any:
    """A request's parameters for the model, without the protocol's own."""
    given = content.get("parameters")
    return {name: value for name, value in given.items() if name not in _OWN} if isinstance(given, dict) else given


def _response(endpoint: Endpoint, content: dict[str, Any], made: list[Tensor]) -> Response:
    """The outputs that are asked for, as JSON or as bytes after it."""
    by_name = {tensor.name: tensor for tensor in made}
    asked = content.get("outputs")
    if not isinstance(asked, list | None):
        raise malformed("expected a list", "outputs")
    told, binary = [], b""
    for one in asked or [{"name": name} for name in by_name]:
        tensor = by_name.pop(str(one.get("name")), None) if isinstance(one, dict) else None
        if tensor is None:
            raise malformed(f"no such output, or one that is asked for twice; there are {', '.join(t.name for t in made)}", "outputs")
        about: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        parameters = dict(tensor.parameters or {})
        wanted = _tensors.option(one, "binary_data")
        if _tensors.option(content, "binary_data_output") if wanted is None else wanted:
            coded = _tensors.packed(tensor)
            parameters["binary_data_size"] = len(coded)
            binary += coded
        else:
            about["data"] = tensor.values
        told.append(about | ({"parameters": parameters} if parameters else {}))
    head: dict[str, Any] = {"model_name": endpoint.name, "model_version": endpoint.version, "outputs": told}
    if "id" in content:
        head["id"] = content["id"]
    if not binary:
        return JSONResponse(head)
    text = json.dumps(head).encode()
    return Response(text + binary, headers={LENGTH: str(len(text))}, media_type="application/octet-stream")
