"""Parts of requests, checked field by field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lc_ray.serve.http import HttpError

_BRANCHES = {"str", "Named", "literal"}  # of fields that may be of several types, which pydantic writes into the place of an error


class Form(BaseModel):
    """An object without other fields than those that are known."""

    model_config = ConfigDict(extra="forbid")


class Generation(Form):
    """How a language model answers."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None

    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(one for one in given if one)


F = TypeVar("F", bound=Form)


def parse(kind: type[F], content: Any, within: str = "") -> F:
    """A part of a request as a form.

    Args:
        kind: of form.
        content: the part.
        within: where it is in the request, ending in a dot; the whole request if not given.

    Raises:
        HttpError: 400, with the first field that does not fit.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors()
        first = max((e for e in found if e["loc"][:1] == found[0]["loc"][:1]), key=lambda e: len(e["loc"]))  # of a value's types the best fitting
        where = within + ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in _BRANCHES)))
        what = "this field is not known here" if first["type"] == "extra_forbidden" else first["msg"]
        raise HttpError(400, "invalid_value", f"{where.rstrip('.')}: {what}", where.rstrip(".")) from None
