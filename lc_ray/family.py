"""Families: folders in which each file is one kind (a task, modality, pruner, quantizer, protocol, platform).

Adding a kind is adding a file. There is no registry, which a decorator would fill in the driver and leave empty in a Ray worker.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from lc_ray.errors import SpecError
from lc_ray.section import meant


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
        raise SpecError(f"no kind '{kind}' in {family}", fix=f"{meant(kind, known)}known kinds: {', '.join(known)}")
    return importlib.import_module(f"lc_ray.{family}.{kind}")
