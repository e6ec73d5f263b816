"""What a job needs of this machine, as one file to upload: its data files and model folders, and the job with their names there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lc_ray.data import classes
from lc_ray.data.cells import wanted
from lc_ray.data.files import File, files
from lc_ray.data.folders import Folder
from lc_ray.data.given import media_of
from lc_ray.data.read import Reader
from lc_ray.errors import ClusterError, DataError, ModelError
from lc_ray.modalities import _media
from lc_ray.models.load import FILES
from lc_ray.spec import JobSpec, digest
from lc_ray.storage import joined
from lc_ray.units import size_text

JOB, FOLDER = "job.json", "files"  # in the package
LARGEST = 100 * 2**20  # bytes: what Ray's dashboard takes at most
_LONGEST = 1024  # characters of a cell that may be a path
_YEAR_ZERO = (1980, 1, 1, 0, 0, 0)  # of all members, so that equal content is an equal archive


@dataclass(frozen=True)
class Package:
    """A job and what goes with it.

    Attributes:
        job: as it is read here.
        names: dotted path of each field that names something local → its name in the package.
        files: name in the package → file here.
        digest: of the content of `files`.
        there: local paths that are expected on the cluster.
        modules: installed packages that hold data or models of the job.
    """

    job: JobSpec
    names: dict[str, str]
    files: dict[str, Path]
    digest: str
    there: tuple[str, ...]
    modules: tuple[str, ...]

    def key(self, version: str) -> str:
        """Name of the job and all that it depends on: the same job is the same wherever its files are kept."""
        return digest(self.job.set(self.names).model_dump(mode="json", exclude={"storage"}), self.digest, version)

    @property
    def whole(self) -> bool:
        """Whether all that the job names is in it: what is on the cluster or in a bucket may be other content by now."""
        return not self.there and not any("://" in source for _, source in _sources(self.job))

    def job_at(self, storage: str) -> JobSpec:
        """The job as the cluster is to run it, once the files are in a storage folder there."""
        folder = self.folder(storage)
        return self.job.set({path: joined(folder, name) for path, name in self.names.items()} | {"storage": storage})

    def folder(self, storage: str) -> str:
        """Where the files are kept on the cluster: named after their content, so that jobs on the same data share them."""
        return f"{storage}/inputs/{self.digest}"

    def write(self, target: Path, storage: str) -> None:
        """Write the archive.

        Raises:
            DataError: a file is another by now.
            ClusterError: larger than a cluster takes.
        """
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
            out.writestr(zipfile.ZipInfo(JOB, _YEAR_ZERO), self.job_at(storage).model_dump_json())
            for name, file in self.files.items():
                entry = zipfile.ZipInfo(f"{FOLDER}/{name}", _YEAR_ZERO)
                entry.compress_type = zipfile.ZIP_DEFLATED
                with out.open(entry, "w") as inside, open(file, "rb") as content:
                    while piece := content.read(2**20):
                        inside.write(piece)
        if _digest(self.files) != self.digest:  # under whose name the cluster keeps them
            raise DataError("a file of the job was changed while it was submitted", self.job.data.train, "submit it again")
        if (size := target.stat().st_size) > LARGEST:
            raise _too_large(size, self.files)


def pack(job: JobSpec, shared: str | None = None) -> Package:
    """Find what a job needs of this machine.

    Args:
        job: the job.
        shared: folder that the cluster mounts: what is in it is there already.

    Raises:
        DataError: a local data file is not there, lacks a column, or names files outside its folder.
        ModelError: a folder of a model is not there.
        ClusterError: too large for an upload.
    """
    names: dict[str, str] = {}
    found: dict[str, Path] = {}
    there: list[str] = []
    places: dict[Path, str] = {}
    for path, value in _local(job):
        named = Path(os.path.abspath(os.path.expanduser(value)))
        here = named.exists() or any(named.parent.glob(named.name))
        if (shared and named.is_relative_to(shared)) or (value.startswith("/") and not here):
            there.append(str(named))
            continue
        source = named.resolve()  # as files of data are told
        if source not in places:
            places[source] = str(len(places))
            members = _data(job, source) if path.startswith("data.") and path.rpartition(".")[2] in ("train", "validation") else _model(source)
            found |= {f"{places[source]}/{name}": file for name, file in members}
        names[path] = f"{places[source]}/{source.name}"
    size = sum(file.stat().st_size for file in found.values())
    if size > 10 * LARGEST:  # what no compression makes small enough
        raise _too_large(size, found)
    return Package(job, names, found, _digest(found), tuple(there), tuple(sorted(_modules(job))))


def _sources(job: JobSpec) -> Iterator[tuple[str, str]]:
    """Fields that name data or models, and what they name."""
    yield from ((f"data.{name}", source) for name, source in job.data.sources.items())
    for prefix, section in (("model", job.model), *((f"data.inputs.{n}", i) for n, i in enumerate(job.data.inputs))):
        for name in ("base", "weights"):
            if value := getattr(section, name):
                yield f"{prefix}.{name}", value


def _local(job: JobSpec) -> Iterator[tuple[str, str]]:
    """Of these, the ones that are paths."""
    for path, value in _sources(job):
        if "://" in value or value.startswith("package:"):
            continue
        data = path in ("data.train", "data.validation")
        if data or value.startswith((".", "/", "~")) or Path(value).exists():  # else a model's name at a hub
            yield path, value


def _modules(job: JobSpec) -> set[str]:
    return {value.removeprefix("package:").partition("/")[0] for _, value in _sources(job) if value.startswith("package:")}


def _model(source: Path) -> Iterator[tuple[str, Path]]:
    if source.is_file():
        yield source.name, source
    elif not source.is_dir():
        raise ModelError("no such file or folder", str(source), "give the path from the folder you run in, or an absolute one")
    for file in sorted(source.rglob("*")):
        if file.is_file() and any(file.match(kind) for kind in FILES):
            yield f"{source.name}/{file.relative_to(source)}", file


def _data(job: JobSpec, source: Path) -> Iterator[tuple[str, Path]]:
    """Files of rows, the pictures and sounds that their cells name, and the names of their classes."""
    for file in files(str(source)):
        path = Path(file.path)
        every = _inside(job, file) if file.kind == "folder" else [path, *_named(job, file)]
        every += [name for place in classes.candidates([file], job.data.target) if (name := Path(place)).is_relative_to(source.parent)]
        yield from ((str(one.relative_to(source.parent)), one) for one in every)


def _inside(job: JobSpec, file: File) -> list[Path]:
    """The files of a folder, and those that have further columns of theirs."""
    beside = [Path(name) for name in Folder(file).beside(wanted(job))]
    for path in beside:
        _require_below(path, Path(file.path), str(file), "give the folder that has both, or one that the cluster's nodes mount")
    return [Path(file.folder) / name for name in file.members()] + beside


def _require_below(path: Path, folder: Path, where: str, fix: str) -> None:
    if not path.is_relative_to(folder) or ".." in path.parts:
        raise DataError(f"'{path}' is not below the data file's folder, and would not be found on the cluster", where, fix)


def _named(job: JobSpec, file: File) -> list[Path]:
    """The files that cells of a data file name, each once."""
    folder = Path(file.folder)
    patterns = {i.column: i.path for i in job.data.inputs}
    media = sorted(media_of({i.column: i.modality for i in job.data.inputs}, job.task.kind, job.data.target))
    reader = Reader(file, job.data.columns)
    reader.require(wanted(job))
    found: dict[Path, None] = {}
    for row in (row for chunk in reader.rows(media) for row in chunk) if media else ():
        for column in media:
            if path := _path(row.get(column), patterns.get(column, "{}"), folder):
                where, fix = f"{file}, row {row['_row']}, column '{column}'", "name files from the data file's folder, or by URI"
                _require_below(path, folder, where, fix)
                found[path] = None
    return list(found)


def _path(cell: Any, pattern: str, folder: Path) -> Path | None:
    """The file that a cell names, if it names one that is there."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            cell = cell[:_LONGEST].decode("utf-8")
    if not isinstance(cell, str | int) or not 0 < len(text := str(cell)) < _LONGEST or "\0" in text:
        return None
    return _media.located(pattern.replace("{}", text), folder)


def _digest(found: dict[str, Path]) -> str:
    whole = hashlib.sha256()
    for name, path in sorted(found.items()):
        with open(path, "rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def _too_large(size: int, found: dict[str, Path]) -> ClusterError:
    largest = max(found.values(), key=lambda file: file.stat().st_size)
    return ClusterError(
        f"the job's files are {size_text(size)}, and a cluster takes no more than {size_text(LARGEST)} in an upload; the largest is {largest}",
        fix="put them in a bucket (s3://, gs://) or a folder that the cluster's nodes mount, and name that in the job",
    )
