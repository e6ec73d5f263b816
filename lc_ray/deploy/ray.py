"""Deploy on Ray Serve: the connected Ray, or a local one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lc_ray import runtime
from lc_ray.client import Client
from lc_ray.serve import app, auth
from lc_ray.spec import ServeSpec


@dataclass(frozen=True)
class Deployment:
    """A running endpoint.

    Attributes:
        url: where it answers.
        key: what requests need as `Authorization: Bearer KEY`.
    """

    url: str
    key: str
    _session: ExitStack

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers over HTTP."""
        return Client(self.url, self.key).predict(rows)

    def delete(self) -> None:
        """Stop serving, and the local Ray if it was started for this."""
        app.stop()
        self._session.close()


def deploy(path: Path) -> Deployment:
    """Serve an artifact at the default port, or any that is free."""
    session = ExitStack()
    session.enter_context(runtime.session())
    try:
        key = auth.ensure()
        url = app.start([path], ServeSpec(port=0), {"": key})
    except BaseException:
        session.close()
        raise
    return Deployment(url, key, session)
