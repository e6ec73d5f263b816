"""Endpoints without a cluster: in this process, or behind real HTTP on a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

KEY = "secret"
LABELS = ["negative", "neutral", "positive"]


def ask(app: Any, method: str, path: str, key: str = KEY, **request: Any) -> httpx.Response:
    """One request to an ASGI application in this process."""

    async def main() -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} | (request.pop("headers", None) or {})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, headers=headers, **request)

    return asyncio.run(main())


@contextmanager
def served(app: Any, **options: Any) -> Iterator[str]:
    """An ASGI application behind real HTTP; its URL without a scheme."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
