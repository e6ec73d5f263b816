"""The description of an endpoint in OpenAPI 3.1: what each protocol says of its routes, and the errors that all of them share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lc_ray import __version__
from lc_ray.serve import language
from lc_ray.serve.endpoint import Endpoint, Models, protocols, public

Schema = dict[str, Any]
JSON, FORM = "application/json", "multipart/form-data"
TEXT: Schema = {"type": "string"}
_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"code": TEXT, "message": TEXT, "where": {"type": "string", "description": "the field of the request"}},
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}
_MEANS = {
    400: "the request can't be used",
    401: "no valid key",
    404: "no such model or version",
    406: "no answer of a type that is accepted",
    413: "larger than a request may be, or more instances than it may have",
    415: "the model takes nothing of this type, or the body is compressed in a way that is not known",
    429: "more requests than a key may make",
    500: "the endpoint failed",
    503: "too many requests wait, or a model can't run",
    504: "not answered in time",
}
_LATER = (429, 503)


@dataclass(frozen=True)
class Operation:
    """What one route does.

    Args:
        method: of HTTP, in small letters.
        path: as in the route, with `{name}` for each of the parameters that are in it.
        summary: what it is for.
        answers: schemas of the answer by content type.
        takes: schemas of the body by content type; none if it takes no body.
        parameters: in OpenAPI's form.
        errors: statuses beside those that all routes, or all that take a body, may have.
        schemas: of which the others are made, by name.
    """

    method: str
    path: str
    summary: str
    answers: Mapping[str, Schema]
    takes: Mapping[str, Schema] = field(default_factory=dict)
    parameters: Sequence[Schema] = ()
    errors: Sequence[int] = ()
    schemas: Mapping[str, Schema] = field(default_factory=dict)


def document(models: Models) -> dict[str, Any]:
    """The description of all routes, for the models that are served now."""
    tags: list[Schema] = []
    paths: dict[str, Schema] = {}
    schemas = {"Error": _ERROR, **_models(models)}
    for protocol in protocols():
        tag, told = protocol.__name__.rpartition(".")[2], protocol.describe(models)
        tags += [{"name": tag, "description": (protocol.__doc__ or "").partition("\n")[0]}] if told else []
        schemas |= {f"{tag}.Error": protocol.ERROR} if hasattr(protocol, "ERROR") else {}
        for operation in told:
            schemas |= operation.schemas
            paths.setdefault(operation.path, {})[operation.method] = _operation(operation, tag, protocol, models)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lc_ray", "version": __version__, "description": f"Serves {', '.join(models.names())}."},
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(told: Operation, tag: str, protocol: ModuleType, models: Models) -> dict[str, Any]:
    free = told.path in public(protocol, models)
    limited = models.spec.rate and not free and told.path not in getattr(protocol, "UNLIMITED", ())
    statuses = {*told.errors, 500, 504, *(() if free else (401,)), *((429,) if limited else ())}
    statuses |= {400, 413, 415, 503} if told.takes else set()
    error = named(f"{tag}.Error" if hasattr(protocol, "ERROR") else "Error")
    answers = {"200": {"description": "the answer", "content": _content(told.answers)}}
    made: dict[str, Any] = {
        "operationId": re.sub(r"[^\w.-]+", "_", f"{told.method}{told.path}"),
        "tags": [tag],
        "summary": told.summary,
        "responses": answers | {str(status): _failed(status, error) for status in sorted(statuses)},
    }
    if told.parameters:
        made["parameters"] = list(told.parameters)
    if told.takes:
        made["requestBody"] = {"required": True, "content": _content(told.takes)}
    return made | ({"security": []} if free else {})


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}


def _failed(status: int, error: Schema) -> dict[str, Any]:
    made: dict[str, Any] = {"description": _MEANS[status], "content": _content({JSON: error})}
    if status in _LATER:
        made["headers"] = {"Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer"}}}
    if status == 401:
        made["headers"] = {"WWW-Authenticate": {"schema": {"const": "Bearer"}}}
    return made


def _models(models: Models) -> dict[str, Schema]:
    """Schemas of every model's instances, form and answers, by name."""
    found = {}
    for endpoint in map(models.main, models.names()):
        columns = endpoint.predictor.columns
        needed = [column for column, modality in columns.items() if not modality.spec.optional]
        # A form has files as they are, and all else as text.
        form = {column: {"contentMediaType": f"{endpoint.media[column]}/*"} if column in endpoint.media else TEXT for column in columns}
        row = {"type": "object", "properties": {column: _cell(modality) for column, modality in columns.items()}, "required": needed}
        alone = [modality.SCHEMA for modality in columns.values()] if len(columns) == 1 else []
        found[f"{endpoint.name}.Instance"] = {"anyOf": [row, *alone]} if alone else row
        found[f"{endpoint.name}.Form"] = {"type": "object", "properties": form, "required": needed}
        found[f"{endpoint.name}.Answer"] = endpoint.predictor.task.schema()
    return found


def _cell(modality: Any) -> Schema:
    schema: Schema = modality.SCHEMA
    return {"anyOf": [schema, {"type": "null"}]} if modality.spec.optional else schema


def named(name: str) -> Schema:
    """A schema of `components.schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def one_of(names: Iterable[str]) -> Schema:
    """Any of these schemas of `components.schemas`."""
    found = [named(name) for name in names]
    return found[0] if len(found) == 1 else {"anyOf": found}


def fields(*optional: str, **schemas: Schema) -> Schema:
    """An object that has all of these fields, but for those that are named as optional."""
    return {"type": "object", "properties": schemas, "required": [name for name in schemas if name not in optional]}


def array(items: Schema, most: int | None = None) -> Schema:
    """A list."""
    return {"type": "array", "items": items} | ({} if most is None else {"maxItems": most})


def instances(endpoints: Sequence[Endpoint], most: int) -> Schema:
    """A body of {"instances": [...]}, for a language model with parameters, for one of these models."""
    rows = array(one_of(f"{endpoint.name}.Instance" for endpoint in endpoints), most)
    told = {"parameters": language.Parameters.model_json_schema()} if any(endpoint.generator for endpoint in endpoints) else {}
    return fields("parameters", instances=rows, **told)


def predictions(endpoints: Sequence[Endpoint]) -> Schema:
    """An answer of {"predictions": [...], "model": ..., "version": ...} by one of these models."""
    answers = array(one_of(f"{endpoint.name}.Answer" for endpoint in endpoints))
    return fields(predictions=answers, model={"enum": [endpoint.name for endpoint in endpoints]}, version=TEXT)


def parameter(place: str, name: str, schema: Schema, description: str = "") -> Schema:
    """A parameter in a "path" or "header"."""
    return {"in": place, "name": name, "required": place == "path", "schema": schema} | ({"description": description} if description else {})
