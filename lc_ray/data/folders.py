"""A folder of pictures, sounds or texts: a row for each, with the subfolder that it is in, and what lies beside it under the same name.

Beside a picture or sound may be its `text`, in a .txt or in LibriSpeech's .trans.txt, and beside a picture its `annotations`: see `boxes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lc_ray.data import boxes
from lc_ray.data.files import IMAGES, SOUNDS, File, ending, other
from lc_ray.data.stored import Later
from lc_ray.storage import StoragePath, joined

_FIRST = 128  # rows among which columns are looked for
_UNLABELLED = {"unsup", "unlabeled", "unlabelled"}  # subfolders of what has no label, such as IMDB's and STL-10's


class Folder:
    """Rows of a folder.

    Args:
        file: the folder.

    Attributes:
        paths: of the pictures or sounds, or of the texts if there are none; each from the folder's own name on.
    """

    def __init__(self, file: File) -> None:
        self.paths, self._root = file.members(), str(file.folder)
        first = ending(self.paths[0]) if self.paths else ""
        self._level = _level(self.paths)
        self._kind = "image" if first in IMAGES else "audio" if first in SOUNDS else "text"
        self._names = functools.cache(lambda folder: boxes.names(folder, content_of))
        self._transcripts = functools.lru_cache(4)(_transcripts)
        self._beside = {"text": self._text, "annotations": self._annotations} if self._kind != "text" else {}
        self._cells: dict[str, Callable[[str], Any]] = {
            self._kind: (lambda path: content_of(self._at(path))) if self._kind == "text" else str,
            "label": lambda path: path.split("/")[self._level] if path.count("/") > self._level else None,
            **self._beside,
        }

    def columns(self) -> list[str]:
        """`image`, `audio` or `text`; `label` if they are in subfolders; `text` and `annotations` if such lie beside some of the first."""
        there = [name for name, cell in self._beside.items() if any(self._is_there(cell, path) for path in self.paths[:_FIRST])]
        return [self._kind, *(["label"] if all(path.count("/") > self._level for path in self.paths) else []), *there]

    def chunks(self, wanted: Sequence[str], size: int) -> Iterator[Later]:
        """Rows, `size` at a time; where their labels are wanted, those that have one."""
        row = functools.partial(self._row, wanted=wanted)
        paths = [path for path in self.paths if "label" not in wanted or path.split("/")[self._level] not in _UNLABELLED]
        each = (paths[start : start + size] for start in range(0, len(paths), size))
        return (Later(len(some), functools.partial(map, row, some)) for some in each)

    def beside(self, wanted: Sequence[str]) -> list[str]:
        """The files that hold such columns and are none of `paths`."""
        asked = [self._at(path) for path in self.paths if self._beside.keys() & {*wanted}]
        found = [place for path in asked for last in (".txt", ".xml") for place in _places(path, last)]
        lists = [place for folder in dict.fromkeys(path.rpartition("/")[0] for path in asked) for place in (_said(folder), *boxes.lists(folder))]
        return [place for place in [*found, *lists] if StoragePath(place).exists()]

    def _at(self, path: str) -> str:
        return joined(self._root, path)

    def _row(self, path: str, wanted: Sequence[str]) -> dict[str, Any]:
        try:
            return {name: self._cells[name](path) for name in wanted}
        except ValueError as error:
            return {"_error": str(error)}

    @staticmethod
    def _is_there(cell: Callable[[str], Any], path: str) -> bool:
        try:
            return bool(cell(path))
        except ValueError:  # a .txt need not be YOLO's
            return False

    def _text(self, path: str) -> bytes | None:
        folder, _, name = self._at(path).rpartition("/")
        return _first(self._at(path), ".txt") or self._transcripts(folder).get(name.rpartition(".")[0])

    def _annotations(self, path: str) -> list[dict[str, Any]] | None:
        picture = self._at(path)
        names = self._names(picture.rpartition("/")[0])
        if (content := _first(picture, ".xml")) is not None:
            return boxes.voc(content)
        if (content := _first(picture, ".txt")) is not None:
            return boxes.yolo(content, names, content_of(picture) or b"")
        return [] if names else None  # of YOLO's pictures those without a text show nothing


def _level(paths: list[str]) -> int:
    """Which part of paths is the label: the subfolder, or, where one alone has all of them in subfolders of its own, as archives have, the first that
    differs.
    """
    folders = [path.split("/")[1:-1] for path in paths]
    alike = next((level for level, names in enumerate(zip(*folders, strict=False)) if len({*names}) > 1), 0)
    return 1 + alike if min(map(len, folders), default=0) > alike else 1


def content_of(path: str) -> bytes | None:
    """The content of a file, None where there is none."""
    try:
        with File(path).open() as content:
            return content.read()
    except FileNotFoundError:
        return None


def _places(path: str, last: str) -> list[str]:
    """Where the file that belongs to another, and ends so, may lie."""
    stem = path.rpartition(".")[0]
    return [f"{place}{last}" for place in (stem, other(stem)) if place]


def _first(path: str, last: str) -> bytes | None:
    return next((content for place in _places(path, last) if (content := content_of(place)) is not None), None)


def _transcripts(folder: str) -> dict[str, bytes]:
    """LibriSpeech's of a folder: on each line a recording's name, and what is said."""
    lines = (content_of(_said(folder)) or b"").splitlines()
    return {name.decode("utf-8", "replace"): said for name, _, said in (line.partition(b" ") for line in lines)}


def _said(folder: str) -> str:
    """Where LibriSpeech's transcripts of a folder are."""
    speaker, chapter = folder.split("/")[-2:]
    return f"{folder}/{speaker}-{chapter}.trans.txt"
