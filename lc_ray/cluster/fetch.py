"""How a run's folder gets back: by a bucket that both sides reach, or file by file through the cluster's dashboard."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pyarrow.fs

from lc_ray import artifact
from lc_ray.data.files import system_of
from lc_ray.errors import ArtifactError, ClusterError

_KEPT = ("record.json", "report.html", "events.jsonl")
_MODEL = "model"
Download = Callable[[str, Path], None]  # name in the run's folder, file to write


def publish(folder: Path, results: str | None) -> None:
    """Copy what matters of a finished run below a URI, if there is one, under the run's name.

    Raises:
        ClusterError: it can't be written.
    """
    if results is None:
        return
    try:
        system, path = system_of(results)
        target = f"{path.rstrip('/')}/{folder.name}"
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder)
            if file.is_file() and (name.parts[0] == _MODEL or str(name) in _KEPT):
                system.create_dir(str(PurePosixPath(f"{target}/{name}").parent), recursive=True)
                pyarrow.fs.copy_files(str(file), f"{target}/{name}", pyarrow.fs.LocalFileSystem(), system)
    except (OSError, ValueError) as error:  # a DataError, of a URI that is none, is one of these
        raise ClusterError(f"the run can't be copied: {str(error).splitlines()[0]}", results, "correct `results` of the cluster") from None


def published(results: str, run: str) -> Download:
    """Downloads from there."""
    system, path = system_of(results)

    def download(name: str, target: Path) -> None:
        try:
            pyarrow.fs.copy_files(f"{path.rstrip('/')}/{run}/{name}", str(target), system, pyarrow.fs.LocalFileSystem())
        except OSError as error:
            raise ClusterError(f"{name} is not there: {str(error).splitlines()[0]}", f"{results}/{run}") from None

    return download


def fetch(download: Download, folder: Path, accepted: bool) -> None:
    """Write a finished run's record, report and model, whose files are compared with their hashes, into a folder.

    Args:
        download: by which a file comes.
        folder: the run's, here.
        accepted: whether there is a model.

    Raises:
        ClusterError: a file is not there.
        ArtifactError: it was altered on the way, or is no artifact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if accepted:
        _model(download, folder / _MODEL)
    for name in _KEPT:
        download(name, folder / name)


def _files(folder: Path) -> list[str]:
    """Names that a manifest lists, before all of them are here."""
    try:
        return list(map(str, json.loads((folder / artifact.MANIFEST).read_text("utf-8"))["files"]))
    except (ValueError, LookupError, TypeError):
        raise ArtifactError("manifest.json can't be read", str(folder)) from None


def _model(download: Download, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        download(f"{_MODEL}/{artifact.MANIFEST}", partial / artifact.MANIFEST)
        for name in _files(partial):
            if not (file := partial / name).resolve().is_relative_to(partial.resolve()):
                raise ArtifactError(f"manifest.json names a file outside the artifact: {name}", str(target))
            file.parent.mkdir(parents=True, exist_ok=True)
            download(f"{_MODEL}/{name}", file)
        artifact.read(partial)
        if target.exists() and not artifact.exists(target):
            raise ArtifactError("a folder is there that is no artifact, and is not replaced", str(target), "give another one with --output")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
