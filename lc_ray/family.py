"""Families: folders in which each file is one kind (a task, modality, pruner, quantizer, protocol, platform).

Adding a kind is adding a file. There is no registry, which a decorator would fill in the driver and leave empty in a Ray worker.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from lc_ray.errors import SpecError


def kinds(family: str) -> list[str]:
    """Names of the kinds in a family, for example `kinds("tasks")`."""
    package = importlib.import_module(f"lc_ray.{family}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def load(family: str, kind: str) -> ModuleType:
    """Import exactly the file of one kind.

    Raises:
        SpecError: no such kind; the message lists the valid ones.
    """
    known = kinds(family)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise SpecError(f"no kind '{kind}' in {family}", fix=f"{hint}known kinds: {', '.join(known)}")
    return importlib.import_module(f"lc_ray.{family}.{kind}")
