"""Object detection: labelled boxes in a picture, found by DETR and its descendants (Carion et al. 2020, arXiv:2005.12872).

Models are those of transformers' `AutoModelForObjectDetection`: each of a fixed number of queries answers with a box and its label. Whether
labels exclude each other, with one more for "no object" (DETR, YOLOS), or are decided each by itself (RT-DETR, Deformable DETR), shows in
how many there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert, box_iou, generalized_box_iou, generalized_box_iou_loss
from transformers import AutoConfig, AutoModelForObjectDetection

from lc_ray.errors import DataError, ModelError, SpecError
from lc_ray.modalities import image
from lc_ray.spec import InputSpec, ModelSpec, Section, module_name
from lc_ray.tasks import _task, classification
from lc_ray.units import Fraction

_MOST = 1000  # boxes of a picture
_FOUND = 100  # of a picture, as COCO's metrics have it
_PADDING = -1  # label of no box
_L1, _GIOU = 5.0, 2.0  # weights of a box's two distances, in the loss and in matching; those of DETR and RT-DETR
_NO_OBJECT = 0.1  # weight of the label "no object"
_INNER = {"q_proj", "k_proj", "v_proj", "query", "key", "value", "fc1"}  # first layers of attention and feed-forward
Found = dict[str, NDArray[Any]]  # boxes (found, 4) as corners in [0, 1], scores (found,) and labels (found,), best first


class Task(_task.Task):
    """Boxes with labels. The one input column's modality is `picture`.

    Args:
        labels: their names; a label's index is its position.
        threshold: score from which a box is part of an answer.
    """

    TYPE = pa.list_(pa.struct({"label": pa.string(), "box": pa.list_(pa.float64())}))
    objective = "map"

    class Options(Section):
        """Fields of the task section."""

        threshold: Fraction = Field(0.5, description="score from which a box is part of an answer; metrics are of all boxes")

    def __init__(self, labels: list[str], threshold: float = 0.5) -> None:
        self.labels, self.threshold = labels, threshold
        self._one = classification.Task(labels)

    @staticmethod
    def clean(value: Any) -> list[dict[str, Any]]:
        """A list, or its JSON, of {"label": name, "box": [left, top, right, bottom]}, or with COCO's "bbox": [left, top, width, height] instead.

        Numbers are pixels of the picture as it is shown, upright. A picture without objects has an empty list.

        Raises:
            DataError: missing, something else, inside out, or more than 1000 boxes.
        """
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise DataError("boxes are not valid JSON") from None
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise DataError("boxes missing: a picture without objects has an empty list")
        if not isinstance(value, list):
            raise DataError(f"not a list of boxes but {type(value).__name__}")
        if len(value) > _MOST:
            raise DataError(f"more than {_MOST} boxes")
        return [_clean(item) for item in value]

    @staticmethod
    def check(target: list[dict[str, Any]], values: dict[str, Any]) -> None:
        """Whether the boxes lie inside the picture; a pixel more is forgiven, as some datasets count from 1.

        Raises:
            DataError: one lies outside.
            SpecError: the input is not one column of pictures.
        """
        match list(values.values()):
            case [{"width": width, "height": height}]:
                pass
            case _:
                raise SpecError("data.inputs: object detection takes one column, of modality `picture`", "task 'object_detection'")
        for item in target:
            left, top, right, bottom = item["box"]
            if min(left, top) < -1 or right > width + 1 or bottom > height + 1 or min(right, bottom) <= 0 or left >= width or top >= height:
                raise DataError(f"box {[round(x, 1) for x in item['box']]} lies outside of its picture of {width} × {height} pixels")

    @classmethod
    def fit(cls, targets: Iterable[list[dict[str, Any]]], options: Any, columns: dict[str, Any]) -> Self:
        """Labels of the training rows, sorted.

        Raises:
            DataError: no row has a box.
        """
        labels = sorted({item["label"] for target in targets for item in target})
        if not labels:
            raise DataError("no training row has a box", fix="check `data.target`")
        return cls(labels, options.threshold)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {"labels": self.labels, "threshold": self.threshold}

    def encode(self, target: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
        """`labels` (boxes,), and `boxes` (boxes, 4), corners in pixels.

        Raises:
            DataError: a label never seen in training.
        """
        labels = np.array([self._one.encode(item["label"]) for item in target], np.int64)
        return {"labels": labels, "boxes": np.array([item["box"] for item in target], np.float32).reshape(-1, 4)}

    def collate(self, encoded: list[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """`labels` (batch, most boxes), -1 where there is none, and `boxes` (batch, most boxes, 4)."""
        most = max(len(row["labels"]) for row in encoded)
        labels = np.full((len(encoded), most), _PADDING)
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(encoded), most, 1))
        for i, row in enumerate(encoded):
            labels[i, : len(row["labels"])], boxes[i, : len(row["boxes"])] = row["labels"], row["boxes"]
        return {"labels": torch.from_numpy(labels), "boxes": torch.from_numpy(boxes)}

    def teach(self, inputs: _task.Batch, targets: Any, random: torch.Generator, training: bool) -> tuple[_task.Batch, Any]:
        """The pixels alone; boxes by centre, width and height, as fractions of their picture, and `size` (batch, 2), its width and height."""
        pixels, size = _split(inputs)
        corners = (targets["boxes"] / size.repeat(1, 2)[:, None]).clamp(0, 1)
        return pixels, targets | {"boxes": box_convert(corners, "xyxy", "cxcywh"), "size": size}

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Set prediction loss, a mean over the boxes: each is matched with one query, the others are to find nothing.

        Labels that exclude each other are judged by cross-entropy, others by varifocal loss (Zhang et al. 2021, arXiv:2008.13367), as RT-DETR's
        are (Zhao et al. 2024, arXiv:2304.08069); boxes by L1 distance and generalised IoU (Rezatofighi et al. 2019, arXiv:1902.09630).

        Args:
            outputs: (batch, queries, labels + 4), or (batch, layers, queries, labels + 4), of which each layer is judged.
            targets: what `teach` gave.
        """
        layers = outputs.float() if outputs.dim() == 4 else outputs.float().unsqueeze(1)
        labels, boxes = (targets[name].repeat_interleave(layers.shape[1], 0) for name in ("labels", "boxes"))
        logits, guess = layers[..., :-4].flatten(0, 1), layers[..., -4:].flatten(0, 1)
        row, query, item = self._match(logits.detach(), guess.detach(), labels, boxes)
        total = max(1, len(row))
        matched, truth, label = guess[row, query], boxes[row, item], labels[row, item]
        apart = _apart(matched, truth).sum()
        if self._exclusive(logits):
            wanted = torch.full(logits.shape[:2], len(self.labels), device=logits.device)
            wanted[row, query] = label
            weight = logits.new_ones(len(self.labels) + 1)
            weight[-1] = _NO_OBJECT
            return F.cross_entropy(logits.transpose(1, 2), wanted, weight) + apart / total
        soft, weight = torch.zeros_like(logits), 0.75 * logits.detach().sigmoid() ** 2
        soft[row, query, label] = box_iou(_corners(matched.detach())[:, None], _corners(truth)[:, None]).flatten()
        weight[row, query, label] = soft[row, query, label]
        return (F.binary_cross_entropy_with_logits(logits, soft, weight, reduction="sum") + apart) / total

    def _match(self, logits: Tensor, guess: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of least cost as (row, query, box): each (boxes of all rows,)."""
        chosen = labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1)  # (rows, queries, most boxes)
        if self._exclusive(logits):
            fit = logits.softmax(-1)
        else:  # what focal loss would change by
            p = logits.sigmoid()
            fit = 2 * (0.25 * (1 - p) ** 2 * F.logsigmoid(logits) - 0.75 * p**2 * F.logsigmoid(-logits))
        cost = _L1 * torch.cdist(guess, boxes, 1) - _GIOU * generalized_box_iou(_corners(guess), _corners(boxes)) - fit.gather(-1, chosen)
        return _assign(cost, (labels != _PADDING).sum(1).tolist())

    def _exclusive(self, logits: Any) -> bool:
        return bool(logits.shape[-1] > len(self.labels))

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Any, temperature: float) -> Tensor:
        """Distance from the teacher's queries, each matched with one of the student's (Chang et al. 2022, arXiv:2211.10156).

        Labels: Kullback-Leibler divergence of the softened probabilities. Boxes: as in the loss, weighted by how sure the teacher is. A mean
        over what the teacher found.
        """
        outputs = outputs[:, -1] if outputs.dim() == 4 else outputs
        logits, guess, soft, truth = (x for side in (outputs, teacher) for x in (side[..., :-4].float(), side[..., -4:].float()))
        probability = [self._probability(x.detach()) for x in (logits, soft)]
        cost = torch.cdist(probability[0], probability[1], 1) + _L1 * torch.cdist(guess.detach(), truth, 1)
        row, query, item = _assign(cost, [truth.shape[1]] * len(truth))
        logits, guess, soft, truth = logits[row, query], guess[row, query], soft[row, item], truth[row, item]  # (rows × queries, ...)
        sure = probability[1].amax(-1)[row, item]
        total = sure.sum().clamp(min=1)
        if self._exclusive(logits):
            student, parent = (F.log_softmax(x / temperature, -1) for x in (logits, soft))
            labels = F.kl_div(student, parent, log_target=True, reduction="batchmean")
        else:
            wanted = torch.sigmoid(soft / temperature)
            both = [F.binary_cross_entropy_with_logits(x / temperature, wanted, reduction="sum") for x in (logits, soft)]
            labels = (both[0] - both[1]) / total
        return labels * temperature**2 + (sure * _apart(guess, truth)).sum() / total

    def _probability(self, logits: Tensor) -> Tensor:
        """(..., labels), without that of "no object"."""
        return logits.softmax(-1)[..., :-1] if self._exclusive(logits) else logits.sigmoid()

    def answer(self, run: _task.Run, inputs: _task.Batch) -> list[Any]:
        """What was found in each picture: see `Found`."""
        return [self._found(torch.from_numpy(output)) for output in run(_split(inputs)[0])]

    def _found(self, output: Tensor) -> Found:
        probability, boxes = self._probability(output[:, :-4]), _corners(output[:, -4:])
        scores, places = probability.flatten().sort(descending=True, stable=True)
        scores, places = scores[:_FOUND], places[:_FOUND]
        kept = boxes[places // probability.shape[-1]].clamp(0, 1)
        return {"boxes": kept.numpy(), "scores": scores.numpy(), "labels": (places % probability.shape[-1]).numpy()}

    def score(self, run: _task.Run, inputs: _task.Batch, targets: Any) -> list[Any]:
        """What was found in each picture, and `size`, its width and height in pixels."""
        found = [self._found(torch.from_numpy(output)) for output in run(inputs)]
        return [row | {"size": size} for row, size in zip(found, targets["size"].cpu().numpy(), strict=True)]

    def metrics(self, scores: list[Any], encoded: list[Any]) -> dict[str, float]:
        """COCO's mean average precision (`map`: over IoU from 0.5 to 0.95), at IoU 0.5 and 0.75, and mean average recall of 100 boxes."""
        # Every worker has all rows already: none is to be asked for its own.
        measure = MeanAveragePrecision(backend="pycocotools", sync_on_compute=False)
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

    def mistake(self, answer: dict[str, Any], target: list[dict[str, Any]]) -> float | None:
        """The best score of an object that is not there with an IoU of at least 0.5; 0 if some are only missing."""
        left = list(target)
        for found in answer["objects"]:
            near = [_iou(found["box"], item["box"]) if item["label"] == found["label"] else 0.0 for item in left]
            if not near or max(near) < 0.5:
                return float(found["score"])
            left.pop(int(np.argmax(near)))
        return 0.0 if left else None


class Model(nn.Module):
    """A detector of transformers, normalisation of colours included.

    Args:
        net: the detector.
        config: what `rebuild` needs.
    """

    def __init__(self, net: Any, config: dict[str, Any]) -> None:
        super().__init__()
        _thaw(net)
        self.net, self.config = net, config
        self.pixels = f"{module_name(config['column'])}.pixels"
        self.keep = [module for name, module in net.named_modules() if not any(True for _ in module.children()) and not _is_prunable(name)]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Task) -> Self:
        """A detector from a folder or hub id, with a new layer for the labels; or with random weights of that shape.

        Raises:
            ModelError: there is none, or it needs a package that is not installed.
        """
        (given,) = inputs
        source = sources[given.column]
        try:
            config = _configured(AutoConfig.from_pretrained(source), task)
            if given.weights == "random":
                net = AutoModelForObjectDetection.from_config(config)
            else:
                net = AutoModelForObjectDetection.from_pretrained(
                    source, config=config, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
                )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"no detector can be loaded: {str(error).strip().splitlines()[0]}", source) from None
        return cls(net, {"column": given.column, "transformers": config.to_dict(), **image.statistics(Path(source))})

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Task) -> Self:
        """With weights yet to be loaded, from `config`."""
        kept = {k: v for k, v in config["transformers"].items() if k != "model_type"}
        return cls(AutoModelForObjectDetection.from_config(AutoConfig.for_model(config["transformers"]["model_type"], **kept)), config)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Pixels (batch, 3, side, side) → logits of each query's label and its box's centre, width and height in [0, 1].

        Returns:
            (batch, queries, labels + 4); while training, of each layer that answers, the last one last: (batch, layers, queries, labels + 4).
        """
        found = self.net(pixel_values=(batch[self.pixels].float() / 255 - cast(Tensor, self.mean)) / cast(Tensor, self.std))
        last = torch.cat([found.logits, found.pred_boxes], -1)
        if not self.training:
            return last
        earlier = getattr(found, "intermediate_logits", None)
        if earlier is None:
            return last.unsqueeze(1)
        layers = torch.cat([earlier, found.intermediate_reference_points], -1)
        if getattr(found, "enc_topk_logits", None) is not None:
            first = torch.cat([found.enc_topk_logits, found.enc_topk_bboxes], -1)
            layers = torch.cat([first.unsqueeze(1), layers], 1)
        return layers


def _configured(config: Any, task: Task) -> Any:
    config.id2label, config.label2id = dict(enumerate(task.labels)), {label: i for i, label in enumerate(task.labels)}
    if hasattr(config, "num_denoising"):
        config.num_denoising = 0  # queries made from the targets, which a model that may be traced is not given
    return config


def _is_prunable(name: str) -> bool:
    """Whether nothing but the next layer sees what this one gives. Queries, boxes, and all that is added to them, must keep their width."""
    path = name.split(".")
    inner = path[-1] in _INNER or path[-2:] == ["intermediate", "dense"]
    return inner or "backbone" in path or bool({"fpn_blocks", "pan_blocks"} & set(path))


def _thaw(module: nn.Module) -> None:
    """Put layers that can be pruned in place of transformers' frozen batch normalisation, whose statistics stay as they are."""
    for name, child in module.named_children():
        if type(child).__name__.endswith("FrozenBatchNorm2d"):
            known = child.state_dict()
            fixed = _FixedNorm(len(known["weight"]), device=known["weight"].device)
            fixed.load_state_dict(known, strict=False)  # all but a count of batches
            setattr(module, name, fixed.eval())
        else:
            _thaw(child)


class _FixedNorm(nn.BatchNorm2d):
    """Batch normalisation by statistics that training leaves as they are."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def _clean(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict) or "label" not in item or not {"box", "bbox"} & item.keys():
        raise DataError('an object is {"label": name, "box": [left, top, right, bottom]}, or has "bbox": [left, top, width, height]')
    box = item.get("box")
    box = item.get("bbox") if box is None else box  # Arrow gives every struct all fields
    try:
        left, top, third, fourth = (float(x) for x in cast(Any, box))
    except (TypeError, ValueError):
        raise DataError("a box is not 4 numbers") from None
    right, bottom = (third, fourth) if item.get("box") is not None else (left + third, top + fourth)
    if not all(math.isfinite(x) for x in (left, top, right, bottom)):
        raise DataError("a box is not finite")
    if left >= right or top >= bottom:
        raise DataError("a box is empty or inside out: left must be less than right, top less than bottom")
    return {"label": classification.Task.clean(item["label"]), "box": [left, top, right, bottom]}


def _split(inputs: _task.Batch) -> tuple[_task.Batch, Tensor]:
    """What the model sees, and the pictures' width and height (batch, 2)."""
    (name,) = (name for name in inputs if name.endswith(".original"))
    return {k: v for k, v in inputs.items() if k != name}, inputs[name]


def _corners(boxes: Tensor) -> Tensor:
    return cast(Tensor, box_convert(boxes, "cxcywh", "xyxy"))


def _apart(boxes: Tensor, others: Tensor) -> Tensor:
    """Distance of each box from its other: (boxes, 4), (boxes, 4) → (boxes,)."""
    return cast(Tensor, _L1 * (boxes - others).abs().sum(-1) + _GIOU * generalized_box_iou_loss(_corners(boxes), _corners(others)))


def _assign(cost: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of least cost (Kuhn 1955) as (row, query, item), of costs (rows, queries, items), of which each row has its own count."""
    finite = torch.nan_to_num(cost, nan=1e9, posinf=1e9, neginf=1e9)  # a loss that is lost is found later, with its step
    pairs = [linear_sum_assignment(of_row[:, :count]) for of_row, count in zip(finite.cpu().numpy(), counts, strict=True)]
    row = np.repeat(np.arange(len(pairs)), [len(queries) for queries, _ in pairs])
    query, item = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return tuple(torch.from_numpy(x).to(cost.device) for x in (row, query, item))  # type: ignore[return-value]


def _iou(one: list[float], other: list[float]) -> float:
    return float(box_iou(torch.tensor([one]), torch.tensor([other])))
