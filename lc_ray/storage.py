"""Files and folders that all nodes reach: of a file system that they mount, or of a bucket, through pyarrow's file systems.

A bucket has no rename and can't be mapped into memory, so nothing here relies on either: what is made of several files is whole once the
file that names the others is there, and that one is written last.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs

from lc_ray.errors import DataError, first_line
from lc_ray.scratch import folder_for_a_while

_BLOCK = 2**24  # bytes
_COPIES = 8  # files at a time
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}")  # what `_partial` makes
_RENAMES = ("local", "hdfs")  # file systems, by pyarrow's names, in which a file takes its name once it is whole
# With S3. Its SDK would give up a request that is not answered within 3 s, and a busy store may take longer.
_PATIENCE = {"connect_timeout": 10.0, "request_timeout": 60.0, "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(6)}
_CONNECTING = threading.Lock()  # of two connections made at once, one would be let go while it is used
_HADOOP = (
    "hdfs:// needs a NameNode that answers and, on every node, Java (JAVA_HOME), Hadoop's libhdfs.so (in HADOOP_HOME/lib/native, or the folder "
    "that ARROW_LIBHDFS_DIR names) and its jars (CLASSPATH=$(hadoop classpath --glob))"
)


@dataclass(frozen=True)
class StoragePath:
    """A file or folder, by its absolute path or its URI (s3://, gs://, hdfs://, file://). A folder is there once a file is in it.

    Attributes:
        path: without a slash at its end.
    """

    path: str

    def __str__(self) -> str:
        return self.path

    def __truediv__(self, name: str) -> StoragePath:
        return StoragePath(joined(self.path, name))

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> StoragePath:
        """The folder it is in."""
        return StoragePath(self.path.rpartition("/")[0])

    @property
    def of_ray(self) -> dict[str, Any]:
        """As arguments of Ray's RunConfig: of a URI it would make a file system with less patience."""
        system, path = system_of(self.path)
        return {"storage_path": path, "storage_filesystem": system}

    @property
    def remote(self) -> bool:
        """Whether it has to be copied to be a file of this machine."""
        return "://" in self.path

    def exists(self) -> bool:
        """Whether it is there."""
        system, path = system_of(self.path)
        return bool(system.get_file_info(path).type != pyarrow.fs.FileType.NotFound)

    def files(self) -> dict[str, list[int]]:
        """Size and time of change of each file below the folder, by its name there; none if it is not there."""
        system, path = system_of(self.path)
        found = system.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True))
        return {file.path[len(path) + 1 :]: [file.size, file.mtime_ns] for file in found if file.is_file}

    def open(self) -> pa.NativeFile:
        """The file, to be read anywhere in it."""
        system, path = system_of(self.path)
        return system.open_input_file(path)

    def create(self, buffer: int | None = None) -> pa.NativeFile:
        """The file, to be written.

        Args:
            buffer: bytes that are gathered before they are written.
        """
        system, path = system_of(self.path)
        if system.type_name == "local":  # others need no folders
            system.create_dir(path.rpartition("/")[0], recursive=True)
        return system.open_output_stream(path, buffer_size=buffer)

    def read_text(self) -> str:
        """What a text file holds."""
        with self.open() as file:
            return str(file.read().decode("utf-8"))

    @contextlib.contextmanager
    def whole(self, last: bool = False) -> Iterator[Any]:
        """The file, to be written, which is there whole or not at all.

        Args:
            last: whether it tells of others, which then outlive a power cut if it does.
        """
        system, path = system_of(self.path)
        if system.type_name not in _RENAMES:
            with tempfile.NamedTemporaryFile(prefix="lc_ray-") as file:
                yield file
                file.flush()
                self._take(file.name)
            return
        partial = self.parent / _partial(self.name)
        try:
            with partial.create() as file:
                yield file
            if last and system.type_name == "local":
                _to_disk(Path(system_of(partial.path)[1]))
            system.move(system_of(partial.path)[1], path)
        except OSError as error:
            error.filename = error.filename or path  # whoever finds a disk full is told no name
            raise
        finally:
            partial.remove()

    def write_text(self, text: str) -> None:
        """Write a text file: a record of what is there besides."""
        with self.whole(last=True) as file:
            file.write(text.encode())

    def refused(self) -> str:
        """Why no file can be written below the folder, which need not be there; nothing if one can. No file that was tried is left."""
        try:
            system, path = system_of(self.path)
            if system.type_name == "local":
                tempfile.TemporaryFile(dir=_nearest(path)).close()
            else:
                mark = self / f".{uuid.uuid4().hex}"
                mark.write_text("")
                mark.remove()
        except (OSError, ValueError, NotImplementedError) as error:  # of pyarrow's, several are one of these
            return getattr(error, "strerror", None) or first_line(error)
        return ""

    def room(self) -> int | None:
        """Bytes for what is below the folder: those that are free, and those of the files that are there. None of a bucket."""
        system, path = system_of(self.path)
        if system.type_name != "local":
            return None
        return shutil.disk_usage(_nearest(path)).free + sum(size for size, _ in self.files().values())

    def remove(self) -> None:
        """Remove the file, or the folder with all that is in it, if it is there."""
        system, path = system_of(self.path)
        found = system.get_file_info(path).type
        if found == pyarrow.fs.FileType.Directory:
            with contextlib.suppress(FileNotFoundError):  # Google's buckets need not name the folder itself, which goes last
                system.delete_dir(path)
        elif found == pyarrow.fs.FileType.File:
            system.delete_file(path)

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files of a folder of this machine into this one, in their order."""
        for name in names:
            (self / name)._take(str(folder / name))

    def _take(self, file: str) -> None:
        """Become a copy of a file of this machine, whole or not at all."""

        def copy(create: Callable[[], Any]) -> None:
            # The former first, as the latter is there from then on. By copy_files nobody is told where the last bytes are refused.
            with open(file, "rb") as content, create() as out:
                shutil.copyfileobj(content, out, _BLOCK)

        if system_of(self.path)[0].type_name in _RENAMES:
            copy(self.whole)
            return
        with ThreadPoolExecutor(1) as thread:  # which no signal stops midway: pyarrow closes what it lets go, and a bucket then shows what there is
            thread.submit(copy, self.create).result()

    def complete(self, folder: Path) -> None:
        """Copy the files of a folder of this machine that this one lacks, or has in another size."""
        sizes = {name: (folder / name).stat().st_size for name in names_in(folder)}
        there = self.files() if sizes else {}
        self.put(folder, [name for name, size in sizes.items() if name not in there or there[name][0] != size])

    def get(self, target: Path) -> None:
        """Copy it, with all that is in it, to a path of this machine."""
        system, path = system_of(self.path)
        if system.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            self.get_files(target, self.files())
        else:
            self._copy(target)

    def get_files(self, target: Path, names: Collection[str]) -> None:
        """Copy files of the folder to one of this machine, several at a time.

        Raises:
            DataError: one has a name that leads out of the folder: a bucket's may be any text.
        """
        for name in names:
            if not (target / name).resolve().is_relative_to(target.resolve()):
                raise DataError(f"a file's name leads out of the folder: {name}", str(self), "let nobody else write there")
        with ThreadPoolExecutor(_COPIES) as threads:  # copy_files of a folder lacks those folders that Google's buckets don't name
            list(threads.map(lambda name: (self / name)._copy(target / name), names))

    def _copy(self, target: Path) -> None:
        system, path = system_of(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(path, str(target), system, pyarrow.fs.LocalFileSystem())

    @contextlib.contextmanager
    def here(self) -> Iterator[Path]:
        """It, or a copy on this machine for as long as it is needed."""
        if not self.remote:
            yield Path(self.path)
            return
        with folder_for_a_while() as scratch:
            self.get(target := scratch / self.name)
            yield target

    @contextlib.contextmanager
    def filled(self, last: str = "") -> Iterator[Path]:
        """The folder, to be filled, or one on this machine that is copied to it afterwards.

        Args:
            last: name of the file that is copied after all others, if one is to be.
        """
        if not self.remote:
            yield Path(self.path)
            return
        with folder_for_a_while() as scratch:
            yield (folder := scratch / self.name)
            self.put(folder, sorted(names_in(folder), key=lambda name: name == last))


def joined(folder: str, name: str) -> str:
    """The path or URI of a file, by its name below a folder: in a URI what would mean something else there is written as %XX."""
    return f"{folder}/{name.replace('%', '%25').replace('?', '%3F') if '://' in folder else name}"


def _quoted(uri: str) -> str:
    """A URI with blanks, letters that are not ASCII, and #, which begins no fragment here, as %XX."""
    return urllib.parse.quote(uri, safe="%/:@?&=+,;[]!$'()*~")


def storage_path(path: str | Path) -> StoragePath:
    """A path as it may be written: relative to the working folder, or a URI."""
    text = str(path)
    return StoragePath(text.rstrip("/") if "://" in text else os.path.realpath(os.path.expanduser(text)))


def names_in(folder: Path) -> list[str]:
    """All files of a folder of this machine, by their names there, in order."""
    return [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]


def _nearest(path: str) -> Path:
    """A path of this machine, or of the folders above it the lowest that is there."""
    return next(one for one in (Path(path), *Path(path).parents) if one.exists())


def _to_disk(path: Path) -> None:
    """Have the file system of a path write what it has in memory: what gets its name after that is not there without it after a power cut."""
    place = os.open(path, os.O_RDONLY)
    try:
        getattr(ctypes.CDLL(None), "syncfs", os.fsync)(place)  # the latter on systems other than Linux
    finally:
        os.close(place)


def _partial(name: str) -> str:
    """What a file or folder is called until it is whole."""
    return f".{name}.{uuid.uuid4().hex[:8]}"


def sweep(folder: Path) -> None:
    """Remove what is left of files and folders whose writers were killed, of a folder of this machine in which nobody writes now."""
    for left in [one for one in folder.rglob(".*") if _PARTIAL.fullmatch(one.name)]:
        StoragePath(str(left)).remove()


def discard(path: Path) -> None:
    """Remove a file or folder of this machine, which is there whole or not at all; what is left where this is killed is for `sweep`."""
    aside = path.with_name(_partial(path.name.lstrip(".")))
    os.replace(path, aside)
    StoragePath(str(aside)).remove()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder of this machine, to be filled, which takes its name and the place of one before once it is whole; else nothing of it is left."""
    partial = folder.with_name(_partial(folder.name))
    try:
        partial.mkdir(parents=True)
        yield partial
        _to_disk(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # a disk that is full would stay so


def cached(folder: StoragePath, kinds: Sequence[str] = ("*",)) -> Path:
    """The copy of a folder in this machine's cache of models, beside those of the hub, under a name made of what is in it now.

    Args:
        folder: of a bucket.
        kinds: patterns of the files that are copied.

    Raises:
        FileNotFoundError: none is there.
        OSError: they can't be read.
    """
    from huggingface_hub import constants  # which most processes have no use for

    files = {name: about for name, about in folder.files().items() if any(PurePath(name).match(kind) for kind in kinds)}
    if not files:
        raise FileNotFoundError(folder.path)
    digest = hashlib.sha256(json.dumps([folder.path, sorted(files.items())]).encode()).hexdigest()[:16]
    target = Path(constants.HF_HUB_CACHE) / "lc_ray" / digest
    if not target.exists():
        partial = target.with_name(_partial(digest))
        try:
            folder.get_files(partial, files)
            with contextlib.suppress(OSError):  # another process was first
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def system_of(path: str) -> tuple[Any, str]:
    """The file system of a local path or URI, and its path there.

    Raises:
        DataError: no such kind of URI, or a bucket or server that can't be reached.
    """
    if "://" not in path:
        return pyarrow.fs.LocalFileSystem(), path
    parts = urllib.parse.urlsplit(_quoted(path))
    hadoop = parts.scheme in ("hdfs", "viewfs")
    place = parts.netloc or ("default" if hadoop else "")  # hdfs:///x is of the file system that core-site.xml names
    try:
        with _CONNECTING:
            system, root = _system(urllib.parse.urlunsplit((parts.scheme, place, "/", parts.query, "")), hadoop)
    except (OSError, ValueError, NotImplementedError) as error:
        fix = _HADOOP if hadoop else "use s3://, gs://, hdfs://, file:// or a local path"
        raise DataError(f"can't be opened: {first_line(error)}", path, fix) from None
    return system, f"{root.rstrip('/')}/{urllib.parse.unquote(parts.path).lstrip('/')}".rstrip("/") or "/"


def jvm() -> bool:
    """Whether a file system of Hadoop has started a JVM in this process."""
    return "-Xrs" in os.environ.get("LIBHDFS_OPTS", "").split()


@functools.cache  # never let go: an open file of Hadoop's can't be read any more once its file system is collected
def _system(root: str, hadoop: bool) -> tuple[Any, str]:
    """The file system of a bucket or server, whose region is looked up once, and the root's path there.

    Raises:
        OSError: nobody answers.
    """
    if hadoop and not jvm():  # which would take SIGINT and SIGTERM, and end the process where it is
        os.environ["LIBHDFS_OPTS"] = f"{os.environ.get('LIBHDFS_OPTS', '')} -Xrs".strip()
    system, path = cast("tuple[Any, str]", pyarrow.fs.FileSystem.from_uri(root))
    if isinstance(system, pyarrow.fs.S3FileSystem):  # made anew from what pickling tells of it: a URI can say nothing of time
        system = pyarrow.fs.S3FileSystem(**system.__reduce__()[1][0] | _PATIENCE)
    if hadoop and system.get_file_info(path).type == pyarrow.fs.FileType.NotFound:  # libhdfs says so of all that fails, and why on stderr
        raise OSError("no NameNode answers")
    return system, path
