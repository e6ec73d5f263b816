"""Call an endpoint from Python."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Self
from urllib.parse import quote

import httpx

from lc_ray.errors import ServeError
from lc_ray.serve import auth

_ATTEMPTS, _BUSY = 5, (429, 502, 503)
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)  # a replica died; a prediction changes nothing, so it is asked for again
_LONGEST_WAIT = 10.0  # seconds; an endpoint that asks for more is not waited for longer than this
_JITTER = 0.25  # of a wait, added at random, so that clients that were refused together do not come back together


class Client:
    """A connection to an endpoint; safe to share among threads.

    Args:
        url: for example `http://127.0.0.1:8000`.
        key: API key; that of `LC_RAY_API_KEY` or of the key file if not given.
        timeout: of one attempt, in seconds.

    Raises:
        ServeError: the key file can't be read.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout, headers=_headers(key))
        self._model: str | None = None

    def predict(self, instances: list[Any], model: str | None = None) -> list[dict[str, Any]]:
        """Answers to instances, in their order; an instance is an object by column or, with one column, its value.

        Where the endpoint is overloaded (429, 503) or a replica dies over the request, it is asked again, up to 5 times in all, after the time
        that it asks for.

        Args:
            instances: the rows.
            model: name of the model that is asked; the endpoint's first if not given.

        Raises:
            ServeError: with the endpoint's message and the field it is about, or that it can't be reached.
        """
        if model is None:
            self._model = model = self._model or str(self._send("GET", "/v1/models")["models"][0])
        return _answers(self._send("POST", _path(model), {"instances": instances}))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._http.request(method, path, json=content)
            except httpx.TransportError as error:
                if not isinstance(error, _BROKEN) or attempt == _ATTEMPTS:
                    raise _unreachable(error, self.url) from None
                time.sleep(_pause(None, attempt))
                continue
            if not _passing(response) or attempt == _ATTEMPTS:
                break
            time.sleep(_pause(response, attempt))
        return _content(response, self.url)


class AsyncClient:
    """A connection to an endpoint, for asyncio: `async with AsyncClient(url) as client`.

    Args:
        url: for example `http://127.0.0.1:8000`.
        key: API key; that of `LC_RAY_API_KEY` or of the key file if not given.
        timeout: of one attempt, in seconds.

    Raises:
        ServeError: the key file can't be read.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(base_url=self.url, timeout=timeout, headers=_headers(key))
        self._model: str | None = None

    async def predict(self, instances: list[Any], model: str | None = None) -> list[dict[str, Any]]:
        """As `Client.predict`.

        Raises:
            ServeError: with the endpoint's message and the field it is about, or that it can't be reached.
        """
        if model is None:
            self._model = model = self._model or str((await self._send("GET", "/v1/models"))["models"][0])
        return _answers(await self._send("POST", _path(model), {"instances": instances}))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, method: str, path: str, content: Any = None) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = await self._http.request(method, path, json=content)
            except httpx.TransportError as error:
                if not isinstance(error, _BROKEN) or attempt == _ATTEMPTS:
                    raise _unreachable(error, self.url) from None
                await asyncio.sleep(_pause(None, attempt))
                continue
            if not _passing(response) or attempt == _ATTEMPTS:
                break
            await asyncio.sleep(_pause(response, attempt))
        return _content(response, self.url)


def _headers(key: str | None) -> dict[str, str]:
    key = key if key is not None else auth.find()
    return {"authorization": f"Bearer {key}"} if key else {}


def _path(model: str) -> str:
    return f"/v1/models/{quote(model)}:predict"


def _answers(content: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content["predictions"]
    return found


def _passing(response: httpx.Response) -> bool:
    """Whether it is an error that another attempt may not meet: the endpoint is busy, or Serve tells in its own words that a replica died."""
    ours = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code in _BUSY or (response.status_code == 500 and not ours)


def _pause(response: httpx.Response | None, attempt: int) -> float:
    """Seconds until the next attempt: what the endpoint asks for, else 0.1, 0.2, 0.4, ..., and up to a quarter more."""
    asked = response.headers.get("retry-after", "") if response is not None else ""
    wait = float(asked) if asked.isascii() and asked.isdigit() else 0.05 * 2**attempt
    return min(wait, _LONGEST_WAIT) * (1 + random.uniform(0, _JITTER))


def _content(response: httpx.Response, url: str) -> Any:
    if response.is_success:
        return response.json()
    raise _error(response, url)


def _unreachable(error: httpx.TransportError, url: str) -> ServeError:
    return ServeError(f"can't be reached: {error or type(error).__name__}", url, "is the endpoint running?")


def _error(response: httpx.Response, url: str) -> ServeError:
    try:
        error = response.json()["error"]
        what, where = str(error["message"]), str(error.get("where", ""))
    except (ValueError, LookupError, TypeError):
        what, where = response.text[:200] or response.reason_phrase, ""
    fix = f"set {auth.VARIABLE}, or give Client(key=...)" if response.status_code == 401 else ""
    return ServeError(f"{response.status_code}: {what}", where or url, fix)
