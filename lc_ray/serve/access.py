"""The access log: a line of JSON for each request.

    {"time": "2026-11-23T12:00:00.000+00:00", "id": ..., "key": "phone", "client": "10.0.0.7", "method": "POST",
     "route": "/v1/models/{name}:predict", "status": 200, "error": "", "model": ..., "version": ..., "rows": 1, "received": 40, "sent": 120,
     "milliseconds": {"prepare": 0.4, "queue": 0.1, "infer": 4.2, "total": 5.0}}

Language models' lines have `tokens_in`, `tokens_cached` of those, `tokens_out`, and `first_token` among the milliseconds. Names of keys are told,
never keys; routes rather than paths, which may hold anything. Behind Serve's HAProxy `client` is what a proxy before it says in X-Forwarded-For.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lc_ray.errors import ServeError
from lc_ray.serve.record import Record

STDERR = "-"
_FIELDS = ("id", "key", "client", "method", "route", "status", "error", "model", "version", "rows", "received", "sent")


class Log:
    """Appends lines to a file, which several replicas may share and which may be moved away at any time.

    Args:
        path: of the file, or `STDERR`.

    Raises:
        ServeError: there can be no such file.
    """

    def __init__(self, path: str) -> None:
        self.path, self._torn = path, b""
        try:
            if path != STDERR:
                Path(path).parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                os.close(self._opened())
        except OSError as error:
            raise ServeError(f"no access log can be written: {error.strerror}", path, "give another serve.access_log") from None

    def write(self, records: Iterable[Record]) -> None:
        """Add a line for each request. Each is written at once, so that no other replica's comes between."""
        # Standard error by its number, since Serve has sys.stderr write to its own log.
        descriptor = 2 if self.path == STDERR else self._opened()
        try:
            for one in records:
                told = self._torn + json.dumps(line(one)).encode() + b"\n"
                if os.write(descriptor, told) < len(told):  # the disk is full: the next line is one again
                    self._torn = b"\n"
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._torn = b""
        finally:
            if descriptor != 2:
                os.close(descriptor)

    def _opened(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def line(seen: Record) -> dict[str, Any]:
    """What is logged of a request."""
    stages = seen.stages() | ({} if seen.first_token is None else {"first_token": seen.first_token})
    tokens = {name: getattr(seen, name) for name in ("tokens_in", "tokens_cached", "tokens_out")} if seen.tokens_in else {}
    when = datetime.fromtimestamp(seen.time, UTC).isoformat(timespec="milliseconds")
    milliseconds = {stage: round(1000 * seconds, 3) for stage, seconds in stages.items()}
    return {"time": when, **{name: getattr(seen, name) for name in _FIELDS}, **tokens, "milliseconds": milliseconds}


@contextmanager
def relayed(path: str | None, descriptor: int = 2) -> Iterator[str | None]:
    """The path that replicas on this machine log to: the one given, or where it is `STDERR`, a pipe whose lines this process writes.

    Args:
        path: of the file; None for no log.
        descriptor: of where this process writes.
    """
    if path != STDERR:
        yield path
        return
    with TemporaryDirectory(prefix="lc_ray-") as folder:
        pipe = f"{folder}/access"
        os.mkfifo(pipe, 0o600)
        end = os.open(pipe, os.O_RDWR)  # for writing too, so that it does not end with the first replica

        def relay() -> None:
            lines = b""
            while not lines.endswith(b"\0"):
                lines = os.read(end, 65536)
                with suppress(OSError):  # nobody reads any more: replicas must not wait for that
                    os.write(descriptor, lines.removesuffix(b"\0"))

        thread = threading.Thread(target=relay, name="access", daemon=True)
        thread.start()
        try:
            yield pipe
        finally:
            os.write(end, b"\0")
            thread.join()
            os.close(end)
