"""Boxes that lie beside pictures: Pascal VOC's XML (Everingham et al. 2010), and the texts of YOLO."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import yaml
from PIL import Image

from lc_ray.modalities import _media

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc(content: bytes) -> list[dict[str, Any]]:
    """Objects of an XML file; their parts, such as a person's head, are left out.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = ElementTree.fromstring(content).findall("object")
        return [{"label": one.findtext("name"), "box": [float(str(one.findtext(f"bndbox/{side}"))) for side in _CORNERS]} for one in found]
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
