"""What every platform shares: its choice, its settings, and how its calls are told before they are made."""

from __future__ import annotations

import gzip
import importlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from lc_ray import family
from lc_ray.artifact import Artifact
from lc_ray.errors import DeployError
from lc_ray.section import Section, problems
from lc_ray.spec import digest

TAG = "lc_ray"  # of all that is made on a platform; its value is the artifact's digest
_NAMES = {
    "sagemaker": ("amazon sagemaker", "aws sagemaker", "aws"),
    "vertex": ("vertex ai", "google vertex ai", "google cloud vertex ai", "google cloud", "google cloud platform", "gcp"),
    "kubernetes": ("k8s",),
    "ray": ("ray serve", "local"),
}


class Machines(Section):
    """Settings of platforms that count machines."""

    least: int = Field(1, ge=1, description="machines")
    most: int = Field(1, ge=1, description="machines; more than the least, and they follow the load")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is more than most ({self.most})")
        return self


@dataclass(frozen=True)
class Call:
    """One call of a platform's client, decided before any is made.

    Attributes:
        name: client and method.
        arguments: of the method.
        note: what the arguments can't say.
    """

    name: str
    arguments: dict[str, Any]
    note: str = ""

    def __str__(self) -> str:
        note = f"  # {self.note}" if self.note else ""
        return f"{self.name}({json.dumps(self.arguments, indent=2)}){note}"


def find(name: str) -> ModuleType:
    """A platform's file, by its name or one that the platform gives itself, such as "Amazon SageMaker".

    Raises:
        DeployError: an unknown platform; the message lists the known ones.
    """
    known, plain = family.kinds("deploy"), re.sub(r"[\s_-]+", " ", str(name)).strip().lower()
    kind = next((kind for kind, names in _NAMES.items() if plain in names), plain)
    if kind not in known:
        raise DeployError(f"platform '{name}' is not known here", fix=f"known platforms: {', '.join(known)}")
    return family.load("deploy", kind)


def parse(platform: ModuleType, values: Mapping[str, Any]) -> Any:
    """A platform's settings.

    Raises:
        DeployError: every setting that is missing, unknown or wrong.
    """
    section: type[Section] = platform.Settings
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        fix = "give each as --set NAME=VALUE, or as an argument of DeployModel"
        raise DeployError(problems(error, section), f"settings of {platform.__name__.rpartition('.')[2]}", fix) from None


def needed(module: str, extra: str) -> Any:
    """A module of a platform's client, which only those have who deploy there.

    Raises:
        DeployError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeployError(f"{module} can't be imported: {error}", fix=f"pip install 'lc_ray[{extra}]'") from None


def label(name: str, most: int = 63) -> str:
    """A name as platforms allow them: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:most].strip("-") or "model"


def foreign(name: str, mark: str = f"tag '{TAG}'", fix: str = "--set endpoint=ANOTHER_NAME") -> DeployError:
    """Why an endpoint that somebody else has made is neither changed nor deleted."""
    return DeployError(f"an endpoint of this name is there that lc_ray has not made: it lacks the {mark}", name, fix)


def need_no_gpu(artifact: Artifact, wanted: bool) -> None:
    """See that a GPU that is wanted would be used.

    Raises:
        DeployError: it would not.
    """
    if wanted and (engine := artifact.manifest.engine) != "none":
        fix = "choose machines without GPUs, or deploy the model as it was before it was quantized"
        raise DeployError(f"this model is {engine}, and runs on CPUs: GPUs would be paid for in vain", str(artifact.path), fix)


def version(artifact: Artifact, settings: Section) -> str:
    """Names what an artifact and its settings make: equal content, equal name."""
    return digest(artifact.digest, settings)


def tarball(artifact: Artifact, file: Path) -> None:
    """Write an artifact as a tar.gz, of the same bytes wherever and whenever it is written."""
    # Weights hardly get smaller, so the quickest compression is enough.
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for name in artifact.names:
            with open(artifact.path / name, "rb") as content:
                about = tarfile.TarInfo(name)
                about.size, about.mode = (artifact.path / name).stat().st_size, 0o644
                tar.addfile(about, content)
