"""An application builder, for `serve run`, `serve build` and KubeRay's RayService.

    LC_RAY_API_KEY=... serve run lc_ray.serve.build:build artifacts=runs/reviews/model
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import ValidationError, field_validator, model_validator

from lc_ray.errors import ServeError, SpecError
from lc_ray.section import Section, problems
from lc_ray.serve import auth
from lc_ray.serve.app import application
from lc_ray.serving import ServeSpec


class Arguments(Section):
    """What the builder is given. Where Serve listens is said to Serve, not here."""

    artifacts: tuple[str, ...]
    digests: tuple[str, ...] = ()
    serve: ServeSpec = ServeSpec()
    keys: str | None = None

    @field_validator("artifacts", "digests", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.digests and len(self.digests) != len(self.artifacts):
            raise ValueError(f"{len(self.digests)} digests of {len(self.artifacts)} artifacts")
        return self


def build(args: dict[str, Any]) -> Any:
    """The Serve application of artifacts.

    Args:
        args: `artifacts`, a folder or several that every node can reach; `digests`, which they must have, or none is served; `serve`, as in a
            job file; `keys`, a file with a line NAME:KEY for each API key, without which the key is that of `LC_RAY_API_KEY`, as a Secret gives it.

    Raises:
        SpecError: an argument that is missing, unknown or wrong.
        ServeError: there is no key.
    """
    try:
        given = Arguments.model_validate(args)
    except ValidationError as error:
        raise SpecError(problems(error, Arguments), "args") from None
    keys = auth.read(given.keys) if given.keys else {"": key} if (key := auth.find()) else {}
    if not keys:
        raise ServeError("there is no API key", fix=f"set {auth.VARIABLE}, from a Secret, or give keys=FILE")
    return application(given.artifacts, given.serve, keys, {}, given.digests)
