"""Where rows come from: files of a local or remote folder, found and opened."""

from __future__ import annotations

import codecs
import fnmatch
import functools
import io
import os
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.fs

from lc_ray.data import boxes, packed
from lc_ray.errors import DataError, first_line
from lc_ray.models.load import package_path
from lc_ray.storage import joined, system_of

KINDS = {
    **{".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
    **{".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".tar": "tar", ".txt": "txt"},
    **dict.fromkeys((".conll", ".iob", ".bio"), "conll"),
    **{".conllu": "conllu", ".orc": "orc"},
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "sheet"),
}
_TEXTS = ("csv", "tsv", "jsonl", "conll", "conllu", "txt")  # kinds
# Those that no decoder here reads are among them: such a file is a rejected row, not one that nobody misses.
IMAGES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".tga", ".ico"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".svg"),
}
SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".m4a", ".aac", ".wma", ".webm"}
_KNOWN = f"endings known: {', '.join(KINDS)}, each compressed or not; or a folder of pictures, sounds or texts, with a subfolder per label"
_BINARY, _START = re.compile(rb"^(PK|%PDF)|[\x00-\x08\x0e-\x1a]"), 4096  # what no text begins with, or has
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_OTHERS = {"images": "labels", "JPEGImages": "Annotations"}  # folders of pictures → of what belongs to them
_SPLITS_FILE = "dataset_dict.json"
_ABOUT = {"dataset_info.json", "state.json", _SPLITS_FILE}  # what a saved Hugging Face dataset says of itself
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "traindata", "trainset"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "validate", "dev", "eval", "evaluation", "devset", "valset", "testa"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "testdata", "testset", "testb", "holdout"), "test"),
}


@dataclass(frozen=True, order=True)
class File:
    """A file of rows, or a folder of pictures, sounds or texts.

    Attributes:
        path: local path, or URI.
        listed: what the listing that it was found in tells of a file: see `stamp`.
    """

    path: str
    listed: tuple[Any, ...] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """Last part of the path, as it is called there."""
        name = self.path.rstrip("/").rpartition("/")[2]
        return urllib.parse.unquote(name) if "://" in self.path else name

    @functools.cached_property
    def folder(self) -> Path | str:
        """The folder it is in, which is asked for each of its rows; of a URI, a URI."""
        return self.path.rstrip("/").rpartition("/")[0] if "://" in self.path else Path(self.path).parent

    @property
    def partitions(self) -> dict[str, str | None]:
        """Columns that folders it is in have the values of, as Hive and Spark write them: `year=2020/part-0.parquet`."""
        pairs = [urllib.parse.unquote(part).partition("=") for part in self.path.split("/")[:-1]]
        return {name: None if value == _NO_VALUE else value for name, equals, value in pairs if name and equals}

    @functools.cached_property
    def kind(self) -> str:
        """How it is read: as one of `KINDS`' values, or `folder`, of pictures, sounds or texts."""
        if (last := ending(self.name)) in KINDS:
            return KINDS[last]
        if self._is_folder:
            return "folder"
        if self.name.lower().endswith(packed.ZIP):
            last = ending(self._zipped)
        return KINDS.get(last, "txt")

    @property
    def _is_folder(self) -> bool:
        system, path = system_of(self.path)
        return bool(system.get_file_info(path).type == pyarrow.fs.FileType.Directory)

    @property
    def _zipped(self) -> str:
        """The name of the file that a zip file holds."""
        try:
            with self._whole() as content:
                return packed.within(content, self.path)
        except (OSError, *packed.BROKEN) as error:
            raise DataError(f"can't be read: {first_line(error)}", str(self)) from None

    def open(self) -> BinaryIO:
        """The file's bytes, unpacked if they are compressed, and in UTF-8 where they are text that begins as UTF-16 does."""
        content = packed.unpacked(self._whole(), self.path)
        if self.kind in _TEXTS and content.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            content = io.BufferedReader(pyarrow.transcoding_input_stream(pyarrow.PythonFile(content, mode="r"), "utf-16", "utf-8"))
        return cast(BinaryIO, content)

    def _whole(self) -> io.BufferedReader:
        """The file's bytes, as they are."""
        if "://" not in self.path:
            return open(self.path, "rb")
        system, path = system_of(self.path)
        return io.BufferedReader(system.open_input_file(path))

    def stamp(self) -> list[Any]:
        """What changes when it does: its size and time of change, or those of all files in it, and of what belongs to them beside and above.

        Raises:
            DataError: it can't be reached.
        """
        if self.listed:  # a bucket is not asked for each of thousands again
            return [list(self.listed)]
        try:
            return self._stamp(*system_of(self.path))
        except OSError as error:
            raise DataError(f"can't be reached: {first_line(error)}", str(self)) from None

    def _stamp(self, system: Any, path: str) -> list[Any]:
        found = system.get_file_info(path)
        every = [found] if found.is_file else _inside(system, path)
        if not found.is_file and (beside := other(path)):
            every = [*every, *_inside(system, beside)]
        if not found.is_file:
            every = [*every, *(names for names in system.get_file_info(boxes.lists(path)) if names.is_file)]
        every = sorted({f.path: f for f in every}.values(), key=lambda f: f.path)
        return [list(_about(f)) for f in every]

    def members(self) -> list[str]:
        """Of a folder, the files of which each is a row, each from the folder's own name on, sorted."""
        system, path = system_of(self.path)
        prefix = len(path.rstrip("/")) + 1
        return sorted(f"{self.name}/{name}" for name in _members([f.path[prefix:] for f in _inside(system, path)]))


def files(source: str) -> list[File]:
    """The files of a source, sorted.

    Args:
        source: a file, a folder of files, a folder of pictures, sounds or texts, which may have a subfolder per label, some files of a folder as
            `folder/train-*`, a URI of one of these (s3://, gs://, hdfs://, file://), or `package:NAME/path`.

    Raises:
        DataError: nothing there, nothing that can be read, or several splits, which are not to be mixed.
    """
    if not source.strip():  # of which a path would be the folder that this runs in
        raise DataError("the name of the data is empty", fix="give a file, a folder or a URI")
    if source.startswith("package:"):
        source = str(package_path(source))
    elif "://" not in source:
        source = os.path.realpath(os.path.expanduser(source))
    system, path = system_of(source)
    try:
        found = system.get_file_info(path)
        every = list(_inside(system, path)) if found.type == pyarrow.fs.FileType.Directory else [found]
    except UnicodeDecodeError as error:
        raise DataError("a file's name is not valid UTF-8", error.object.decode("utf-8", "replace"), "rename it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"can't be reached: {first_line(error)}", source) from None
    if found.type == pyarrow.fs.FileType.NotFound and (some := _matching(source, system, path)):
        return some
    if found.type == pyarrow.fs.FileType.NotFound:
        fix = "write % and ? of a name as %25 and %3F" if "://" in source else "give the path from the folder you run in, or an absolute one"
        raise DataError("no such file or folder", source, fix)
    if found.is_file:
        return [_named(File(source, _about(found)))]
    _one_split(source, every, len(path.rstrip("/")) + 1)
    if rows := sorted((f for f in every if _has_rows(f)), key=lambda f: f.path):
        return [File(joined(source.rstrip("/"), f.path[len(path.rstrip("/")) + 1 :]), _about(f)) for f in rows]
    if _members([f.path[len(path.rstrip("/")) + 1 :] for f in every]):
        return [File(source.rstrip("/"))]
    raise DataError(f"no file that can be read; {_KNOWN}", source)


def _matching(source: str, system: Any, path: str) -> list[File]:
    """The files of a folder whose names are as a pattern such as `train-*` says, which is the last part of the source."""
    (folder, _, pattern), (place, _, _) = path.rpartition("/"), source.rpartition("/")
    if "*" not in pattern:
        return []
    there = system.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
    return sorted(File(joined(place, f.base_name), _about(f)) for f in there if f.is_file and fnmatch.fnmatchcase(f.base_name, pattern))


def _about(found: Any) -> tuple[str, int, int]:
    return found.path, found.size, found.mtime_ns


def _named(file: File) -> File:
    """A file that is named itself: one of an unknown ending is text, as UCI's `adult.data` and `SMSSpamCollection` are.

    Raises:
        DataError: it is none.
    """
    if file.kind == "txt" and ending(file.name) not in KINDS:
        with file.open() as content:
            if _BINARY.search(content.read(_START)):
                raise DataError(f"not a file that can be read; {_KNOWN}", str(file), "save it as one of these")
    return file


def _inside(system: Any, path: str) -> list[Any]:
    """Files below a folder, but hidden ones."""
    found = system.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
    start = len(path.rstrip("/"))
    return [f for f in found if f.is_file and "/." not in f.path[start:]]


def other(path: str) -> str | None:
    """Where what belongs to a picture, or to a folder of them, lies if not beside it: YOLO's labels and Pascal VOC's annotations."""
    parts = path.split("/")
    places = [place for place, part in enumerate(parts) if part in _OTHERS]
    return "/".join([*parts[: places[-1]], _OTHERS[parts[places[-1]]], *parts[places[-1] + 1 :]]) if places else None


def ending(path: str) -> str:
    """How a file's name ends, in small letters with the dot; that of what is in it if it is compressed."""
    name = packed.bare(path.rpartition("/")[2].lower())
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def _has_rows(file: Any) -> bool:
    """Whether a file of a folder is of a known kind, no text; nor about a saved Hugging Face dataset, or computed from it and left beside it."""
    name = file.base_name
    return KINDS.get(ending(name), "txt") != "txt" and name not in _ABOUT and not (name.startswith("cache-") and name.endswith(".arrow"))


def _one_split(source: str, every: list[Any], prefix: int) -> None:
    """Raise DataError for a folder that holds training and validation rows side by side: it would be read as one, or they as labels.

    They are told by the first such word of their files' or folders' names, as in train.csv, sst2-test.csv, training_set/cat/1.png or
    data/validation-00000-of-00001.parquet.
    """
    names = {name.partition("/")[0] for name in _members([f.path[prefix:] for f in every]) if "/" in name}
    if any(f.base_name == _SPLITS_FILE for f in every):
        names = {f.path.split("/")[-2] for f in every if f.path.endswith(".arrow")}
    elif rows := [f.path[prefix:] for f in every if _has_rows(f)]:
        names = {split for path in rows if (split := _told(path))}
        if "train" not in names:  # test and dev alone may be anything
            return
    elif None in (told := {_told(name) for name in names}) or len(told) < 2:  # labels
        return
    if len(names) > 1:
        fix = f"give one each to data.train and data.validation: a folder, or files as {source.rstrip('/')}/train*"
        raise DataError(f"holds several splits: {', '.join(sorted(names))}", source, fix)


def _told(path: str) -> str | None:
    """The split that a path's words tell, if they do."""
    return next((_SPLITS[word] for word in re.split("[^a-z]+", path.lower()) if word in _SPLITS), None)


def _members(paths: list[str]) -> list[str]:
    """Of the files below a folder, those of which each is a row: pictures and sounds, or texts if there are none. Those in subfolders, if any are."""
    found = [path for path in paths if ending(path) in IMAGES | SOUNDS]
    found = found or [path for path in paths if ending(path) == ".txt" or ("/" in path and not ending(path))]
    return [path for path in found if "/" in path] or found
