"""What every protocol shares: errors as JSON, a limit on bodies, API keys, and a limit on time. Routing and parsing are Starlette's."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lc_ray.serve import auth, record
from lc_ray.serve.rate import Rate
from lc_ray.serving import ServeSpec

_DEPTH = 100  # of JSON that is read: what is made of it is walked by recursion
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's name for the formats of compressed bodies
_PIECE = 4096  # bytes of such a body: where a member ends, zlib copies what it was given beyond it
_CODES = {404: "not_found", 405: "method_not_allowed"}
_log = logging.getLogger(__name__)


class HttpError(HTTPException):
    """An answer other than 200, as `{"error": {"code": ..., "message": ..., "where": ...}}`.

    Args:
        status: HTTP status.
        code: the kind of error, for programs.
        message: what was wrong, for people.
        where: the field of the request, for example `instances.3.text`.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, message: str, where: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.content = {"error": {"code": code, "message": message} | ({"where": where} if where else {})}


Shape = Callable[[dict[str, Any]], dict[str, Any]]


class _Name(StringConvertor):
    """A part of a path, of which a colon begins a verb: `/v1/models/{name:name}:predict`."""

    regex = "[^/:]+"


register_url_convertor("name", _Name())


async def read_object(request: Request, max_body: int) -> dict[str, Any]:
    """A request's body as a JSON object.

    Raises:
        HttpError: 413, it is larger than `max_body` bytes; 400, it is not JSON or not an object.
    """
    return parse_object(await read_body(request, max_body))


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        HttpError: 400, it is not JSON or not an object.
    """
    try:
        content = loads(body)
    except ValueError as error:
        raise HttpError(400, "malformed_json", f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise HttpError(400, "malformed_request", f"expected a JSON object, got {type(content).__name__}")
    return content


def loads(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is not JSON, or nested more than 100 deep.
    """
    collects = gc.isenabled()
    gc.disable()  # JSON has no cycles, and to look for some in millions of lists takes several times as long as to read them
    try:
        content = json.loads(text)
        if shallow(content):
            return content
    except RecursionError:
        pass
    finally:
        if collects:
            gc.enable()
    raise ValueError(f"it is nested more than {_DEPTH} deep")


def shallow(content: Any) -> bool:
    """Whether a part of JSON is nested at most 100 deep."""
    level = [content]
    for _ in range(_DEPTH):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return True
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return not any(isinstance(one, dict | list) for one in level)


def instances_of(content: dict[str, Any]) -> tuple[Any, Any]:
    """The rows of a request that is `{"instances": [...], "parameters": {...}}`, and its parameters, if there are any.

    Raises:
        HttpError: 400, it has no rows.
    """
    if "instances" not in content:
        raise HttpError(400, "malformed_request", 'expected {"instances": [...]}', "instances")
    return content["instances"], content.get("parameters")


def overloaded(queue: int) -> HttpError:
    """The answer where so many requests wait already."""
    return HttpError(503, "overloaded", f"{queue} requests wait already; try again later", headers={"retry-after": "1"})


def late(timeout: float) -> HttpError:
    """The answer to a request that took longer than it may, in seconds."""
    return HttpError(504, "timeout", f"not answered within {timeout:g} s")


def need(alive: bool) -> None:
    """Raise HttpError 503 where a model can't run."""
    if not alive:
        raise HttpError(503, "not_ready", "a model can't run")


async def read_body(request: Request, max_body: int) -> bytes:
    """A request's body, decompressed.

    Raises:
        HttpError: 413, it is larger than `max_body` bytes; 415, it is compressed otherwise than with gzip or deflate; 400, it is not.
    """
    too_large = HttpError(413, "body_too_large", f"a request may have {max_body} bytes", headers={"connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_body:
        raise too_large
    encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in ("identity", *_WINDOWS):
        told = f"a body may come as {', '.join(_WINDOWS)} or as it is, not as '{encoding}'"
        raise HttpError(415, "unsupported_encoding", told, "content-encoding")
    inflated = _Inflated(_WINDOWS[encoding]) if encoding in _WINDOWS else None
    body, received = bytearray(), 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            body += inflated.add(chunk, max_body + 1 - len(body)) if inflated else chunk
            if max(received, len(body)) > max_body:
                raise too_large
        if inflated and not inflated.whole:
            raise zlib.error("it is cut off")
    except zlib.error as error:
        raise HttpError(400, "malformed_body", f"the body is not {encoding}: {error}", "content-encoding") from None
    record.current().received = len(body)
    return bytes(body)


class _Inflated:
    """A body that is decompressed as it comes, in one or more members.

    Args:
        window: zlib's name for its format.
    """

    def __init__(self, window: int) -> None:
        self._window, self._member = window, zlib.decompressobj(window)

    @property
    def whole(self) -> bool:
        """Whether it may end here."""
        return self._member.eof

    def add(self, data: bytes, most: int) -> bytes:
        """What more of it says, or the first `most` bytes of that.

        Raises:
            zlib.error: it is not in its format.
        """
        made = bytearray()
        for start in range(0, len(data), _PIECE):
            rest = data[start : start + _PIECE]
            while rest and len(made) < most:
                if self._member.eof:
                    self._member = zlib.decompressobj(self._window)
                made += self._member.decompress(rest, most - len(made))
                rest = self._member.unused_data
        return bytes(made)


def application(
    routes: Sequence[Route],
    public: Sequence[str],
    unlimited: Sequence[str],
    keys: Mapping[str, str],
    spec: ServeSpec,
    shapes: Mapping[str, Shape],
    observe: Middleware,
) -> Starlette:
    """An ASGI application.

    Args:
        routes: of all protocols.
        public: paths that need no key.
        unlimited: paths that no rate limit counts.
        keys: names of the API keys by their digests; none means that no key is needed.
        spec: the time that a request may take, and how many a key may make.
        shapes: how errors are told below a path, where its protocol wants them otherwise.
        observe: sees each request, and what became of it.
    """
    answer = Answer(shapes)
    guard = Middleware(Guard, public=frozenset(public), unlimited=frozenset(unlimited), keys=keys, spec=spec, answer=answer)
    made = Starlette(routes=list(routes), middleware=[observe, guard], exception_handlers={HTTPException: answer.handle})
    made.router.redirect_slashes = False  # behind a proxy with TLS or a prefix it would lead to another place, and the key with it
    return made


class Answer:
    """Errors as responses.

    Args:
        shapes: of errors, by a path that they are for, with all below it.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes

    def __call__(self, path: str, error: HttpError) -> Response:
        """The response to a request to a path."""
        record.current().error = error.content["error"]["code"]
        shape = next((shape for at, shape in self.shapes.items() if path == at or path.startswith(f"{at}/")), None)
        # Escaped as ASCII, since what a request is told of itself may hold halves of surrogate pairs.
        body = json.dumps(shape(error.content) if shape else error.content).encode()
        return Response(body, error.status_code, error.headers, media_type="application/json")

    async def handle(self, request: Request, error: Exception) -> Response:
        """The response to what was raised inside a route, or by Starlette for a path or method that no route has."""
        assert isinstance(error, HTTPException)
        path = request.url.path
        if not isinstance(error, HttpError):
            message = f"nothing is served at {path}" if error.status_code == 404 else f"{path}: {error.detail}"
            error = HttpError(error.status_code, _CODES.get(error.status_code, "http"), message, headers=dict(error.headers or {}))
        return self(path, error)


class Guard:
    """Lets requests with a key through, as many as it may make, gives each its time, and answers 500 with nothing of what went wrong inside."""

    def __init__(
        self, app: ASGIApp, public: frozenset[str], unlimited: frozenset[str], keys: Mapping[str, str], spec: ServeSpec, answer: Answer
    ) -> None:
        self.app, self.public, self.unlimited, self.keys, self.timeout, self.answer = app, public, unlimited, keys, spec.timeout, answer
        self.rate = Rate(spec.rate) if spec.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check(scope)
            async with asyncio.timeout(self.timeout):
                await self.app(scope, receive, sending)
            return
        except HttpError as error:
            found = error
        except TimeoutError:
            found = late(self.timeout)
        except ClientDisconnect:
            return
        except Exception:
            _log.exception("request %s failed", record.current().id)
            found = HttpError(500, "internal", "the endpoint failed; its log says why")
        if begun:  # a stream can't be answered a second time: breaking it off tells the client that it is not whole
            raise found
        await self.answer(scope["path"], found)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if scope["path"] in self.public and scope["method"] in ("GET", "HEAD"):  # the path of another protocol's predictions may be the same
            return
        key = auth.match(Request(scope).headers.get("authorization"), self.keys)
        if key is None:
            raise HttpError(401, "unauthorized", "a valid key is needed: Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"})
        record.current().key = self.keys.get(key, "")
        if self.rate and scope["path"] not in self.unlimited and (wait := self.rate.take(key)):
            rate, after = self.rate.spec, str(math.ceil(wait))
            raise HttpError(429, "rate_limited", f"a key may make {rate.requests} requests in {rate.per:g} s", headers={"retry-after": after})


__all__ = [
    "HttpError",
    "JSONResponse",
    "Request",
    "Response",
    "Route",
    "application",
    "instances_of",
    "late",
    "loads",
    "need",
    "overloaded",
    "parse_object",
    "read_body",
    "read_object",
    "shallow",
]
