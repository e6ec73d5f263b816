import json

import pytest

from lc_ray.data import read
from lc_ray.data.files import files
from lc_ray.errors import DataError
from lc_ray.tasks.object_detection import Task

SHELVES = {
    "info": {"year": 2026},
    "licenses": [],
    "images": [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}, {"id": 3, "file_name": "b.jpg", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 64, 48], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 5, "bbox": [5, 5, 2, 2]},
    ],
    "categories": [{"id": 2, "name": "bottle", "supercategory": "things"}, {"id": 5, "name": "can"}],
}


@pytest.mark.parametrize("first", list(SHELVES))
@pytest.mark.parametrize("indent", [None, 2])
def test_pictures_are_rows_with_their_boxes(tmp_path, first, indent):
    content = {first: SHELVES[first] or [{"id": 1}]} | {name: part for name, part in SHELVES.items() if name != first}
    (tmp_path / "instances_train.json").write_text(json.dumps(content, indent=indent), "utf-8")
    (file,) = files(str(tmp_path))
    reader = read.Reader(file)
    reader.require(["file_name", "annotations"])
    rows = [row for chunk in reader.rows(["file_name", "annotations"]) for row in chunk]
    assert [row["file_name"] for row in rows] == ["a.jpg", "b.jpg"]
    size = {"picture_size": [64, 48]}
    bottle, crowd, can = (
        {"label": label, "box": box, **size, **more}
        for label, box, more in (("bottle", [1, 2, 11, 22], {}), ("can", [0, 0, 64, 48], {"crowd": True}), ("can", [5, 5, 7, 7], {}))
    )
    assert [Task.clean(row["annotations"]) for row in rows] == [[bottle, crowd, can], []]


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_a_part_is_missing(tmp_path, part):
    (tmp_path / "a.json").write_text(json.dumps({name: rows for name, rows in SHELVES.items() if name != part}), "utf-8")
    (file,) = files(str(tmp_path))
    with pytest.raises(DataError, match="no column 'file_name'; there are: info, licenses, "):
        read.Reader(file).require(["file_name"])


def test_a_category_is_missing(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SHELVES | {"categories": []}), "utf-8")
    (file,) = files(str(tmp_path))
    with pytest.raises(DataError, match=r"COCO's annotation 1 is of category 2, which is none of its categories"):
        read.Reader(file).columns()


def test_what_is_annotated_of_other_pictures_is_left_out(tmp_path):
    rest = SHELVES["annotations"] + [{"id": 4, "image_id": 99, "category_id": 2, "bbox": [1, 2, 3, 4]}]
    for images, expected in ((SHELVES["images"][:1], [3]), (SHELVES["images"], [3, 0])):
        (tmp_path / "a.json").write_text(json.dumps(SHELVES | {"images": images, "annotations": rest}), "utf-8")
        (file,) = files(str(tmp_path))
        rows = [row for chunk in read.Reader(file).rows(["annotations"]) for row in chunk]
        assert [len(Task.clean(row["annotations"])) for row in rows] == expected
    (tmp_path / "a.json").write_text(json.dumps(SHELVES | {"images": [{"id": "7", "file_name": "a.jpg"}]}), "utf-8")
    with pytest.raises(DataError, match="none has the `image_id` of one of its images"):
        read.Reader(files(str(tmp_path))[0]).columns()


def test_a_caption_is_a_row(tmp_path):
    said = [{"image_id": image, "caption": text} for image, text in ((7, "a can"), (7, "a red can"), (3, "none"))]
    whole = {name: SHELVES[name] for name in ("info", "images", "licenses")} | {"annotations": said}
    (tmp_path / "captions_train2017.json").write_text(json.dumps(whole), "utf-8")
    reader = read.Reader(files(str(tmp_path))[0])
    reader.require(["file_name", "caption"])
    rows = [(row["file_name"], row["caption"]) for chunk in reader.rows(["file_name", "caption"]) for row in chunk]
    assert rows == [("a.jpg", "a can"), ("a.jpg", "a red can"), ("b.jpg", "none")]


def test_lines_of_objects_are_no_such_file(tmp_path):
    (tmp_path / "a.json").write_text('{"images": ["a.jpg"], "label": "x"}\n{"images": ["b.jpg"], "label": "y"}\n', "utf-8")
    (file,) = files(str(tmp_path))
    assert [row["label"] for chunk in read.Reader(file).rows(["label"]) for row in chunk] == ["x", "y"]
