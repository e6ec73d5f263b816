"""Served models without their cluster: validation, batching and the protocols, as an ASGI application."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from prometheus_client import Metric
from starlette.applications import Starlette
from starlette.middleware import Middleware

from lc_ray import artifact, family
from lc_ray.errors import DataError
from lc_ray.modalities import _media
from lc_ray.predictor import Predictor, Rows
from lc_ray.serve import language, metrics, record
from lc_ray.serve.batching import Batcher, QueueFull
from lc_ray.serve.drift import Window
from lc_ray.serve.generation import Generator, suits
from lc_ray.serve.http import HttpError, application, overloaded
from lc_ray.serve.observe import Observe, Observers
from lc_ray.serve.resident import Resident
from lc_ray.serve.urls import Fetcher
from lc_ray.serve.vllm import generator_of
from lc_ray.serving import ServeSpec

Everywhere = Callable[..., Awaitable[dict[str, Any]]]
_decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decoder")  # of all models: while it is decoded, a picture may take hundreds of MB


class Endpoint:
    """One version of a model, warm, that answers requests. Its threads end with it: once it is served no more and its last request is answered.

    Args:
        predictor: the model, which is warmed up here.
        spec: limits and batching.
        resident: decides with others whether the model stays in memory; it does if not given.

    Attributes:
        created: when the artifact was, in seconds since 1970.
        sample: an answer, whose fields all answers have.
        media: "image" or "audio" of the columns whose values are files.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec, resident: Resident | None = None) -> None:
        self.predictor, self.spec = predictor, spec
        self.name, self.version = predictor.artifact.manifest.name, predictor.artifact.digest
        self.created = (predictor.artifact.path / artifact.MANIFEST).stat().st_mtime
        example = {column: modality.example for column, modality in predictor.columns.items()}
        talks = suits(predictor)
        if resident and not talks:
            predictor.used, predictor.room = resident.used, resident.room
        # A language model's answer is as many runs as it has tokens, in which it gets warm enough.
        for rows in (1,) if talks else (1, spec.batch.max, spec.batch.max):
            self.sample = predictor.predict([example] * rows, spec.batch.max)[0]
        self.drift = Window(predictor)
        seen = functools.partial(_seen, self.name, self.version, self.drift)
        made = generator_of(predictor, spec) if talks else Batcher(predictor, spec.batch.max, spec.batch.wait, spec.queue, seen)
        self.worker: Generator | Batcher = made
        self.media = {column: modality.MEDIA for column, modality in predictor.columns.items() if hasattr(modality, "MEDIA")}
        self.urls = Fetcher(spec.urls)
        self.close = weakref.finalize(self, made.close)

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self.worker.alive

    @property
    def generator(self) -> Generator | None:
        """What runs it, if it is a language model."""
        return self.worker if isinstance(self.worker, Generator) else None

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self.worker.waiting

    async def predict(self, instances: Any, parameters: Any = None) -> list[dict[str, Any]]:
        """Answers to instances as they came in a request, in their order.

        Args:
            instances: a list.
            parameters: of the request, which language models take; see `language.Parameters`.

        Raises:
            HttpError: 400 for an instance or parameter that can't be used, 413 for too many instances or too much in their files, 503 when
                too many requests wait.
        """
        if not isinstance(instances, list):
            raise HttpError(400, "malformed_request", f"expected a list, got {type(instances).__name__}", "instances")
        if len(instances) > self.spec.max_instances:
            raise HttpError(413, "too_many_instances", f"{len(instances)} instances; a request may have {self.spec.max_instances}", "instances")
        worker = self.worker
        if parameters and isinstance(worker, Batcher):
            raise HttpError(400, "unknown_parameter", "this model takes no parameters", "parameters")
        seen = record.current()
        seen.rows, began, left = len(instances), time.monotonic(), [self.spec.max_media]
        try:
            rows = await self._fetched(instances)
            clean = await self._clean(rows, left)
            seen.spans.append(("prepare", began, time.monotonic()))
            answers = await (worker.run(clean) if isinstance(worker, Batcher) else language.answers(worker, clean, parameters, self.drift.add))
        except QueueFull:
            raise overloaded(self.spec.queue) from None
        except DataError as error:
            where = f"instances.{error.where}".rstrip(".")
            if left[0] < 0:
                told = f"pictures and sounds of a request may have {self.spec.max_media} pixels and samples together"
                raise HttpError(413, "media_too_large", told, where) from None
            raise HttpError(400, "invalid_instance", error.what, where) from None
        if self.spec.log:
            seen.predicted = record.Predicted(rows, answers, list(self.predictor.columns), self.media)
        return answers

    async def _fetched(self, instances: list[Any]) -> list[Any]:
        """Instances with bytes in place of URLs.

        Raises:
            DataError: a file can't be had; `where` is its instance's number and column, or "" where all of them took too long.
        """
        if not self.media:
            return instances
        columns = list(self.predictor.columns)
        # Base64 alone may be an object, too.
        rows = instances if len(columns) > 1 else [row if isinstance(row, dict) and row.keys() != {"b64"} else {columns[0]: row} for row in instances]
        return await self.urls.fetch(rows, list(self.media))

    async def _clean(self, instances: list[Any], left: list[int]) -> list[dict[str, Any]]:
        """Instances as clean values by column. Files are decoded beside the event loop, a row at a time, so that requests take turns, and one
        that nobody waits for any more stops at its next row.

        Args:
            instances: of one request.
            left: pixels and samples that it may have, see `_media.limited`.

        Raises:
            DataError: one can't be used; `where` is its number and column.
        """
        if not self.media:
            return [self._decoded(number, row, left) for number, row in enumerate(instances)]
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(_decoders, self._decoded, number, row, left) for number, row in enumerate(instances)]

    def _decoded(self, number: int, row: Any, left: list[int]) -> dict[str, Any]:
        try:
            with _media.limited(left):
                return self.predictor.decode(row)
        except DataError as error:
            raise DataError(error.what, f"{number}.{error.where}".rstrip(".")) from None


def _seen(name: str, version: str, drift: Window, rows: Rows, answers: list[dict[str, Any]]) -> None:
    """Take note of a batch that ran. No method: the thread that calls it would keep its endpoint."""
    metrics.batch(name, version, len(answers))
    drift.add(rows, answers)


def _chosen(endpoint: Endpoint) -> Endpoint:
    """Told to the record of the request."""
    seen = record.current()
    seen.model, seen.version = endpoint.name, endpoint.version
    return endpoint


class Models:
    """The models of an application, which may be replaced at any time; what protocol files are given.

    Args:
        endpoints: one per model and version; of one model's versions the last is the one that answers unless another is asked for.
        spec: limits.
        settings: what protocols asked of the environment, see `settings`.
        everywhere: gives what a method gives in each replica, by replica; not needed where there is but one.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], spec: ServeSpec, settings: Mapping[str, str] | None = None, everywhere: Everywhere | None = None
    ) -> None:
        self.spec, self.settings, self._everywhere = spec, dict(settings or {}), everywhere
        self.observers = Observers(spec)
        self._versions: dict[str, dict[Endpoint, float]] = {}
        self._gone = set[tuple[str, str]]()
        for endpoint in endpoints:
            known = self._versions.setdefault(endpoint.name, {})
            known.update(dict.fromkeys(known, 0.0))
            known[endpoint] = 1.0

    def replace(self, versions: Mapping[str, Mapping[Endpoint, float]]) -> None:
        """Serve other models, or others of their versions, from the next request on. Metrics of those that go are told until it is called again.

        Args:
            versions: of each model, with each one's share of the requests that ask for no version.
        """
        before, self._versions = self._about(), {name: dict(known) for name, known in versions.items()}
        for model, version in self._gone - self._about():
            metrics.forget(model, version)
        self._gone = before - self._about()

    def _about(self) -> set[tuple[str, str]]:
        """Name and version of each endpoint."""
        return {(endpoint.name, endpoint.version) for known in self._versions.values() for endpoint in known}

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

    def main(self, name: str) -> Endpoint:
        """The version of a model that has the largest share of its requests.

        Raises:
            HttpError: 404, there is no such model.
        """
        known = self.weights(name)
        return max(known, key=lambda endpoint: known[endpoint])

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
            return _chosen(random.choices(list(known), list(known.values()))[0])
        for endpoint in known:
            if endpoint.version == version:
                return _chosen(endpoint)
        raise HttpError(404, "unknown_version", f"no version '{version}' of '{name}' is served here: {', '.join(e.version for e in known)}")

    @property
    def alive(self) -> bool:
        """Whether all of them can answer."""
        return all(endpoint.alive for known in self._versions.values() for endpoint in known)

    def metrics(self) -> list[Metric]:
        """What this process knows for Prometheus."""
        return metrics.collect(endpoint for name in self.names() for endpoint in self.versions(name))

    def drift(self, name: str) -> dict[str, dict[str, list[int]]]:
        """Counts of the last rows by a model's version, by feature."""
        return {endpoint.version: endpoint.drift.counts() for endpoint in self.versions(name)}

    async def everywhere(self, method: str, *arguments: Any) -> dict[str, Any]:
        """What a method of these gives in each replica, by replica; by "" where there is but one."""
        return await self._everywhere(method, *arguments) if self._everywhere else {"": getattr(self, method)(*arguments)}

    def close(self) -> None:
        """End their threads once their batches are done, and all that was observed is written."""
        for endpoint in (endpoint for known in self._versions.values() for endpoint in known):
            endpoint.close()
        self.observers.close()


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


def asgi(models: Models, keys: Mapping[str, str], echoed: bool = False) -> Starlette:
    """The application that speaks every protocol in lc_ray/serve/protocols.

    Args:
        models: that are served.
        keys: names of the API keys by their digests; none means that no key is needed.
        echoed: whether the server around sends `x-request-id` back.
    """
    known = protocols()
    routes = [route for protocol in known for route in protocol.routes(models)]
    free = [path for protocol in known for path in public(protocol, models)]
    shapes = {path: shape for protocol in known for path, shape in getattr(protocol, "ERRORS", {}).items()}
    unlimited = [path for protocol in known for path in getattr(protocol, "UNLIMITED", ())]
    observe = Middleware(Observe, observer=models.observers, echoed=echoed)
    return application(routes, free, unlimited, keys, models.spec, shapes, observe)
