"""Tables that have a row for each box, as TensorFlow's and RetinaNet's tools, and Roboflow, write them."""

import json

import pytest

from lc_ray.data import boxes, read
from lc_ray.data.files import File
from lc_ray.errors import DataError
from lc_ray.tasks.object_detection import Task

CAT, DOG = {"label": "cat", "box": [1, 2, 11, 12]}, {"label": "dog", "box": [5, 5, 30, 30]}
TABLES = {
    "tensorflow": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,9,9,cat,1,2,11,12\nb.jpg,9,9,dog,5,5,30,30\na.jpg,9,9,dog,5,5,30,30\n",
    "retinanet": "a.jpg,1,2,11,12,cat\na.jpg,5,5,30,30,dog\nb.jpg,5,5,30,30,dog\nc.jpg,,,,,\n",
    "openimages": "ImageID,LabelName,XMin,XMax,YMin,YMax\na.jpg,cat,1,11,2,12\na.jpg,dog,5,30,5,30\nb.jpg,dog,5,30,5,30\n",
    "extents": "image,label,x,y,w,h\na.jpg,cat,1,2,10,10\na.jpg,dog,5,5,25,25\nb.jpg,dog,5,5,25,25\n",
    "lists": 'image,label,bbox\na.jpg,cat,"[1.0, 2.0, 10.0, 10.0]"\na.jpg,dog,"[5, 5, 25, 25]"\nb.jpg,dog,"[5, 5, 25, 25]"\n',
}
NAMES = {"tensorflow": "filename", "openimages": "ImageID"}


@pytest.mark.parametrize("kind", TABLES)
def test_a_picture_has_the_boxes_of_all_its_rows(kind, tmp_path):
    (tmp_path / "a.csv").write_text(TABLES[kind])
    columns, image = ["image", "x1", "y1", "x2", "y2", "label"] if kind == "retinanet" else None, NAMES.get(kind, "image")
    reader = read.Reader(File(str(tmp_path / "a.csv")), columns)
    reader.require([image, "annotations"])
    for shards in (1, 2):
        found = [row for shard in range(shards) for chunk in reader.rows([image, "annotations"], shard, shards, 1) for row in chunk]
        assert {row[image].decode(): Task.clean(row["annotations"]) for row in found} == {
            **{"a.jpg": [CAT, DOG], "b.jpg": [DOG]},
            **({"c.jpg": []} if kind == "retinanet" else {}),
        }
        assert sorted(row["_row"] for row in found) == list(range(len(found)))
    alone = [box["label"] for chunk in reader.rows(["annotations"]) for row in chunk for box in Task.clean(row["annotations"])]
    assert sorted(alone) == ["cat", "dog", "dog"], "labels can be told without the pictures"


def test_lists_beside_each_other_are_boxes_too(tmp_path):
    """As columns of Hugging Face's datasets."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.jpg", "bbox": [[1, 2, 10, 10], [5, 5, 25, 25]], "category": ["cat", "dog"]}))
    (row,) = next(read.Reader(File(str(tmp_path / "a.jsonl"))).rows(["image", "annotations"]))
    assert Task.clean(row["annotations"]) == [CAT, DOG]


def test_a_broken_row_is_one(tmp_path):
    good, bad = '{"image": "a.jpg", "bbox": [1, 2, 10, 10], "label": "cat"}', '{"image": "b.jpg", "bbox": "[1, 2", "label": "cat"}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{bad}\n{{oops\n")
    broken, one, two = next(read.Reader(File(str(tmp_path / "a.jsonl"))).rows(["image", "annotations"]))
    assert broken["_error"] == "not valid JSON"
    assert Task.clean(one["annotations"]) == [CAT]
    with pytest.raises(DataError, match="a box is not 4 numbers"):
        Task.clean(two["annotations"])


def test_other_tables_have_no_boxes(tmp_path):
    assert boxes.parts(["label", "xmin", "ymin", "xmax"]) is boxes.parts(["xmin", "ymin", "xmax", "ymax"]) is None
    assert boxes.parts(["label", "bbox", "annotations"]) is None
    (tmp_path / "a.csv").write_text("image,label,x\na.jpg,cat,1\n")
    with pytest.raises(DataError, match="no column 'annotations'; there are: image, label, x"):
        read.Reader(File(str(tmp_path / "a.csv"))).require(["image", "annotations"])
