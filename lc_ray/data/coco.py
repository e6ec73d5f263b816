"""COCO's JSON (Lin et al. 2014, arXiv:1405.0312): the pictures of a dataset, and what is in them, in one object."""

from __future__ import annotations

from typing import Any

PARTS = {"images", "annotations", "categories"}
_KEPT = ("bbox", "iscrowd")  # of an annotation; outlines are far larger


def rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each picture: its fields, such as `file_name`, and its boxes, by label, as `annotations`.

    Raises:
        ValueError: it is something else.
    """
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        found = {image["id"]: {**image, "annotations": []} for image in content["images"]}
        for one in content["annotations"]:
            kept = {name: one[name] for name in _KEPT if name in one}
            found[one["image_id"]]["annotations"].append({"label": names[one["category_id"]], **kept})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not COCO's images, annotations and categories: {error!r}") from None
    return list(found.values())
