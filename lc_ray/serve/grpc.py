"""The Open Inference Protocol over gRPC: each call is told to the endpoint's application as the HTTP request that it stands for.

So a call needs a key, in the metadata as `authorization: Bearer KEY`, counts for its rate, and has its limits, as over HTTP. Errors have
gRPC's codes with the same messages. Outputs are always raw contents.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from grpc import StatusCode
from starlette.applications import Starlette

from lc_ray.serve import auth
from lc_ray.serve.protocols import _tensors
from lc_ray.serve.protocols._messages import MESSAGES
from lc_ray.serve.protocols.open_inference import LENGTH

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {  # the field of a tensor's contents that has its values
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{kind: f"{kind.lower()}_contents" for kind in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")},
}
_HEADERS = ("authorization", "traceparent", "x-request-id")  # that a call's metadata may have
_MOST = 1000  # inputs, outputs or parameters of a call: an empty one has two bytes on the wire, and hundreds here
_Ask = Callable[..., Awaitable[httpx.Response]]


class Refused(Exception):
    """A call that is answered with an error.

    Args:
        code: of gRPC.
        message: what was wrong, for people.
    """

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Operations:
    """The protocol's operations by their names, each given a request's bytes and the call's context.

    Attributes:
        protocols: the application that speaks those over HTTP.
        keys: names of the API keys that it lets through, by their digests.
    """

    protocols: Starlette
    keys: dict[str, str]

    async def ServerLive(self, request: bytes, grpc_context: Any) -> Any:
        """Whether the server runs. Needs no key."""
        return await self._answer("ServerLive", request, grpc_context, lambda asked, ask: _true(ask("GET", "/v2/health/live"), "live"))

    async def ServerReady(self, request: bytes, grpc_context: Any) -> Any:
        """Whether all models can answer. Needs no key."""
        return await self._answer("ServerReady", request, grpc_context, lambda asked, ask: _true(ask("GET", "/v2/health/ready"), "ready"))

    async def ModelReady(self, request: bytes, grpc_context: Any) -> Any:
        """Whether a model is there and can answer."""
        return await self._answer("ModelReady", request, grpc_context, lambda asked, ask: _true(ask("GET", f"{_path(asked)}/ready"), "ready"))

    async def ServerMetadata(self, request: bytes, grpc_context: Any) -> Any:
        """What the server is."""
        return await self._answer("ServerMetadata", request, grpc_context, lambda asked, ask: _parsed(ask("GET", "/v2")))

    async def ModelMetadata(self, request: bytes, grpc_context: Any) -> Any:
        """What a model takes and answers."""
        return await self._answer("ModelMetadata", request, grpc_context, lambda asked, ask: _parsed(ask("GET", _path(asked))))

    async def ModelInfer(self, request: bytes, grpc_context: Any) -> Any:
        """A model's answers."""
        return await self._answer("ModelInfer", request, grpc_context, _infer)

    async def _answer(self, name: str, request: bytes, context: Any, work: Callable[[Any, _Ask], Awaitable[dict[str, Any] | Any]]) -> Any:
        """The answer of an operation, which `work` gives as a message or its fields; an empty one beside the code of an error."""
        headers = {key: value for key, value in context.invocation_metadata() if key in _HEADERS}
        if auth.match(headers.get("authorization"), self.keys) is None:
            request = b""  # whatever it is, it is refused: reading a stranger's message could take gigabytes

        async def ask(method: str, path: str, content: bytes = b"", **more: str) -> httpx.Response:
            return await _asked(self.protocols, httpx.Request(method, f"http://grpc{path}", headers=headers | more, content=content))

        try:
            found = await work(MESSAGES[f"{name}Request"].FromString(request), ask)
            return ParseDict(found, MESSAGES[f"{name}Response"]()) if isinstance(found, dict) else found
        except DecodeError:
            code, message = StatusCode.INVALID_ARGUMENT, f"not a {name}Request"
        except httpx.InvalidURL as error:
            code, message = StatusCode.NOT_FOUND, f"no such model is served here: {error}"
        except Refused as error:
            code, message = error.code, error.message
        context.set_code(code)
        context.set_details(message)
        return MESSAGES[f"{name}Response"]()


async def _asked(app: Starlette, request: httpx.Request) -> httpx.Response:
    """The application's response.

    Raises:
        Refused: it is an error.
    """
    response = await httpx.ASGITransport(app).handle_async_request(request)
    await response.aread()
    if response.status_code >= 400:
        raise Refused(_CODES.get(response.status_code, StatusCode.INTERNAL), response.json()["error"])
    return response


async def _true(response: Awaitable[httpx.Response], what: str) -> dict[str, Any]:
    """Whether there is a response: that a model is not there, or not ready, is no error here."""
    try:
        await response
    except Refused as error:
        if error.code not in (StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND):
            raise
        return {what: False}
    return {what: True}


async def _parsed(response: Awaitable[httpx.Response]) -> dict[str, Any]:
    found: dict[str, Any] = (await response).json()
    return found


def _path(asked: Any) -> str:
    """Of a model."""
    name = asked.DESCRIPTOR.fields[0].name  # name or model_name
    model, version = getattr(asked, name), getattr(asked, name.replace("name", "version"))
    if "/" in model + version or {model, version} & {".", ".."}:  # which are no part of a path
        raise Refused(StatusCode.NOT_FOUND, f"no model '{model}' is served here")
    return f"/v2/models/{quote(model)}" + (f"/versions/{quote(version)}" if version else "")


async def _infer(asked: Any, ask: _Ask) -> Any:
    """The answers to a ModelInferRequest."""
    head, binary = _request(asked)
    text = json.dumps(head).encode()
    response = await ask("POST", f"{_path(asked)}/infer", text + binary, **{LENGTH: str(len(text))})
    return _response(response.content, int(response.headers.get(LENGTH, len(response.content))))


def _request(asked: Any) -> tuple[dict[str, Any], bytes]:
    """A request's JSON, and the bytes after it."""
    for field in ("inputs", "outputs", "parameters"):
        if len(getattr(asked, field)) > _MOST:
            raise Refused(StatusCode.INVALID_ARGUMENT, f"{field}: a call may have {_MOST}")
    raw = asked.raw_input_contents
    if raw and (len(raw) != len(asked.inputs) or any(tensor.HasField("contents") for tensor in asked.inputs)):
        raise Refused(StatusCode.INVALID_ARGUMENT, "raw_input_contents: one is needed for each input, and then no input has contents")
    inputs, parts = [], []
    for number, tensor in enumerate(asked.inputs):
        about = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        values = list(getattr(tensor.contents, _CONTENTS[tensor.datatype])) if tensor.datatype in _CONTENTS else []
        if raw or tensor.datatype == "BYTES":
            parts.append(raw[number] if raw else _tensors.packed(_tensors.Tensor(tensor.name, "BYTES", (len(values),), values)))
            about["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            about["data"] = values
        inputs.append(about)
    outputs = [{"name": output.name} for output in asked.outputs]
    parameters = {one.key: getattr(one.value, one.value.WhichOneof("parameter_choice") or "string_param") for one in asked.parameters}
    head = {"parameters": parameters | {"binary_data_output": True}, "inputs": inputs, "outputs": outputs}
    return head | ({"id": asked.id} if asked.id else {}), b"".join(parts)


def _response(body: bytes, length: int) -> Any:
    """A response from its JSON and the bytes after it."""
    head, start = json.loads(body[:length]), length
    found = MESSAGES["ModelInferResponse"](model_name=head["model_name"], model_version=head["model_version"], id=head.get("id", ""))
    for output in head["outputs"]:
        about = found.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        parameters = output["parameters"]
        end = start + parameters.pop("binary_data_size")
        found.raw_output_contents.append(body[start:end])
        start = end
        for key, value in parameters.items():
            about.parameters.add(key=key).value.string_param = value
    return found
