"""Endpoints without a cluster, in this process or behind real HTTP on a thread; and clients that ask any endpoint all the while."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
def room(size: int) -> Iterator[None]:
    """No file may get larger than this many bytes, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


@contextmanager
def asking(url: str, key: str, clients: int = 4) -> Iterator[Callable[[set[str]], None]]:
    """Asks the model "tiny"; gives `ask_until(versions)`, which waits until just these answer. No answer may be anything but 200."""
    done = threading.Event()
    seen: list[tuple[int, str]] = []

    def client() -> None:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=90) as http:
            while not done.is_set():
                response = http.post("/v1/models/tiny:predict", json={"instances": ["good flight"]})
                seen.append((response.status_code, response.json().get("version", "")))

    def ask_until(versions: set[str]) -> None:
        start = len(seen)
        while {version for _, version in seen[start:]} != versions:
            assert all(status == 200 for status, _ in seen)
            done.wait(0.05)
            start += 1

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(client) for _ in range(clients)]
        try:
            yield ask_until
        finally:
            done.set()
        assert [one.result() for one in asked] == [None] * clients
    assert {status for status, _ in seen} == {200}
