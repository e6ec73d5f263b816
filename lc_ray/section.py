"""What every section of a job file is, and what is wrong with one in words."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def problems(error: ValidationError, section: type[BaseModel], prefix: str = "", root: str = "") -> str:
    """All that Pydantic found wrong, a line each; see `explain`."""
    return "\n  ".join(explain(e, section, prefix, root) for e in error.errors())


def explain(error: Any, section: type[BaseModel], prefix: str = "", root: str = "") -> str:
    """One of Pydantic's errors in a sentence.

    Args:
        error: of a `ValidationError`.
        section: that was validated.
        prefix: of the field's path.
        root: what to call the section itself.
    """
    path = [str(p) for p in error["loc"]]
    head = f"{field}: " if (field := (prefix + ".".join(path)).rstrip(".") or root) else ""
    if error["type"] == "extra_forbidden":
        return f"{head}unknown field{nearest(path[-1], _fields_at(section, path[:-1]))}"
    if error["type"] == "missing":
        return f"{head}this field is required"
    given = "" if isinstance(error.get("input"), dict) else f" (got {error.get('input')!r})"
    return f"{head}{error['msg'].removeprefix('Value error, ')}{given if 'got' not in error['msg'] else ''}"


def nearest(name: str, known: list[str]) -> str:
    """Which known name a wrong one may be meant for, or all of them."""
    near = difflib.get_close_matches(name, known, 1)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(known)})" if known else ""


def _fields_at(section: Any, path: list[str]) -> list[str]:
    """Field names of the section at a path within a section."""
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)
