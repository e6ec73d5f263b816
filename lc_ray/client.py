"""Call an endpoint from Python."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from email.utils import parsedate_to_datetime
from functools import reduce
from operator import getitem
from typing import Any, Self, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

import httpx

from lc_ray.errors import ServeError
from lc_ray.serve import auth

_ATTEMPTS, _BUSY = 5, (429, 502, 503)
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)  # a replica died; a prediction changes nothing, so it is asked for again
_FAILED = (httpx.RequestError, UnicodeError)  # the latter for a host's name that can't be one
_LONGEST_WAIT = 10.0  # seconds
_DIRECT = {"all://127.0.0.1": None, "all://localhost": None}  # past a proxy of the environment, to which these names are its own machine's
_JITTER = 0.25  # of a wait, added at random, so that clients that were refused together do not come back together
_Http = TypeVar("_Http", httpx.Client, httpx.AsyncClient)


class Client:
    """A connection to an endpoint; safe to share among threads.

    Args:
        url: for example `http://127.0.0.1:8000`.
        key: API key; that of `LC_RAY_API_KEY` or of the key file if not given.
        timeout: of one attempt, in seconds.

    Raises:
        ServeError: the key file can't be read, `url` is no URL, or the key has characters that no request can carry.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30) -> None:
        self.url = url.rstrip("/")
        self._http = _opened(httpx.Client, self.url, key, timeout)
        self._model: str | None = None

    def predict(self, instances: list[Any], model: str | None = None) -> list[dict[str, Any]]:
        """Answers to instances, in their order; an instance is an object by column or, with one column, its value.

        Where the endpoint is overloaded (429, 503) or a replica dies over the request, it is asked again, up to 5 times in all, after the time
        that it asks for, unless that is more than 10 seconds.

        Args:
            instances: the rows.
            model: name of the model that is asked; the endpoint's first if not given.

        Raises:
            ServeError: with the endpoint's message and the field it is about; or it can't be reached, what is asked can't be sent as JSON, or the
                answer is none of an endpoint's.
        """
        if model is None:
            self._model = model = self._model or str(self._send(self._http.build_request("GET", "/v1/models"), "models", 0))
        found: list[dict[str, Any]] = self._send(_question(self._http, instances, model), "predictions")
        return found

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: httpx.Request, *place: str | int) -> Any:
        for attempt in itertools.count(1):
            try:
                seen: httpx.Response | Exception = self._http.send(request)
            except _FAILED as error:
                seen = error
            if (wait := _wait(seen, attempt)) is None:
                return _read(seen, self.url, place)
            time.sleep(wait)


class AsyncClient:
    """Connections to an endpoint, for asyncio: `async with AsyncClient(url) as client`. Each event loop that uses it has its own.

    Args:
        url: for example `http://127.0.0.1:8000`.
        key: API key; that of `LC_RAY_API_KEY` or of the key file if not given.
        timeout: of one attempt, in seconds.

    Raises:
        ServeError: the key file can't be read, `url` is no URL, or the key has characters that no request can carry.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 30) -> None:
        self.url = url.rstrip("/")
        self._http = _opened(httpx.AsyncClient, self.url, key, timeout)  # connects to nothing: connections are of a loop
        self._https: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._model: str | None = None

    async def predict(self, instances: list[Any], model: str | None = None) -> list[dict[str, Any]]:
        """As `Client.predict`.

        Raises:
            ServeError: with the endpoint's message and the field it is about; or it can't be reached, what is asked can't be sent as JSON, or the
                answer is none of an endpoint's.
        """
        if model is None:
            self._model = model = self._model or str(await self._send(self._http.build_request("GET", "/v1/models"), "models", 0))
        found: list[dict[str, Any]] = await self._send(_question(self._http, instances, model), "predictions")
        return found

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if here := self._https.pop(asyncio.get_running_loop(), None):
            await here.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, request: httpx.Request, *place: str | int) -> Any:
        loop = asyncio.get_running_loop()
        if loop not in self._https:
            self._https[loop] = httpx.AsyncClient(timeout=self._http.timeout, mounts=_DIRECT)
        for attempt in itertools.count(1):
            try:
                seen: httpx.Response | Exception = await self._https[loop].send(request)
            except _FAILED as error:
                seen = error
            if (wait := _wait(seen, attempt)) is None:
                return _read(seen, self.url, place)
            await asyncio.sleep(wait)


def _opened(kind: type[_Http], url: str, key: str | None, timeout: float) -> _Http:
    key = key if key is not None else auth.find()
    if key and not auth.sendable(key):
        raise ServeError("the API key has characters that no request can carry", fix=f"correct {auth.VARIABLE} or Client(key=...)")
    try:
        if httpx.URL(url).scheme not in ("http", "https"):
            raise httpx.InvalidURL("it begins with neither http:// nor https://")
        return kind(base_url=url, timeout=timeout, headers={"authorization": f"Bearer {key}"} if key else {}, mounts=_DIRECT)
    except httpx.InvalidURL as error:
        raise ServeError(f"not a URL: {error}", url, "give one as http://127.0.0.1:8000") from None


def _question(http: httpx.Client | httpx.AsyncClient, instances: list[Any], model: str) -> httpx.Request:
    try:
        return http.build_request("POST", f"/v1/models/{quote(model)}:predict", json={"instances": instances})
    except (TypeError, ValueError, RecursionError, httpx.InvalidURL) as error:
        raise ServeError(f"what is asked can't be sent: {error}", fix="pictures and sounds are given as base64, missing values as None") from None


def _wait(seen: httpx.Response | Exception, attempt: int) -> float | None:
    """Seconds until the next attempt: what the endpoint asks for, else 0.1, 0.2, 0.4, ..., and up to a quarter more; None if none would help, or
    the endpoint asks for more than 10."""
    if attempt == _ATTEMPTS or not (_passing(seen) if isinstance(seen, httpx.Response) else isinstance(seen, _BROKEN)):
        return None
    wait = _asked(seen) if isinstance(seen, httpx.Response) else None
    if wait is None:
        wait = 0.05 * 2**attempt
    return wait * (1 + random.uniform(0, _JITTER)) if wait <= _LONGEST_WAIT else None


def _asked(response: httpx.Response) -> float | None:
    """Seconds of `Retry-After`, which may be a date."""
    asked = response.headers.get("retry-after", "")
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _passing(response: httpx.Response) -> bool:
    """Whether it is an error that another attempt may not meet: the endpoint is busy, or Serve tells in its own words that a replica died, or that
    the endpoint is starting."""
    ours = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code in _BUSY or (response.status_code in (404, 500) and not ours)


def _read(seen: httpx.Response | Exception, url: str, place: tuple[str | int, ...]) -> Any:
    """What an answer has at a place."""
    if isinstance(seen, httpx.ReadTimeout):
        raise ServeError(f"no answer within {seen.request.extensions['timeout']['read']:g} s", url, "give the client a longer timeout")
    if not isinstance(seen, httpx.Response):
        raise ServeError(f"can't be reached: {str(seen) or type(seen).__name__}", url, "is the endpoint running?")
    if not seen.is_success:
        raise _error(seen, url)
    try:
        return reduce(getitem, place, seen.json())
    except (ValueError, LookupError, TypeError):
        raise ServeError("the answer is none of an endpoint's", url, "is this where the endpoint answers?") from None


def _error(response: httpx.Response, url: str) -> ServeError:
    try:
        error = response.json()["error"]
        what, where = str(error["message"]), str(error.get("where", ""))
    except (ValueError, LookupError, TypeError):
        what, where = response.text[:200] or response.reason_phrase, ""
    fix = f"set {auth.VARIABLE}, or give Client(key=...)" if response.status_code == 401 else ""
    return ServeError(f"{response.status_code}: {what}", where or url, fix)
