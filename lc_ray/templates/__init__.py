"""Commented job files, one per task, for `lc-ray init`."""

from __future__ import annotations

from importlib import resources

from lc_ray.errors import SpecError


def names() -> list[str]:
    """Tasks that have a job file."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def text(name: str) -> str:
    """The job file of a task.

    Raises:
        SpecError: no such task; lists the known ones.
    """
    if name not in names():
        raise SpecError(f"no job file for '{name}'", fix=f"known: {', '.join(names())}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8")
