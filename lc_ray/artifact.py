"""The record between stages: a folder of safetensors and JSON, never a pickle.

    manifest.json      everything but the weights, with a sha256 of every other file. Written last: it exists, so the artifact is whole
    model.safetensors  weights
    processor/         per input column: tokenizer, image processor, feature extractor
    engine/            compiled or exported form for serving
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from lc_ray.errors import ArtifactError, first_line
from lc_ray.storage import cached, names_in, storage_path, whole_folder

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
FORMAT = 1  # of manifest.json; counts up where an older lc_ray could not read it


class Feature(BaseModel):
    """What was measured of many rows, in bins: of numbers between edges, or of categories.

    Attributes:
        edges: of bins of numbers.
        categories: that have a bin each.
        counts: rows in each bin, see `evaluate.drift`.
    """

    model_config = ConfigDict(extra="forbid")

    edges: list[float] = []
    categories: list[str] = []
    counts: list[int] = []


class Manifest(BaseModel):
    """What `manifest.json` holds.

    Attributes:
        task: kind, and what it needs to decode a prediction, for example `labels`.
        inputs: one `InputSpec` per column, in order.
        architecture: configuration of each encoder, plus `shapes` and `attributes` where pruning changed them.
        engine: file in lc_ray/quantize that runs it: "none" is PyTorch in fp32.
        quantization: scheme, calibration rows, and versions of the tools.
        metrics: measured quality on the held-out rows.
        cost: parameters, bytes, latency in milliseconds, rows per second.
        statistics: of training rows and of answers, by feature, with which requests are compared.
        lineage: parent digest, job, seed, segment history, versions.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    name: str
    task: dict[str, Any]
    inputs: list[dict[str, Any]]
    architecture: dict[str, Any]
    engine: str = "none"
    quantization: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    cost: dict[str, float] = {}
    statistics: dict[str, Feature] = {}
    lineage: dict[str, Any] = {}
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk.

    Attributes:
        path: its folder on this machine.
        uri: of the bucket's folder that this is a copy of, if it is.
    """

    path: Path
    manifest: Manifest = field(repr=False)
    uri: str = ""

    @property
    def place(self) -> str:
        """Where other machines find it, if they share storage."""
        return self.uri or str(self.path.resolve())

    @property
    def digest(self) -> str:
        """Version of the model: sha256 of its manifest, which holds that of every file."""
        return sha256(self.path / MANIFEST)[:16]

    @property
    def names(self) -> list[str]:
        """Its files, and none that lies beside them; the manifest last, as it is written."""
        return [*sorted(self.manifest.files), MANIFEST]

    @property
    def bytes(self) -> int:
        """Size on disk of what serving needs: the engine if there is one, else the weights."""
        engine = self.path / "engine"
        files = engine.rglob("*") if engine.exists() else [self.path / WEIGHTS]
        return sum(f.stat().st_size for f in files if f.is_file())


def exists(folder: str | Path) -> bool:
    """Whether a whole artifact is there."""
    return (Path(folder) / MANIFEST).exists()


def write(folder: str | Path, manifest: Manifest, fill: Callable[[Path], None]) -> Artifact:
    """Write an artifact: `fill` puts its files into a new folder, which takes its name once all is on disk.

    Raises:
        ArtifactError: no room or no permission; nothing half-written is left.
    """
    folder = Path(folder)
    try:
        with whole_folder(folder) as partial:
            fill(partial)
            files = {name: sha256(partial / name) for name in names_in(partial)}
            manifest = manifest.model_copy(update={"files": files})
            (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2), "utf-8")
            for name in files:  # which some libraries write for their owner alone
                (partial / name).chmod((partial / MANIFEST).stat().st_mode)
    except (OSError, SafetensorError) as error:
        full = os.strerror(errno.ENOSPC)
        fix = "free some space, then run the same command again: finished stages are kept" if full in str(error) else ""
        raise ArtifactError(f"can't write the artifact: {getattr(error, 'strerror', None) or error}", str(folder), fix) from error
    return Artifact(folder, manifest)


def read(folder: str | Path, verify: bool = True) -> Artifact:
    """Open an artifact.

    Args:
        folder: a path, or a URI (s3://, gs://, hdfs://), of which a copy on this machine is opened.
        verify: whether every file is compared with its hash.

    Raises:
        ArtifactError: missing, of a newer format, incomplete or altered.
    """
    where = str(folder)
    uri = where if "://" in where else ""
    try:
        if uri and not (storage_path(uri) / MANIFEST).exists():  # what else is in a bucket's folder may be terabytes
            raise FileNotFoundError(uri)
        folder = cached(storage_path(uri)) if uri else Path(folder)
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        if isinstance(found, dict) and isinstance(newer := found.get("format"), int) and newer > FORMAT:
            raise ArtifactError(f"written by a newer lc_ray, in format {newer}; this one reads {FORMAT}", where, "install a newer lc_ray")
        manifest = Manifest.model_validate(found)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError("not an artifact: it has no manifest.json", where, "give the folder that `lc-ray run` printed") from None
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise ArtifactError(f"manifest.json can't be read: {told}", where, "give the folder that `lc-ray run` printed") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"manifest.json can't be read: {error}", where) from None
    except OSError as error:
        raise ArtifactError(f"can't be read: {first_line(error)}", where) from None
    for name, expected in manifest.files.items():
        file = folder / name
        if folder.resolve() not in file.resolve().parents:
            raise ArtifactError(f"manifest.json names a file outside the artifact: {name}", str(folder))
        if not file.exists():
            raise ArtifactError(f"{name} is missing", str(folder))
        if verify and sha256(file) != expected:
            raise ArtifactError(f"{name} was altered after the artifact was written", str(folder))
    return Artifact(folder, manifest, uri)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
