"""Boxes that lie beside pictures: Pascal VOC's XML (Everingham et al. 2010), the texts of YOLO, and tables that have a row for each box."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import yaml
from PIL import Image

from lc_ray.modalities import _media, _text

ANNOTATIONS = "annotations"  # the column that holds a picture's boxes
_LABELS = ("class", "classname", "label", "labelname", "category", "categoryname", "classid", "labelid", "categoryid")  # without case and signs
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SIDES = (_CORNERS, ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_EXTENTS = (("bbox",), ("x", "y", "w", "h"), ("x", "y", "width", "height"))


def voc(content: bytes) -> list[dict[str, Any]]:
    """Objects of an XML file; their parts, such as a person's head, are left out.

    Raises:
        ValueError: it is something else.
    """
    try:
        whole = ElementTree.fromstring(content)
        size = [float(whole.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        found = [(one.findtext("name"), [float(str(one.findtext(f"bndbox/{side}"))) for side in _CORNERS]) for one in whole.findall("object")]
        return [{"label": label, "box": box, "picture_size": size} for label, box in found]
    except (ElementTree.ParseError, ValueError):
        raise ValueError("not Pascal VOC's XML") from None


def yolo(content: bytes, names: dict[str, str], picture: bytes) -> list[dict[str, Any]]:
    """Objects of a text: on each line a class, and a box's centre, width and height, or an outline's points, as fractions of the picture.

    Raises:
        ValueError: it is something else.
    """
    lines = [line.split() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return []
    try:
        width, height = _size(picture)
        return [{"label": names.get(kind, kind), "box": _corners([float(x) for x in numbers], width, height)} for kind, *numbers in lines]
    except (OSError, ValueError):
        raise ValueError("not YOLO's boxes beside a picture") from None


def _corners(numbers: list[float], width: int, height: int) -> list[float]:
    if len(numbers) in (4, 5):  # the fifth is how sure a model was
        x, y, across, down = numbers[:4]
        xs, ys = [x - across / 2, x + across / 2], [y - down / 2, y + down / 2]
    else:
        xs, ys = numbers[::2], numbers[1::2]
    if len(xs) != len(ys) or not xs:
        raise ValueError
    return [min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height]


def _size(picture: bytes) -> tuple[int, int]:
    """Width and height as it is shown, upright."""
    with Image.open(io.BytesIO(picture)) as image:
        width, height = image.size
        return (height, width) if _media.lies(image) else (width, height)


def names(folder: str, read: Callable[[str], bytes | None]) -> dict[str, str]:
    """Names of YOLO's classes by their number, of a folder's pictures; none where no file has them.

    Args:
        folder: the pictures'.
        read: gives a file's content, None where there is none.
    """
    for place in lists(folder):
        if (content := read(place)) is None:
            continue
        found: Any = None
        if place.endswith(".txt"):
            found = content.decode("utf-8", "replace").splitlines()
        else:
            with contextlib.suppress(yaml.YAMLError, AttributeError):
                found = yaml.safe_load(content).get("names")
        if found:
            return {str(number): str(name).strip() for number, name in (found.items() if isinstance(found, dict) else enumerate(found))}
    return {}


def lists(folder: str) -> list[str]:
    """Files that may have names of classes: in the folder of the pictures, or in one of two above it."""
    above = [folder.rsplit("/", up)[0] if up else folder for up in range(3)]
    return [f"{place}/{name}" for place in above for name in ("data.yaml", "dataset.yaml", "classes.txt", "labels/classes.txt")]


def parts(columns: Sequence[str]) -> tuple[str, str, list[str]] | None:
    """Of a table that has a row for each box: the column of its label, what it is called in an object (`box` has corners, `bbox` COCO's width and
    height), and its columns. None of another table, as of one whose rows have a picture's boxes already.
    """
    there = {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(columns)}
    label = next((there[name] for name in _LABELS if name in there), None)
    form = next((form for form in (*_SIDES, *_EXTENTS) if there.keys() >= {*form}), None)
    if label is None or form is None or ANNOTATIONS in columns:
        return None
    return label, "box" if form in _SIDES else "bbox", [there[name] for name in form]


def rows(cells: Iterable[dict[str, Any]], found: tuple[str, str, list[str]], wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each picture, wherever in the table its boxes are: those with the same other wanted cells. Without such each box has a row.

    Args:
        cells: rows of such a table, or what is wrong with them, as `_error`.
        found: what `parts` gave.
        wanted: columns, `ANNOTATIONS` among them.
    """
    own = [name for name in wanted if name != ANNOTATIONS]
    pictures: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(cells):
        if "_error" in row:
            yield row
            continue
        picture = {name: row.get(name) for name in own}
        kept = pictures.setdefault(repr(picture) if own else number, picture | {ANNOTATIONS: []})
        kept[ANNOTATIONS] += _objects(row, *found)
    yield from pictures.values()


def _objects(row: dict[str, Any], label: str, name: str, columns: list[str]) -> list[dict[str, Any]]:
    """The box of a row; none where its cells are empty, as RetinaNet's tables have a picture without objects; several where they are lists."""
    cells = [row.get(column) for column in columns]
    if isinstance(row.get(label), list) and isinstance(cells[0], list):
        return [{"label": each, name: box} for each, box in itertools.zip_longest(row[label], cells[0])]
    return [] if all(map(_text.absent, cells)) else [{"label": row.get(label), name: cells[0] if len(cells) == 1 else cells}]
