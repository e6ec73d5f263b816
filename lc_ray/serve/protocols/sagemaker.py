"""What SageMaker asks of a container.

    GET  /ping           200, without a key
    POST /invocations    application/json as the native protocol has it, application/jsonlines, a form, text/csv, text/plain, image/* (or
                         application/x-image) or audio/*
                         → {"predictions": [...], "model": NAME, "version": DIGEST}, or a prediction on each line as application/jsonlines

JSON lines, as batch transform sends them, have an instance each; they are answered so, as is all else where `Accept` asks for it. A body may have
`serve.max_instances` of them, so that batch transform of short texts needs its strategy SingleRecord. Text, a picture or a sound is the one column
of its kind. A CSV file's first row names its columns; without such a row they are the model's, in their order. Of several models
`X-Amzn-SageMaker-Target-Model` names one. A body may have SageMaker's 6 MiB, more where `serve.max_body` is more.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from lc_ray.serve import openapi
from lc_ray.serve.endpoint import Endpoint, Models
from lc_ray.serve.forms import charset, read_request
from lc_ray.serve.http import HttpError, JSONResponse, Request, Response, Route, instances_of, loads, need, read_body
from lc_ray.serve.openapi import FORM, JSON, TEXT, Operation

PUBLIC = ("/ping",)
_TARGET = "X-Amzn-SageMaker-Target-Model"
_LARGEST = 6 * 2**20
_LINES = "application/jsonlines"
_PICTURE = "application/x-image"  # of any format, as SageMaker's own algorithms and its examples have it
_ANY = ("*/*", "application/*")
_TEXTS = ("text", "words", "chat")  # modalities of which a text is a value
csv.field_size_limit(2**31 - 1)  # the body has a limit


def routes(models: Models) -> list[Route]:
    """The two operations."""
    most = max(models.spec.max_body, _LARGEST)

    async def ping(request: Request) -> Response:
        need(models.alive)
        return JSONResponse({"status": "ready"})

    async def invocations(request: Request) -> Response:
        lines = _answers_in_lines(request)
        endpoint = models.choose(request.headers.get(_TARGET))
        found = await endpoint.predict(*await _asked(request, endpoint, most))
        if lines:
            return Response(b"".join(line for one in found for line in (JSONResponse(one).body, b"\n")), media_type=_LINES)
        return JSONResponse({"predictions": found, "model": endpoint.name, "version": endpoint.version})

    return [Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])]


def describe(models: Models) -> list[Operation]:
    """The two operations."""
    endpoints = [models.main(name) for name in models.names()]
    forms = openapi.one_of(f"{endpoint.name}.Form" for endpoint in endpoints)
    media = sorted({f"{medium}/*" for endpoint in endpoints for medium in endpoint.media.values()})
    rows = openapi.instances(endpoints, models.spec.max_instances)
    takes = {JSON: rows, FORM: forms, _LINES: TEXT, "text/csv": TEXT, "text/plain": TEXT} | {kind: {} for kind in media}
    model = openapi.parameter("header", _TARGET, {"enum": models.names()}, "which model, if there are several")
    answers = {JSON: openapi.predictions(endpoints), _LINES: TEXT}
    return [
        Operation("get", "/ping", "Whether all models can answer", {JSON: openapi.fields(status={"const": "ready"})}, errors=(503,)),
        Operation("post", "/invocations", "Answers of a model", answers, takes, [model], (404, 406, 415)),
    ]


def _answers_in_lines(request: Request) -> bool:
    """Whether answers are to be lines of JSON.

    Raises:
        HttpError: 406, they are to be something else than JSON.
    """
    accepted = [_kind(part) for part in request.headers.get("accept", "").split(",") if part.strip()] or [*_ANY]
    taken = [one for one in accepted if one in (*_ANY, JSON, _LINES)]
    if not taken:
        raise HttpError(406, "not_acceptable", f"answers are {JSON} or {_LINES}", "accept")
    return taken[0] == _LINES or (taken[0] in _ANY and _kind(request.headers.get("content-type", "")) == _LINES)


def _kind(told: str) -> str:
    """A media type without its parameters."""
    return told.partition(";")[0].strip().lower()


async def _asked(request: Request, endpoint: Endpoint, most: int) -> tuple[Any, Any]:
    """The body's rows, and parameters if it has any.

    Raises:
        HttpError: 413, it is larger than `most` bytes; 415, the model takes nothing of its type or charset; 400, it is not what its type says.
    """
    told = request.headers.get("content-type", JSON)
    kind = _kind(told)
    if kind in (JSON, FORM, ""):
        return instances_of(await read_request(request, most, endpoint))
    body = await read_body(request, most)
    if kind == _LINES:
        return _instances(body), None
    if kind.startswith("text/") and charset(told) == "iso-8859-1":
        body = body.decode("iso-8859-1").encode()
    if kind == "text/csv":
        return _rows(body, list(endpoint.predictor.columns)), None
    alone = _alone(endpoint)
    column = alone.get(kind if kind in alone else "image/*" if kind == _PICTURE else f"{kind.partition('/')[0]}/*")
    if column is None:
        taken = ", ".join([JSON, _LINES, FORM, "text/csv", *alone])
        raise HttpError(415, "unsupported_type", f"'{endpoint.name}' does not take {kind} but {taken}", "content-type")
    return [{column: body}], None


def _alone(endpoint: Endpoint) -> dict[str, str]:
    """The column whose value a whole body is, by the body's type: the only one of its kind."""
    found: dict[str, list[str]] = {}
    for column, modality in endpoint.predictor.columns.items():
        if column in endpoint.media:
            found.setdefault(f"{endpoint.media[column]}/*", []).append(column)
        elif modality.spec.modality in _TEXTS:
            found.setdefault("text/plain", []).append(column)
    return {kind: columns[0] for kind, columns in found.items() if len(columns) == 1}


def _instances(body: bytes) -> list[Any]:
    """The instances of lines of JSON."""
    found = []
    for number, line in enumerate(body.rstrip().splitlines()):
        try:
            found.append(loads(line))
        except ValueError as error:
            raise HttpError(400, "malformed_json", f"line {number + 1} is not JSON: {error}", f"instances.{number}") from None
    return found


def _rows(body: bytes, columns: list[str]) -> list[dict[str, Any]]:
    table: list[list[str]] = []
    blank = 0  # the first blank line, after which there may be none but such
    try:
        reader = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            if not row:
                blank = blank or reader.line_num
            elif blank:
                raise HttpError(400, "malformed_csv", f"line {blank} is blank")
            else:
                table.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise HttpError(400, "malformed_csv", f"the body is not CSV in UTF-8: {error}") from None
    if table and set(table[0]) <= set(columns):
        columns = table.pop(0)
    for number, row in enumerate(table):
        if len(row) != len(columns):
            raise HttpError(400, "malformed_csv", f"{len(row)} cells; expected {len(columns)}: {', '.join(columns)}", f"instances.{number}")
    return [dict(zip(columns, row, strict=True)) for row in table]
