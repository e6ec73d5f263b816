"""Object detection: labelled boxes in a picture, found by DETR and its descendants of transformers, or by torchvision's Faster R-CNN.

Which of the two it is shows in the base model's name: torchvision's models have one, others are a folder or hub id.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from lc_ray.errors import DataError, SpecError
from lc_ray.modalities import _text, image
from lc_ray.section import Section
from lc_ray.spec import InputSpec, ModelSpec, module_name
from lc_ray.tasks import _detr, _labels, _rcnn, _task, classification
from lc_ray.units import Fraction

_MOST = 1000  # boxes of a picture
_NEAR = 0.01  # of a side, by which sizes may differ
_FRACTION = 2.0  # of a left side and a width that are at most 1
_ONE = {"categories": "category", "labels": "label", "boxes": "box", "bboxes": "bbox"}  # of names of lists, as metadata beside pictures may have them
Found = dict[str, NDArray[Any]]  # boxes (found, 4) as corners in [0, 1], scores (found,) and labels (found,), best first


class Task(_labels.Task):
    """Boxes with labels. The one input column's modality is `picture`.

    Args:
        labels: their names; a label's index is its position.
        threshold: score from which a box is part of an answer.
        keys: what rows have in place of the names, if something else.
    """

    TYPE = pa.list_(pa.struct({"label": pa.string(), "box": pa.list_(pa.float64()), "crowd": pa.bool_()}))
    objective = "map"
    COLUMNS: ClassVar[dict[str, str]] = {"image": "picture"}

    class Options(Section):
        """Fields of the task section."""

        threshold: Fraction = Field(0.5, description="score from which a box is part of an answer; metrics are of all boxes")

    def __init__(self, labels: list[str], threshold: float = 0.5, keys: list[str] | None = None) -> None:
        super().__init__(labels, keys=keys)
        self.threshold = threshold
        self.finding: Any = _detr.Finding(len(labels))

    @staticmethod
    def clean(value: Any) -> list[dict[str, Any]]:
        """A list, or its JSON, of {"label": name, "box": [left, top, right, bottom]}, or with COCO's "bbox": [left, top, width, height] instead;
        "category" may stand for "label".

        Numbers are pixels of the picture as it is shown, upright. A picture without objects has an empty list. Boxes that COCO marks as crowds
        (`iscrowd`), which hold many objects, are not learned, as in DETR's and torchvision's own training; they are kept, as `crowd`, for metrics.

        Raises:
            DataError: missing, something else, inside out, or more than 1000 boxes.
        """
        value = _text.listed(value, ("[", "{"))
        if isinstance(value, dict) and value:  # as Hugging Face datasets may keep a list of them
            value = _rows(value)
        if _text.absent(value):
            raise DataError("boxes missing: a picture without objects has an empty list")
        if not isinstance(value, list):
            raise DataError(f"not a list of boxes but {type(value).__name__}")
        if len(value) > _MOST:
            raise DataError(f"more than {_MOST} boxes")
        found: list[dict[str, Any]] = []
        for item in value:
            crowd = isinstance(item, dict) and item.get("iscrowd") in (1, "1")
            with contextlib.suppress(*([DataError] if crowd else [])):  # nothing is learned of it
                found.append(_clean(item) | ({"crowd": True} if crowd else {}))
        return found

    @staticmethod
    def check(target: list[dict[str, Any]], values: dict[str, Any]) -> None:
        """Whether the boxes lie inside the picture, and are of one of its size; a pixel more is forgiven, as some datasets count from 1.

        Raises:
            DataError: one lies outside, or is of the picture as it is stored, which its EXIF data turn, or as it was before it was resized.
            SpecError: the input is not one column of pictures.
        """
        match list(values.values()):
            case [{"width": width, "height": height, **rest}]:
                pass
            case _:
                raise SpecError("data.inputs: object detection takes one column, of modality `picture`", "task 'object_detection'")
        for item in _objects(target):
            left, top, right, bottom = item["box"]
            across, down = item.get("picture_size", (width, height))
            stored = bool(rest.get("lying"))
            same = [abs(across - a) <= _NEAR * a + 1 and abs(down - b) <= _NEAR * b + 1 for a, b in ((width, height), (height, width))]
            if not same[0] and (stored or not same[1]):  # other sizes that are swapped are a mistake of those who wrote them
                turned = ", which its EXIF data turn: give boxes of it upright" if stored and same[1] else ""
                raise DataError(f"boxes of a picture of {across:g} × {down:g} pixels; it has {width} × {height}{turned}")
            if min(left, top) < -1 or right > width + 1 or bottom > height + 1 or min(right, bottom) <= 0 or left >= width or top >= height:
                box = f"box {[round(x, 1) for x in item['box']]} (left, top, right, bottom)"
                read = '"bbox" is read as left, top, width, height, "box" as corners'
                raise DataError(f"{box} lies outside of its picture of {width} × {height} pixels; {read}")

    @classmethod
    def fit(cls, targets: Iterable[list[dict[str, Any]]], options: Any, columns: dict[str, Any]) -> Self:
        """Labels of the training rows, sorted.

        Raises:
            DataError: no row has a box, or all boxes are fractions of their pictures, as YOLO has them.
        """
        labels, farthest = set[str](), 0.0
        for item in (item for target in targets for item in _objects(target)):
            labels.add(item["label"])
            farthest = max(farthest, *item["box"])
        if not labels:
            raise DataError("no training row has a box", fix="check `data.target`")
        if farthest <= _FRACTION:
            raise DataError("all boxes lie in the first pixels: they are fractions of the pictures", fix="give them in pixels")
        return cls(sorted(labels), options.threshold)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {**super().config, "threshold": self.threshold}

    def bind(self, columns: dict[str, Any]) -> Self:
        """Take the base model's name, and the size of its pictures.

        Raises:
            ModelError: a torchvision model that is no Faster R-CNN.
        """
        ((column, modality),) = columns.items()
        if image.in_torchvision(modality.spec.base):
            self.finding = _rcnn.Finding(len(self.labels), module_name(column), modality.spec.base, modality.spec.size)
        return self

    def encode(self, target: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
        """`labels` (boxes,), `boxes` (boxes, 4), corners in pixels, and `iscrowd` (boxes,), 1 or 0.

        Raises:
            DataError: a label never seen in training.
        """
        known = [item for item in target if not item.get("crowd") or item["label"] in self._index]
        labels = np.array([self.index(item["label"]) for item in known], np.int64)
        crowds = np.array([bool(item.get("crowd")) for item in known], np.int64)
        return {"labels": labels, "boxes": np.array([item["box"] for item in known], np.float32).reshape(-1, 4), "iscrowd": crowds}

    def collate(self, encoded: list[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """`labels` (batch, most boxes), -1 where there is none, and `boxes` (batch, most boxes, 4), without those of crowds."""
        encoded = [{name: row[name][row["iscrowd"] == 0] for name in ("labels", "boxes")} for row in encoded]
        most = max(len(row["labels"]) for row in encoded)
        labels = np.full((len(encoded), most), _detr.PADDING)
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(encoded), most, 1))
        for i, row in enumerate(encoded):
            labels[i, : len(row["labels"])], boxes[i, : len(row["boxes"])] = row["labels"], row["boxes"]
        return {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes)}

    def teach(self, inputs: _task.Batch, targets: Any, random: torch.Generator, training: bool) -> tuple[_task.Batch, Any]:
        """The pixels, with what a detector is to find if it takes part in its own loss, while training; boxes as fractions of their picture, and
        `size` (batch, 2), its width and height."""
        pixels, size = _split(inputs)
        corners = (targets["boxes"] / size.repeat(1, 2)[:, None]).clamp(0, 1)
        return self.finding.teach(pixels, targets | {"boxes": corners, "size": size}, training)  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """That of the detector's kind: see `_detr` and `_rcnn`."""
        return self.finding.loss(outputs, targets)  # type: ignore[no-any-return]

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Any, temperature: float) -> Tensor:
        """Distance from what the teacher found: see `_detr` and `_rcnn`."""
        return self.finding.distill(outputs, teacher, targets, temperature)  # type: ignore[no-any-return]

    def outputs(self, run: _task.Run, inputs: _task.Batch) -> Any:
        """One pass of the model over a batch that was taught."""
        return self.finding.outputs(run, inputs)

    def answer(self, run: _task.Run, inputs: _task.Batch) -> list[Any]:
        """What was found in each picture: see `Found`."""
        return self._find(run, _split(inputs)[0])

    def _find(self, run: _task.Run, pixels: _task.Batch) -> list[Any]:
        return [dict(zip(("boxes", "scores", "labels"), (x.numpy() for x in row), strict=True)) for row in self.finding.find(run, pixels)]

    def score(self, run: _task.Run, inputs: _task.Batch, targets: Any) -> list[Any]:
        """What was found in each picture, and `size`, its width and height in pixels."""
        return [row | {"size": size} for row, size in zip(self._find(run, inputs), targets["size"].cpu().numpy(), strict=True)]

    def metrics(self, scores: list[Any], encoded: list[Any]) -> dict[str, float]:
        """COCO's mean average precision (`map`: over IoU from 0.5 to 0.95), at IoU 0.5 and 0.75, and mean average recall of 100 boxes.

        What is found in a crowd of its label counts neither as right nor as wrong.
        """
        # COCO's own thresholds: torchmetrics' are in fp32, and few boxes have recalls that are beside them. Every worker has all rows already.
        cuts = {"iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(), "rec_thresholds": np.linspace(0, 1, 101).tolist()}
        measure = MeanAveragePrecision(backend="pycocotools", sync_on_compute=False, **cuts)
        guess = [{"boxes": s["boxes"] * np.tile(s["size"], 2), "scores": s["scores"], "labels": s["labels"]} for s in scores]
        measure.update(*([{k: torch.from_numpy(v) for k, v in row.items()} for row in rows] for rows in (guess, encoded)))
        found = measure.compute()
        return {name: max(0.0, float(found[name])) for name in ("map", "map_50", "map_75", "mar_100")}

    def decode(self, output: Any, parts: _task.Parts) -> dict[str, Any]:
        """What was found → the objects above the threshold, best first; boxes are [left, top, right, bottom] in pixels of the original picture."""
        (column,) = parts.values()
        boxes = np.asarray(output["boxes"], np.float64) * np.tile(column["original"], 2)
        return {
            "objects": [
                {"label": self.labels[label], "score": float(score), "box": [round(float(x), 2) for x in box]}
                for box, score, label in zip(boxes, output["scores"], output["labels"], strict=True)
                if score >= self.threshold
            ]
        }

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        box = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4, "description": "left, top, right, bottom"}
        found = _task.fields(label={"enum": self.labels}, score=_task.PROBABILITY, box=box)
        return _task.fields(objects={"type": "array", "items": found})

    def mistake(self, answer: dict[str, Any], target: list[dict[str, Any]]) -> float | None:
        """The best score of an object that is not there with an IoU of at least 0.5; 0 if some are only missing."""
        left, crowds = _objects(target), [item for item in target if item.get("crowd") and item["label"] in self._index]
        for found in answer["objects"]:
            near, inside = (
                [of(found["box"], item["box"]) if self.shown(item["label"]) == found["label"] else 0.0 for item in items]
                for of, items in ((_iou, left), (_inside, crowds))
            )
            if max(near, default=0) >= 0.5:
                left.pop(int(np.argmax(near)))
            elif max(inside, default=0) < 0.5:
                return float(found["score"])
        return 0.0 if left else None


class Model:
    """Of the base model's kind."""

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Task) -> Any:
        """A detector with a new layer for the labels, from a folder, hub id or torchvision's name; or with random weights of that shape.

        Raises:
            ModelError: there is none, its weights can't be had, or it needs a package that is not installed.
        """
        (given,) = inputs
        kind = _rcnn.Model if image.in_torchvision(sources[given.column]) else _detr.Model
        return kind.pretrained(given, sources[given.column], task)

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Task) -> Any:
        """With weights yet to be loaded, from `config`."""
        return (_rcnn.Model if "torchvision" in config else _detr.Model).rebuild(config, task)


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {_ONE.get(name, name): cell for name, cell in columns.items()}
    cells = [_text.listed(cell) for cell in columns.values()]
    if not all(isinstance(cell, list) for cell in cells) or len({len(cell) for cell in cells}) > 1:
        raise DataError("not a list of boxes, nor lists of their labels and corners that are of one length")
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _clean(item: Any) -> dict[str, Any]:
    if isinstance(item, dict) and "category" in item:
        item = {"label": item["category"], **item}
    if not isinstance(item, dict) or "label" not in item or not {"box", "bbox"} & item.keys():
        raise DataError('an object is {"label": name, "box": [left, top, right, bottom]}, or has "bbox": [left, top, width, height]')
    box = item.get("box")
    box = item.get("bbox") if box is None else box  # Arrow gives every struct all fields
    try:
        left, top, third, fourth = (float(x) for x in cast(Any, _text.listed(box)))
    except (TypeError, ValueError):
        raise DataError("a box is not 4 numbers") from None
    right, bottom = (third, fourth) if item.get("box") is not None else (left + third, top + fourth)
    if not all(math.isfinite(x) for x in (left, top, right, bottom)):
        raise DataError("a box is not finite")
    if left >= right or top >= bottom:
        raise DataError("a box is empty or inside out: left must be less than right, top less than bottom")
    size = item.get("picture_size") or ()
    told = {"picture_size": size} if len(size) == 2 and all(isinstance(side, int | float) and side > 0 for side in size) else {}
    return {"label": classification.Task.clean(item["label"]), "box": [left, top, right, bottom], **told}


def _split(inputs: _task.Batch) -> tuple[_task.Batch, Tensor]:
    """What the model sees, and the pictures' width and height (batch, 2)."""
    (name,) = (name for name in inputs if name.endswith(".original"))
    return {k: v for k, v in inputs.items() if k != name}, inputs[name]


def _objects(target: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are no crowds."""
    return [item for item in target if not item.get("crowd")]


def _iou(one: list[float], other: list[float]) -> float:
    return float(box_iou(torch.tensor([one]), torch.tensor([other])))


def _inside(one: list[float], other: list[float]) -> float:
    """How much of a box is in another."""
    across, down = (max(0.0, min(one[end], other[end]) - max(one[end - 2], other[end - 2])) for end in (2, 3))
    return across * down / ((one[2] - one[0]) * (one[3] - one[1]))
