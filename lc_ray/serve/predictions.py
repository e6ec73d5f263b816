"""The prediction log: rows as they were asked, with their answers, as JSON Lines in a folder.

    {"time": ..., "id": ..., "model": ..., "version": ..., "row": {"question": "how many?", "photo": {"sha256": ..., "bytes": 5120}}, "answer": {...}}

Each replica writes files of its own, and begins another once one is large.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lc_ray.artifact import Manifest
from lc_ray.errors import DataError, ServeError
from lc_ray.modalities import _media, _text
from lc_ray.serve.record import Predicted, Record
from lc_ray.serving import LogSpec

MOST = 64 * 2**20  # bytes of requests and answers that may wait to be written


class Predictions:
    """Writes what was predicted.

    Args:
        spec: where, and without which columns.
        largest: bytes from which on a file is followed by another.

    Raises:
        ServeError: there can be no such folder.
    """

    def __init__(self, spec: LogSpec, largest: int = 64 * 2**20) -> None:
        self.folder, self.redact, self.largest = Path(spec.path), frozenset(spec.redact), largest
        self._descriptor, self._written = -1, 0
        try:
            self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise ServeError(f"no folder for the prediction log: {error.strerror}", spec.path, "give another serve.log.path") from None

    def write(self, predicted: Iterable[tuple[Record, Predicted]]) -> None:
        """Add the rows of requests."""
        for seen, what in predicted:
            lines = b"".join(self._line(seen, what, row, answer) for row, answer in zip(what.rows, what.answers, strict=True))
            if self._descriptor < 0 or self._written >= self.largest or not os.fstat(self._descriptor).st_nlink:  # somebody has removed it
                self.close()
                self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
                self._descriptor, self._written = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640), 0
            written = os.write(self._descriptor, lines)
            self._written += written
            if written < len(lines):  # the disk is full: others do not follow half a line
                self.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def size(seen: Record, what: Predicted) -> int:
        """About how many bytes a request's rows and answers hold until they are written."""
        cells = (cell for row in what.rows if isinstance(row, dict) for cell in row.values())
        return seen.received + seen.sent + sum(len(cell) for cell in cells if isinstance(cell, bytes))

    def close(self) -> None:
        """Close the file that is written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _line(self, seen: Record, what: Predicted, row: Any, answer: dict[str, Any]) -> bytes:
        cells = row if isinstance(row, dict) else {what.columns[0]: row}
        known = what.columns or cells  # other fields change no answer, and could not be redacted
        told = {c: _kept(v) if c in what.media else v for c, v in cells.items() if c in known and c not in self.redact}
        answer = {name: _kept(v) if isinstance(v, str) and v.startswith("data:") else v for name, v in answer.items()}
        about = {"time": datetime.fromtimestamp(seen.time, UTC).isoformat(timespec="milliseconds"), "id": seen.id}
        whole = {**about, "model": seen.model, "version": seen.version, "row": told, "answer": answer}
        return json.dumps(whole, default=_decoded).encode() + b"\n"


def check(spec: LogSpec | None, manifests: Sequence[Manifest]) -> None:
    """See that what is to be left out of the log of these models is there: a name with a mistake in it would be logged.

    Raises:
        ServeError: no model has a column, or not all versions of one.
    """
    columns = sorted({column["column"] for manifest in manifests for column in manifest.inputs})
    if spec and not any(manifest.task["kind"] == "text_generation" for manifest in manifests):  # fields of OpenAI's requests are redacted too
        for name in spec.redact:
            if name not in columns:
                raise ServeError(f"serve.log.redact: no column '{name}'; there are: {', '.join(columns)}")
    alike(spec, manifests)


def alike(spec: LogSpec | None, manifests: Iterable[Manifest]) -> None:
    """See that what is left out of the log of one version of a model is not in another by another name, by which it would be logged.

    Raises:
        ServeError: not all versions of a model have a column.
    """
    if not (spec and spec.redact):
        return
    columns: dict[str, list[set[str]]] = {}
    for manifest in manifests:
        columns.setdefault(manifest.name, []).append({column["column"] for column in manifest.inputs})
    for name in spec.redact:
        for model, versions in columns.items():
            if not all((name in version) == (name in versions[0]) for version in versions):
                fix = "give it the same name in all of them, or serve this one from an endpoint of its own"
                raise ServeError(f"serve.log.redact: not all versions of '{model}' have the column '{name}'", fix=fix)


def _kept(value: Any) -> Any:
    """A picture's or sound's fingerprint; of what only looks like one, as a sentence that begins with "data:", itself."""
    try:
        return _fingerprint(value)
    except DataError:
        return value


def _fingerprint(value: Any) -> dict[str, Any] | None:
    """What is kept of a picture or sound."""
    if _text.missing(value) or not value:
        return None
    content = _media.fetch(value, None)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _decoded(value: Any) -> str:
    """A cell that came as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
