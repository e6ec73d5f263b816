"""Requests as observers see them: each gets an id and a record, which is counted, logged and traced once the request is answered."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lc_ray.serve import access, metrics, record, tracing
from lc_ray.serve.background import Background
from lc_ray.serve.predictions import MOST, Predictions
from lc_ray.serve.record import Record
from lc_ray.serving import ServeSpec

ID = b"x-request-id"
_LONGEST = 128


class Observers:
    """All that look at answered requests.

    Args:
        spec: where logs go.

    Raises:
        ServeError: there can be no prediction log.
    """

    def __init__(self, spec: ServeSpec) -> None:
        self.background: list[Background[Record]] = []
        self.sample, self.predictions = spec.log.sample if spec.log else 0.0, None
        if spec.log:
            self.predictions = Background("predictions", Predictions(spec.log).write, MOST)
        self.spans = tracing.spans()
        if spec.access_log:
            self.background.append(Background("access", access.Log(spec.access_log).write))
        if self.spans:
            self.background.append(Background("traces", self.spans.write))

    def __call__(self, answered: Record) -> None:
        """Have a request seen."""
        metrics.count(answered)
        predicted, answered.predicted = answered.predicted, None
        if self.predictions and predicted and random.random() < self.sample:
            self.predictions.put((answered, predicted), Predictions.size(answered, predicted))
        for one in self.background:
            one.put(answered)

    def close(self) -> None:
        """Let all that was seen be written."""
        for one in (*self.background, *([self.predictions] if self.predictions else ())):
            one.close()
        if self.spans:
            self.spans.provider.shutdown()


class Observe:
    """Gives each request its record, and shows that to observers.

    Args:
        app: that answers.
        observer: called with the record of each request.
        echoed: whether the server around sends `x-request-id` back, as Ray Serve does: it is told once.
    """

    def __init__(self, app: ASGIApp, observer: Callable[[Record], None], echoed: bool) -> None:
        self.app, self.observer, self.echoed = app, observer, echoed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given, client = headers.get(ID, b""), scope.get("client")
        told = identity(given)
        seen = Record(told.decode(), scope["method"], client[0] if client else "", headers.get(b"traceparent", b"").decode("latin-1"))
        record.begin(seen)
        adds = not (self.echoed and told == given)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                if adds:
                    message["headers"] = [*message.get("headers", ()), (ID, told)]
            else:
                seen.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            seen.ended = time.monotonic()
            seen.route = getattr(scope.get("route") or _routed(scope), "path_format", "")
            self.observer(seen)


def _routed(scope: Scope) -> BaseRoute | None:
    """The route of a request that was refused before it was routed."""
    found = [(route.matches(scope)[0], route) for route in scope["app"].routes]
    return next((route for wanted in (Match.FULL, Match.PARTIAL) for match, route in found if match is wanted), None)


def identity(given: bytes) -> bytes:
    """A request's id: the one that it came with, if that is 1 to 128 printable ASCII characters, else a new one."""
    if 0 < len(given) <= _LONGEST and given.isascii() and given.decode().isprintable():
        return given
    return uuid.uuid4().hex.encode()
