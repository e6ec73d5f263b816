"""Call an endpoint from Python."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import httpx

from lc_ray.errors import ServeError
from lc_ray.serve import auth

_ATTEMPTS = 5
_LONGEST_WAIT = 10.0  # seconds; an endpoint that asks for more is not waited for longer than this


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
        key = key if key is not None else auth.find()
        self._http = httpx.Client(base_url=self.url, timeout=timeout, headers={"authorization": f"Bearer {key}"} if key else {})
        self._model: str | None = None

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Answers to instances, in their order; an instance is an object by column or, with one column, its value.

        An overloaded endpoint (429, 503) is tried again, up to 5 times in all, after the time it asks for.

        Raises:
            ServeError: with the endpoint's message and the field it is about, or that it can't be reached.
        """
        if self._model is None:
            self._model = self._send("GET", "/v1/models")["models"][0]
        return self._send("POST", f"/v1/models/{quote(str(self._model))}:predict", {"instances": instances})["predictions"]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._http.request(method, path, json=content)
            except httpx.TransportError as error:
                raise ServeError(f"can't be reached: {error or type(error).__name__}", self.url, "is the endpoint running?") from None
            if response.status_code not in (429, 503) or attempt == _ATTEMPTS:
                break
            time.sleep(_pause(response, attempt))
        if response.is_success:
            return response.json()
        raise _error(response, self.url)


def _pause(response: httpx.Response, attempt: int) -> float:
    """Seconds until the next attempt: what the endpoint asks for, else 0.1, 0.2, 0.4, ..."""
    asked = response.headers.get("retry-after", "")
    return min(float(asked) if asked.isdigit() else 0.05 * 2**attempt, _LONGEST_WAIT)


def _error(response: httpx.Response, url: str) -> ServeError:
    try:
        error = response.json()["error"]
        what, where = str(error["message"]), str(error.get("where", ""))
    except (ValueError, LookupError, TypeError):
        what, where = response.text[:200] or response.reason_phrase, ""
    fix = f"set {auth.VARIABLE}, or give Client(key=...)" if response.status_code == 401 else ""
    return ServeError(f"{response.status_code}: {what}", where or url, fix)
