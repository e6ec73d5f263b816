"""What every section of a job file is, how it is read, how a field of one is replaced, and what is wrong with one in words."""

from __future__ import annotations

import difflib
import json
import os
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from lc_ray.errors import SpecError


def _found(name: str) -> str:
    """A path from here as an absolute one: workers run elsewhere. Other names as they are."""
    path = os.path.expanduser(name)
    return os.path.realpath(path) if "://" not in name and os.path.exists(path) else name


Base = Annotated[str, AfterValidator(_found)]  # a pretrained model's name or place


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's, which would take the last of several values of a key without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"'{key.value}' is there twice", key.start_mark)
            seen.add(key.value)
        return node


def load(text: str) -> Any:
    """What YAML says.

    Raises:
        yaml.YAMLError: it is none, or a key is there twice.
        ValueError: a date that is none.
    """
    return yaml.load(text, _Loader)


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
    found = error.errors()
    told = [e for e in found if e["type"] != "too_short" or not any(_inside(e, other) for other in found)]  # Pydantic counts right items only
    return "\n  ".join(explain(e, section, prefix, root) for e in told)


def _inside(error: Any, other: Any) -> bool:
    """Whether another error is about a part of what an error is about."""
    return len(other["loc"]) > len(error["loc"]) and other["loc"][: len(error["loc"])] == error["loc"]


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
    known = getattr(_at(section, path[:-1]), "model_fields", {})
    if error["type"] == "extra_forbidden":
        return f"{head}unknown field{nearest(path[-1], list(known))}"
    described = known[path[-1]].description if path and path[-1] in known else None
    about = f": {described}" if described and error["type"] in ("missing", "string_pattern_mismatch") else ""
    if error["type"] == "missing":
        return f"{head}this field is required{about}"
    given = "" if isinstance(error.get("input"), dict) or "got" in error["msg"] else f" (got {error.get('input')!r})"
    return f"{head}{_expected(error, section, path)}{given}{about}"


def _expected(error: Any, section: type[BaseModel], path: list[str]) -> str:
    """What Pydantic says, in the words of a job file."""
    if error["type"] == "tuple_type":
        return "expected a list, as [a, b]"
    if error["type"] == "model_type":
        return f"expected a section, as {{field: value}}, of the fields {', '.join(getattr(_at(section, path), 'model_fields', {}))}"
    return str(error["msg"]).removeprefix("Value error, ")


def nearest(name: str, known: list[str]) -> str:
    """Which known name a wrong one may be meant for, or all of them."""
    near = meant(name, known).rstrip()
    return f" ({near})" if near else f" (known: {', '.join(known)})" if known else ""


def meant(name: str, known: list[str]) -> str:
    """The known name that is most like a wrong one, as a question before other advice; nothing if none is like it."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{near[0]}'? " if near else ""


def _at(section: Any, path: list[str]) -> Any:
    """The section at a path within a section; None where there is none."""
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        options = [annotation, *get_args(annotation)]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if section is None:
            return None
    return section
