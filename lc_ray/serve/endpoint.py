"""Served models without their cluster: validation, batching and the protocols, as an ASGI application."""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from starlette.applications import Starlette

from lc_ray import family
from lc_ray.errors import DataError
from lc_ray.predictor import Predictor
from lc_ray.serve import generation
from lc_ray.serve.batching import Batcher, QueueFull
from lc_ray.serve.http import HttpError, application
from lc_ray.serve.urls import Fetcher
from lc_ray.spec import ServeSpec


class Endpoint:
    """One version of a model, warm, that answers requests. Its threads end with it: once it is served no more and its last request is answered.

    Args:
        predictor: the model, which is warmed up here.
        spec: limits and batching.

    Attributes:
        sample: an answer, whose fields all answers have.
        media: "image" or "audio" of the columns whose values are files.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        self.predictor, self.spec = predictor, spec
        self.name, self.version = predictor.artifact.manifest.name, predictor.artifact.digest
        example = {column: modality.example for column, modality in predictor.columns.items()}
        language = generation.suits(predictor)
        # A language model's answer is as many runs as it has tokens, in which it gets warm enough.
        for rows in (1,) if language else (1, spec.batch.max, spec.batch.max):
            self.sample = predictor.predict([example] * rows, spec.batch.max)[0]
        self.batcher = Batcher(predictor, spec.batch.max, spec.batch.wait, spec.queue)
        self.generator = generation.Generator(predictor, spec) if language else None
        self.media = {column: modality.MEDIA for column, modality in predictor.columns.items() if hasattr(modality, "MEDIA")}
        self.urls = Fetcher(spec.urls)
        self.close = weakref.finalize(self, _end, self.batcher, self.generator)

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self.batcher.alive and (self.generator is None or self.generator.alive)

    async def predict(self, instances: Any) -> list[dict[str, Any]]:
        """Answers to instances as they came in a request, in their order.

        Raises:
            HttpError: 400 for an instance that can't be used, 413 for too many of them, 503 when too many requests wait.
        """
        if not isinstance(instances, list):
            raise HttpError(400, "malformed_request", f"expected a list, got {type(instances).__name__}", "instances")
        if len(instances) > self.spec.max_instances:
            raise HttpError(413, "too_many_instances", f"{len(instances)} instances; a request may have {self.spec.max_instances}", "instances")
        try:
            return await self.batcher.run(await self._clean(instances))
        except QueueFull:
            raise HttpError(503, "overloaded", f"{self.spec.queue} requests wait already; try again later", headers={"retry-after": "1"}) from None
        except DataError as error:
            raise HttpError(400, "invalid_instance", error.what, f"instances.{error.where}".rstrip(".")) from None

    async def _clean(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Instances as clean values by column.

        Raises:
            DataError: one can't be used; `where` is its number and column.
        """
        if not self.media:
            return self._decoded(instances)
        columns = list(self.predictor.columns)
        rows = instances if len(columns) > 1 else [row if isinstance(row, dict) else {columns[0]: row} for row in instances]
        # A large picture takes a while, in which others are to be answered.
        return await asyncio.to_thread(self._decoded, await self.urls.fetch(rows, list(self.media)))

    def _decoded(self, instances: list[Any]) -> list[dict[str, Any]]:
        rows = []
        for number, row in enumerate(instances):
            try:
                rows.append(self.predictor.decode(row))
            except DataError as error:
                raise DataError(error.what, f"{number}.{error.where}".rstrip(".")) from None
        return rows


def _end(batcher: Batcher, generator: generation.Generator | None) -> None:
    batcher.close()
    if generator:
        generator.close()


class Models:
    """The models of an application, which may be replaced at any time; what protocol files are given.

    Args:
        endpoints: one per model and version; of one model's versions the last is the one that answers unless another is asked for.
        spec: limits.
        settings: what protocols asked of the environment, see `settings`.
    """

    def __init__(self, endpoints: Sequence[Endpoint], spec: ServeSpec, settings: Mapping[str, str] | None = None) -> None:
        self.spec, self.settings = spec, dict(settings or {})
        self._versions: dict[str, dict[Endpoint, float]] = {}
        for endpoint in endpoints:
            known = self._versions.setdefault(endpoint.name, {})
            known.update(dict.fromkeys(known, 0.0))
            known[endpoint] = 1.0

    def replace(self, versions: Mapping[str, Mapping[Endpoint, float]]) -> None:
        """Serve other models, or others of their versions, from the next request on.

        Args:
            versions: of each model, with each one's share of the requests that ask for no version.
        """
        self._versions = {name: dict(known) for name, known in versions.items()}

    def names(self) -> list[str]:
        """Of all models, in the order given."""
        return list(self._versions)

    def versions(self, name: str) -> list[Endpoint]:
        """All versions of a model.

        Raises:
            HttpError: 404, there is no such model.
        """
        return list(self.weights(name))

    def weights(self, name: str) -> Mapping[Endpoint, float]:
        """All versions of a model, with their shares of the requests that ask for none.

        Raises:
            HttpError: 404, there is no such model.
        """
        if name not in self._versions:
            raise HttpError(404, "unknown_model", f"no model '{name}' is served here; served: {', '.join(self.names())}")
        return self._versions[name]

    def choose(self, name: str | None = None, version: str | None = None) -> Endpoint:
        """The endpoint that is to answer a request, drawn by weight where the request leaves it open.

        Args:
            name: of the model; not needed where there is but one.
            version: digest of the artifact, if the request insists on one.

        Raises:
            HttpError: 404, there is no such model or version; 400, there are several models and none is named.
        """
        if name is None:
            if len(self._versions) != 1:
                raise HttpError(400, "model_not_named", f"several models are served here: {', '.join(self.names())}", "model")
            name = self.names()[0]
        known = self.weights(name)
        if version is None:
            return random.choices(list(known), list(known.values()))[0]
        for endpoint in known:
            if endpoint.version == version:
                return endpoint
        raise HttpError(404, "unknown_version", f"no version '{version}' of '{name}' is served here: {', '.join(e.version for e in known)}")

    @property
    def alive(self) -> bool:
        """Whether all of them can answer."""
        return all(endpoint.alive for known in self._versions.values() for endpoint in known)

    def close(self) -> None:
        """End their threads once their batches are done."""
        for endpoint in (endpoint for known in self._versions.values() for endpoint in known):
            endpoint.close()


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that protocols need, of those that are set."""
    names = [name for protocol in protocols() for name in getattr(protocol, "SETTINGS", ())]
    return {name: environment[name] for name in names if environment.get(name)}


def protocols() -> list[ModuleType]:
    """The files of lc_ray/serve/protocols."""
    return [family.load("serve.protocols", kind) for kind in family.kinds("serve.protocols")]


def public(protocol: ModuleType, models: Models) -> Sequence[str]:
    """Paths of a protocol that need no key."""
    found: Sequence[str] = protocol.public(models) if hasattr(protocol, "public") else protocol.PUBLIC
    return found


def asgi(models: Models, digests: Sequence[str]) -> Starlette:
    """The application that speaks every protocol in lc_ray/serve/protocols.

    Args:
        models: that are served.
        digests: of the API keys; none means that no key is needed.
    """
    known = protocols()
    routes = [route for protocol in known for route in protocol.routes(models)]
    free = [path for protocol in known for path in public(protocol, models)]
    shapes = {path: shape for protocol in known for path, shape in getattr(protocol, "ERRORS", {}).items()}
    return application(routes, free, digests, models.spec, shapes)
