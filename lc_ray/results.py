"""What a finished run leaves, on its way: to a bucket and back, or file by file through a cluster's dashboard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lc_ray import artifact
from lc_ray.errors import ArtifactError, ClusterError, first_line
from lc_ray.runs import EVENTS, RECORD
from lc_ray.storage import StoragePath, names_in, whole_folder

_KEPT = (EVENTS, "report.html", RECORD)
_MODEL = "model"
Download = Callable[[str, Path], None]  # name in the run's folder, file to write


def publish(folder: Path, target: StoragePath) -> None:
    """Copy what matters of a finished run; each file that names others after those.

    Raises:
        ClusterError: it can't be written.
    """
    publish_model(folder, target)
    publish_record(folder, target)


def publish_model(folder: Path, target: StoragePath) -> None:
    """Copy a run's accepted model, if there is one.

    Raises:
        ClusterError: it can't be written.
    """
    names = names_in(folder / _MODEL)
    with _told(target):
        target.put(folder, [f"{_MODEL}/{name}" for name in sorted(names, key=lambda name: name == artifact.MANIFEST)])
        for name in (target / _MODEL).files() if names else ():
            if name not in names:  # of a model that was there before
                (target / _MODEL / name).remove()


def publish_record(folder: Path, target: StoragePath) -> None:
    """Copy what a finished run tells.

    Raises:
        ClusterError: it can't be written.
    """
    with _told(target):
        target.put(folder, [name for name in _KEPT if (folder / name).exists()])


@contextmanager
def _told(target: StoragePath) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a DataError, of a URI that is none, is one of these
        raise ClusterError(f"the run can't be copied: {first_line(error)}", str(target), "correct that URI, or the rights to it") from None


def published(source: StoragePath) -> Download:
    """Downloads from there."""

    def download(name: str, target: Path) -> None:
        try:
            (source / name).get(target)
        except OSError as error:
            raise ClusterError(f"{name} is not there: {first_line(error)}", str(source)) from None

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
    with whole_folder(target) as partial:
        download(f"{_MODEL}/{artifact.MANIFEST}", partial / artifact.MANIFEST)
        for name in _files(partial):
            if not (file := partial / name).resolve().is_relative_to(partial.resolve()):
                raise ArtifactError(f"manifest.json names a file outside the artifact: {name}", str(target))
            file.parent.mkdir(parents=True, exist_ok=True)
            download(f"{_MODEL}/{name}", file)
        artifact.read(partial)
        if target.exists() and not artifact.exists(target):
            raise ArtifactError("a folder is there that is no artifact, and is not replaced", str(target), "give another one with --output")
