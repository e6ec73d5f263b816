"""What Ray Serve runs in each of an endpoint's replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from starlette.applications import Starlette

from lc_ray.errors import ArtifactError, ServeError
from lc_ray.predictor import load
from lc_ray.serve import predictions, rollout
from lc_ray.serve.app import NAME, Given
from lc_ray.serve.endpoint import Endpoint, Models, asgi, settings
from lc_ray.serve.grpc import Operations
from lc_ray.serve.resident import Resident
from lc_ray.serve.rollout import Served, State


@serve.ingress()
class Replica(Operations):
    """The models, warm before any request is taken, and replaced while requests go on."""

    def __init__(self, given: Given) -> None:
        ours, serves = logging.getLogger("lc_ray"), logging.getLogger("ray.serve")
        ours.handlers, ours.propagate = serves.handlers, False  # what fails is in the replica's own log
        self._given = given
        self.models = Models([], given.spec, settings(os.environ), _everywhere)
        self.keys = dict(given.keys)
        self.protocols = asgi(self.models, self.keys, echoed=True)
        self._ready: dict[str, Endpoint] = {}  # by digest: what is served, and what is about to be
        self._served: Served = {}
        self._loading = asyncio.Lock()
        self._resident = Resident(given.spec.replicas.models) if given.spec.replicas.models else None
        wanted = _wanted(given)
        self._rekey(wanted.keys)
        self._load(wanted.models)
        self._adopt(wanted.models)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.protocols

    def given(self) -> Given:
        """What this replica was made of; for those who change what is served."""
        return self._given

    def tell(self, method: str, arguments: Sequence[Any]) -> tuple[str, Any]:
        """This replica's name, and what a method of its models gives; for other replicas."""
        return serve.get_replica_context().replica_id.unique_id, getattr(self.models, method)(*arguments)

    async def load(self, wanted: Served) -> None:
        """Warm up what is not served yet, while requests go on."""
        async with self._loading:
            await asyncio.to_thread(self._load, wanted)

    async def adopt(self, wanted: Served) -> None:
        """Serve this from the next request on. What is not wanted any more answers the requests that it has, and is gone."""
        await self.load(wanted)
        self._adopt(wanted)

    async def check_health(self) -> None:
        """Have Serve replace a replica that can't run its models any more, and keep up with the endpoint's state.

        A replica that was just starting when models were replaced has not been told.
        """
        if not self.models.alive:
            raise RuntimeError("a batching thread has died")
        with contextlib.suppress(ServeError):  # the endpoint is ending
            if isinstance(self._given.source, str):
                wanted = rollout.read(self._given.source)
                self._rekey(wanted.keys)
                if wanted.models != self._served:
                    await self.adopt(wanted.models)

    def _rekey(self, keys: Mapping[str, str]) -> None:
        """Take other keys, if there are any. The new ones come before the others go: where there is none, none is needed."""
        if keys:
            self.keys.update(keys)
            for gone in self.keys.keys() - keys.keys():
                del self.keys[gone]

    def __del__(self) -> None:
        if hasattr(self, "models"):
            self.models.close()

    def _load(self, wanted: Served) -> None:
        for version in (version for versions in wanted.values() for version in versions):
            if version.digest not in self._ready:
                replicas = self._given.spec.replicas
                predictor = load(version.path, max(1, round(replicas.cpu)), replicas.gpu > 0)
                if predictor.artifact.digest != version.digest:
                    raise ArtifactError(f"another artifact than {version.digest} is there now", version.path, "serve it anew")
                self._ready[version.digest] = Endpoint(predictor, self._given.spec, self._resident)
        beside = {version.digest for models in (self._served, wanted) for versions in models.values() for version in versions}
        predictions.alike(self._given.spec.log, (self._ready[digest].predictor.artifact.manifest for digest in beside))

    def _adopt(self, wanted: Served) -> None:
        self._served = wanted
        self.models.replace({name: {self._ready[v.digest]: v.weight for v in versions} for name, versions in wanted.items()})
        kept = {v.digest for versions in wanted.values() for v in versions}
        self._ready = {digest: endpoint for digest, endpoint in self._ready.items() if digest in kept}


async def _everywhere(method: str, *arguments: Any) -> dict[str, Any]:
    """What a method of `Models` gives in each replica, by replica; without those that are just going."""
    handle = serve.get_deployment_handle(NAME, NAME)
    told = await handle.broadcast("tell", method, arguments).results_async(return_exceptions=True)
    return dict(one for one in told if not isinstance(one, BaseException))


def _wanted(given: Given) -> State:
    """What a new replica is to serve."""
    if isinstance(given.source, State):
        return given.source
    if isinstance(given.source, str):
        return rollout.read(given.source)
    return State(address="", url="", models=rollout.served(given.source, given.digests))
