"""Cells as boxes of objects, and those that are none."""

import json

import numpy as np
import pyarrow as pa
import pytest

from lc_ray.errors import DataError, SpecError
from lc_ray.spec import TaskSpec
from lc_ray.tasks.object_detection import Task

BOX = {"label": "a", "box": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "value",
    [
        [BOX],
        json.dumps([BOX]),
        json.dumps([BOX]).encode(),
        np.array([BOX], object),
        [{"label": "a", "bbox": [1, 2, 2, 2]}],
        [{"label": "a", "box": None, "bbox": [1, 2, 2, 2]}],
        str([BOX]),
        {"bbox": [[1, 2, 2, 2]], "category": ["a"], "id": [7]},
        {"bbox": [[1, 2, 2, 2]], "categories": ["a"]},
        {"boxes": [[1, 2, 3, 4]], "labels": ["a"]},
        {"bboxes": ["[1, 2, 2, 2]"], "label": ["a"]},
        json.dumps({"bbox": [[1, 2, 2, 2]], "category": ["a"]}).encode(),
        str({"bbox": [[1, 2, 2, 2]], "category": ["a"]}),
        [BOX | {"iscrowd": 0}, {"label": "a", "box": [0, 0, 9, 0], "iscrowd": 1}],
        {"bbox": np.array([[1, 2, 2, 2]]), "category": np.array(["a"])},
    ],
)
def test_cells_as_boxes(value):
    clean = Task.clean(value)
    assert clean == [{"label": "a", "box": [1, 2, 3, 4]}]
    assert pa.array([clean, []], Task.TYPE).to_pylist() == [[clean[0] | {"crowd": None}], []]


def test_a_picture_without_objects_is_legal():
    assert Task.clean([]) == Task.clean("[]") == Task.clean({"bbox": [], "category": []}) == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "missing"),
        (float("nan"), "missing"),
        (b" ", "missing"),
        ("{no", "not valid JSON"),
        ("no", "not a list"),
        ("[no", "not valid JSON"),
        ({"label": "a"}, "not a list"),
        ({}, "not a list"),
        ({"bbox": [[1, 2, 2, 2], [5, 6, 2, 2]], "category": ["a"]}, "of one length"),
        ([{"label": "a"}], "an object is"),
        ([[1, 2, 3, 4]], "an object is"),
        ([BOX | {"box": [1, 2, 3]}], "not 4 numbers"),
        ([BOX | {"box": [1, 2, 3, "x"]}], "not 4 numbers"),
        ([BOX | {"box": [1, 2, 3, float("inf")]}], "not finite"),
        ([BOX | {"box": [3, 2, 1, 4]}], "inside out"),
        ([BOX | {"box": [1, 2, 1, 4]}], "empty"),
        ([BOX | {"label": ""}], "label missing"),
        ([BOX] * 1001, "more than 1000"),
    ],
)
def test_cells_that_are_no_boxes(value, why):
    with pytest.raises(DataError, match=why):
        Task.clean(value)


def test_boxes_lie_inside_their_picture():
    picture = {"image": {"pixels": b"", "width": 96, "height": 64}}
    Task.check([{"label": "a", "box": [-1, 0, 97, 64]}], picture)
    for box in ([-2, 0, 50, 50], [0, 0, 50, 66], [97, 10, 98, 20], [0, -1, 5, 0]):
        with pytest.raises(DataError, match='outside of its picture of 96 × 64 pixels; "bbox" is read as left, top, width'):
            Task.check([{"label": "a", "box": box}], picture)
    with pytest.raises(SpecError, match="modality `picture`"):
        Task.check([], {"image": b"pixels"})


def test_labels_come_from_the_training_rows_sorted():
    options = Task.options(TaskSpec(kind="object_detection", threshold=0.3))
    task = Task.fit([[BOX | {"label": "b"}, {"label": "a", "box": [0, 0.1, 0.9, 1]}], []], options, {})
    assert task.config == {"labels": ["a", "b"], "threshold": 0.3}
    with pytest.raises(DataError, match="no training row has a box"):
        Task.fit([[], []], options, {})
    with pytest.raises(DataError, match="they are fractions"):
        Task.fit([[], [{"label": "a", "box": [0.9, 0.5, 1.1, 1.5]}]], options, {})
    with pytest.raises(DataError, match="never seen in training"):
        task.encode([{"label": "c", "box": [0, 0, 1, 1]}])
