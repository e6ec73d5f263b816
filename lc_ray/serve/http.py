"""The few parts of HTTP that an endpoint needs, as a plain ASGI application: a framework costs more per request than all of them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from lc_ray.serve import auth

Message = dict[str, Any]
_log = logging.getLogger(__name__)


class HttpError(Exception):
    """An answer other than 200, as `{"error": {"code": ..., "message": ..., "where": ...}}`.

    Args:
        status: HTTP status.
        code: the kind of error, for programs.
        message: what was wrong, for people.
        where: the field of the request, for example `instances.3.text`.
        headers: of the answer.
    """

    def __init__(self, status: int, code: str, message: str, where: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.content = {"error": {"code": code, "message": message} | ({"where": where} if where else {})}


@dataclass(slots=True)
class Request:
    """What a handler is given.

    Attributes:
        params: values of the `{names}` in the route's path.
        headers: by lower-case name.
        body: whole.
    """

    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object.

        Raises:
            HttpError: 400, it is not JSON or not an object.
        """
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise HttpError(400, "malformed_json", f"the body is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise HttpError(400, "malformed_request", f"expected a JSON object, got {type(content).__name__}")
        return content


@dataclass(slots=True)
class Response:
    """What a handler returns. `content` that is not bytes is sent as JSON."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json"

    def messages(self) -> tuple[Message, Message]:
        """As ASGI sends it."""
        body = self.content
        if not isinstance(body, bytes):
            body = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")  # lone surrogates of a request
        headers = {"content-type": self.media_type, "content-length": str(len(body))} | self.headers
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        return {"type": "http.response.start", "status": self.status, "headers": raw}, {"type": "http.response.body", "body": body}


@dataclass(frozen=True)
class Route:
    """One operation.

    Attributes:
        method: GET, POST, ...
        path: `{name}` in it matches anything without a slash or colon.
        handler: Request → Response; may raise HttpError.
        public: needs no key.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    public: bool = False

    @property
    def pattern(self) -> re.Pattern[str]:
        """What a request's path must match."""
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/:]+)", re.escape(self.path)))


class App:
    """An ASGI application of routes.

    Args:
        routes: the first that matches a request handles it.
        digests: of the API keys; none means that no key is needed.
        max_body: largest request body, in bytes.
        timeout: longest time a request may take, in seconds.
    """

    def __init__(self, routes: Sequence[Route], digests: Sequence[str], max_body: int, timeout: float) -> None:
        self.routes = [(route, route.pattern) for route in routes]
        self.digests, self.max_body, self.timeout = tuple(digests), max_body, timeout

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served here")
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._answer(scope, receive)
        except HttpError as error:
            response = Response(error.content, error.status, error.headers)
        except TimeoutError:
            response = _failed(504, "timeout", f"not answered within {self.timeout:g} s")
        except ConnectionAbortedError:
            return
        except Exception:
            _log.exception("a request failed")
            response = _failed(500, "internal", "the endpoint failed; its log says why")
        for message in response.messages():
            await send(message)

    async def _answer(self, scope: Message, receive: Callable[[], Awaitable[Message]]) -> Response:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        route, params = self._find(scope["method"], scope["path"])
        if not route.public and not auth.allowed(headers.get("authorization"), self.digests):
            raise HttpError(401, "unauthorized", "a valid key is needed: Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"})
        return await route.handler(Request(scope["path"], params, headers, await self._read(headers, receive)))

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        methods = []
        for route, pattern in self.routes:
            if (match := pattern.fullmatch(path)) and route.method == method:
                return route, {name: unquote(value) for name, value in match.groupdict().items()}
            methods += [route.method] if match else []
        if methods:
            raise HttpError(405, "method_not_allowed", f"{path} answers {', '.join(methods)}", headers={"allow": ", ".join(methods)})
        raise HttpError(404, "not_found", f"nothing is served at {path}")

    async def _read(self, headers: dict[str, str], receive: Callable[[], Awaitable[Message]]) -> bytes:
        too_large = HttpError(413, "body_too_large", f"a request may have {self.max_body} bytes", headers={"connection": "close"})
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_body:
            raise too_large
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.max_body:
                raise too_large
            more = message.get("more_body", False)
        return b"".join(chunks)


def _failed(status: int, code: str, message: str) -> Response:
    return Response(HttpError(status, code, message).content, status)


async def _lifespan(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
