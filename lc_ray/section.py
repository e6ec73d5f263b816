"""What every section of a job file is, how a field of one is replaced, and what is wrong with one in words."""

from __future__ import annotations

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from lc_ray.errors import SpecError


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def override(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested dict with dotted paths set; list items are numbers: `data.inputs.0.max_length`.

    Raises:
        SpecError: a list has no such item.
    """
    tree = json.loads(json.dumps(tree, default=str))  # YAML has dates, too
    for path, value in values.items():
        *parents, last = path.split(".")
        node: Any = tree
        for part in parents:
            key = _key(node, part, path)
            if isinstance(node, dict):
                node.setdefault(key, {})
            if not isinstance(node[key], dict | list):
                node[key] = {}
            node = node[key]
        node[_key(node, last, path)] = value
    return tree


def _key(node: Any, part: str, path: str) -> Any:
    """Key of a dict, or place in a list, that a part of a dotted path names."""
    if isinstance(node, dict):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        raise SpecError(f"no item '{part}' in a list of {len(node)}; the first is 0", path, "replace the list as a whole to have more items")
    return int(part)


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
