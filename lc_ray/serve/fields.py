"""Parts of requests, checked field by field."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lc_ray.serve.http import HttpError

# Of fields that may be of several types, which pydantic writes into the place of an error.
_BRANCHES = {"str", "constrained-str", "literal", "Named", "Name", "Allowed", "Part", "Refusal"}

_MOST = 1000  # fields of an object, each of which may be an error to be told of

T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]  # one wrong item is enough: of a million, telling of each takes gigabytes
Stop = Annotated[str, Field(max_length=256)]  # each is looked for at every token


class Form(BaseModel):
    """An object without other fields than those that are known."""

    model_config = ConfigDict(extra="forbid")


class Generation(Form):
    """How a language model answers."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=16)] | None = None

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
    for field, value in [("", content), *content.items()] if isinstance(content, dict) else ():
        if isinstance(value, dict) and len(value) > _MOST:
            raise HttpError(400, "invalid_value", f"more fields than the {_MOST} that an object may have", (within + field).rstrip("."))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        same = (e for e in found if e["loc"][:1] == found[0]["loc"][:1])
        first = max(same, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))  # of a value's types the best fitting
        parts = [str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in _BRANCHES))]
        where = (within + ".".join(parts)).rstrip(".")
        what = "this field is not known here" if first["type"] == "extra_forbidden" else first["msg"]
        raise HttpError(400, "invalid_value", f"{where}: {what}" if where else what, where) from None
