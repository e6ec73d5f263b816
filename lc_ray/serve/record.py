"""What is known of one request: each part of the endpoint fills in what it knows, and observers read it once the request is answered."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

CLIENT_GONE = 499  # what nginx logs where a client hung up before it was answered


@dataclass(frozen=True, slots=True)
class Predicted:
    """Rows of a request and their answers.

    Args:
        rows: as they came, but with bytes in place of URLs.
        answers: as many.
        columns: of the model; none where a row is a whole request.
        media: those of them that are pictures or sounds.
    """

    rows: list[Any]
    answers: list[dict[str, Any]]
    columns: list[str]
    media: Collection[str]


@dataclass(slots=True)
class Record:
    """One request.

    Attributes:
        id: that answers and logs have, see `observe.identity`.
        began: when it came, on the monotonic clock.
        time: when it came, in seconds since 1970.
        route: its path as it is routed, with names of parts for their values; "" where nothing is served.
        key: name of the API key.
        error: kind of the error that it was answered with.
        trace: its `traceparent` header.
        received, sent: bytes of its body, decompressed, and of its answer's.
        spans: what it spent time on: stage, and when that began and ended on the monotonic clock.
        tokens_in, tokens_cached, tokens_out: of prompts, of these what was read for requests before, and of answers.
        first_token: seconds until the first token.
        predicted: what the prediction log is to have, if there is one.
    """

    id: str = ""
    method: str = ""
    client: str = ""
    trace: str = ""
    began: float = field(default_factory=time.monotonic)
    time: float = field(default_factory=time.time)
    route: str = ""
    key: str = ""
    status: int = CLIENT_GONE
    error: str = ""
    model: str = ""
    version: str = ""
    rows: int = 0
    received: int = 0
    sent: int = 0
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    first_token: float | None = None
    predicted: Predicted | None = None
    ended: float = 0.0
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def stages(self) -> dict[str, float]:
        """Seconds by stage: queue, prepare, infer, of those that it had, and total."""
        found: dict[str, float] = {}
        for stage, began, ended in self.spans:
            found[stage] = found.get(stage, 0.0) + ended - began
        return found | {"total": self.ended - self.began}


_current: ContextVar[Record] = ContextVar("record")


def begin(record: Record) -> None:
    """Make a record that of the request which this task answers, and those that it starts."""
    _current.set(record)


def current() -> Record:
    """The record of the request that is being answered; one that nobody reads where there is none."""
    return _current.get(None) or Record()
