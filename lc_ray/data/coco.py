"""COCO's JSON (Lin et al. 2014, arXiv:1405.0312): the pictures of a dataset, and what is in them or said of them, in one object."""

from __future__ import annotations

from typing import Any

_PARTS = {"images", "annotations"}
_KEPT = ("bbox", "iscrowd")  # of an annotation; outlines are far larger


def is_one(content: dict[str, Any]) -> bool:
    """Whether an object is such: of boxes it has the categories, of captions no others."""
    return content.keys() >= _PARTS and ("categories" in content or _captioned(content["annotations"]))


def _captioned(annotations: Any) -> bool:
    return isinstance(annotations, list) and bool(annotations) and all(isinstance(one, dict) and "caption" in one for one in annotations)


def rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each picture: its fields, such as `file_name`, and its boxes, by label and with the picture's size, as
    `annotations`; or, of captions, a row for each `caption`.

    What is annotated of pictures that are not listed is left out: they are those of another split, or were removed.

    Raises:
        ValueError: it is something else, or nothing is annotated of the pictures that are listed.
    """
    try:
        images, annotations = {image["id"]: image for image in content["images"]}, content["annotations"]
        known = [one for one in annotations if one["image_id"] in images]
        if annotations and not known:
            raise ValueError("of COCO's annotations none has the `image_id` of one of its images")
        if _captioned(annotations):
            return [{**images[one["image_id"]], "caption": one["caption"]} for one in known]
        names = {category["id"]: category["name"] for category in content["categories"]}
        found = {number: {**image, "annotations": []} for number, image in images.items()}
        sizes = {number: {"picture_size": [image.get("width"), image.get("height")]} for number, image in images.items()}
        for one in known:
            if one["category_id"] not in names:
                raise ValueError(f"COCO's annotation {one.get('id')} is of category {one['category_id']}, which is none of its categories")
            kept = {name: one[name] for name in _KEPT if name in one} | sizes[one["image_id"]]
            found[one["image_id"]]["annotations"].append({"label": names[one["category_id"]], **kept})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not COCO's images, annotations and categories: {error!r}") from None
    return list(found.values())
