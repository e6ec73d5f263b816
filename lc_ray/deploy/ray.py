"""Deploy on Ray Serve: the connected Ray, or a local one that lives as long as this process.

A Ray has one endpoint. A further model is served by it besides, and a new version takes the place of the old one, without a failed request; settings
are those of the first deployment. Where several machines serve, all read the artifact's folder from storage that they share, also when a replica is
started later: it must stay as it is. Each replica is replaced once another is up beside it, for which there must be room.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from lc_ray import runtime
from lc_ray.artifact import Artifact
from lc_ray.client import Client
from lc_ray.deploy._platform import Call
from lc_ray.serve import app, auth, update
from lc_ray.serving import ServeSpec


class Settings(ServeSpec):
    """The endpoint, as in a job file's `serve` section."""

    port: int = Field(0, ge=0, le=65535, description="0 for any that is free")


@dataclass(frozen=True)
class Deployment:
    """A running endpoint.

    Attributes:
        url: where it answers.
        key: what requests need as `Authorization: Bearer KEY`.
        name: of the model.
    """

    url: str
    key: str = field(repr=False)
    name: str
    _session: ExitStack

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers over HTTP."""
        with Client(self.url, self.key) as client:
            return client.predict(rows, self.name)

    def delete(self) -> None:
        """Serve the model no more; with the last one the endpoint goes, and the local Ray if it was started for this.

        Raises:
            ServeError: it is not served.
        """
        if update.remove(self.name):
            self._session.close()


def calls(artifact: Artifact, settings: Settings) -> list[Call]:
    """What is asked of Ray."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    started = {"paths": [artifact.place], "spec": settings.model_dump(mode="json")}
    note = "update where an endpoint runs"
    return [Call("ray.init", {"address": address}), Call("lc_ray.serve.app.start", started, note)]


def deploy(artifact: Artifact, settings: Settings) -> Deployment:
    """Serve an artifact.

    Raises:
        ServeError: it can't be served, and what was served goes on; or the endpoint that runs is changed elsewhere.
    """
    session = ExitStack()
    session.enter_context(runtime.session())
    try:
        key = auth.ensure()
        with update.alone():
            url = update.update(artifact.place) or app.start([artifact.place], settings, {"": key})
    except BaseException:
        session.close()
        raise
    return Deployment(url, key, artifact.manifest.name, session)


def delete(artifact: Artifact, settings: Settings) -> None:
    """Have the Ray of `RAY_ADDRESS` serve the model no more."""
    with runtime.session():
        update.remove(artifact.manifest.name)
