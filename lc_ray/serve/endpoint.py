"""One served model without its cluster: validation, batching and the protocols, as an ASGI application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette

from lc_ray import family
from lc_ray.errors import DataError
from lc_ray.predictor import Predictor
from lc_ray.serve.batching import Batcher, QueueFull
from lc_ray.serve.http import HttpError, application
from lc_ray.spec import ServeSpec


class Endpoint:
    """A model that answers requests; what protocol files are given.

    Args:
        predictor: the model, which is warmed up here.
        spec: limits and batching.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        self.predictor, self.spec = predictor, spec
        self.name, self.version = predictor.artifact.manifest.name, predictor.artifact.digest
        example = {column: modality.example for column, modality in predictor.columns.items()}
        for rows in (1, spec.batch.max, spec.batch.max):
            predictor.predict([example] * rows, spec.batch.max)
        self.batcher = Batcher(predictor, spec.batch.max, spec.batch.wait, spec.queue)

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
            return await self.batcher.run([self._clean(number, row) for number, row in enumerate(instances)])
        except QueueFull:
            raise HttpError(503, "overloaded", f"{self.spec.queue} requests wait already; try again later", headers={"retry-after": "1"}) from None
        except DataError as error:
            raise HttpError(400, "invalid_instance", error.what, f"instances.{error.where}".rstrip(".")) from None

    def _clean(self, number: int, row: Any) -> dict[str, Any]:
        try:
            return self.predictor.decode(row)
        except DataError as error:
            raise DataError(error.what, f"{number}.{error.where}".rstrip(".")) from None


def asgi(endpoint: Endpoint, digests: Sequence[str]) -> Starlette:
    """The application that speaks every protocol in lc_ray/serve/protocols.

    Args:
        endpoint: the model.
        digests: of the API keys; none means that no key is needed.
    """
    protocols = [family.load("serve.protocols", kind) for kind in family.kinds("serve.protocols")]
    routes = [route for protocol in protocols for route in protocol.routes(endpoint)]
    public = [path for protocol in protocols for path in protocol.PUBLIC]
    return application(routes, public, digests, endpoint.spec.timeout)
