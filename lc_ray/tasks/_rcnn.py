"""Detection in two stages: torchvision's Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) on a feature pyramid.

The first stage looks at the whole picture, and proposes regions; the second judges what each of them shows. What lies between, to choose
regions and to cut them out of the feature maps, has no weights: when the model answers, the task does it, and an engine runs the stages.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers

from lc_ray.errors import ModelError
from lc_ray.modalities import image
from lc_ray.modalities._padding import padded
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks._fixed_norm import fix
from lc_ray.tasks._task import Batch, Run, divergence, named

_PROPOSALS = 300  # of a picture when the model answers, as in the paper
_CALIBRATED = 16  # of a picture, for the ranges of int8: those that are most likely something
_IMITATED = 16  # true boxes of a picture, in distillation
_GRID = 4  # regions along a side of the picture, in distillation
_DIVISOR = 32  # that a feature pyramid takes sides of
_LIVE = ("_v2",)  # ends of names of models that were published with batch normalisation that goes on learning
_NO_EPSILON = "fasterrcnn_resnet50_fpn"  # whose published weights were trained with nothing added to the variance
_CROPS, _BOXES, _LABELS = "crops", "boxes", "labels"


class Model(nn.Module):
    """Faster R-CNN, normalisation of colours included. Pictures are as large as they are given.

    Args:
        net: torchvision's model.
        config: what `rebuild` needs.
    """

    def __init__(self, net: FasterRCNN, config: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.config = net, config
        self.column = module_name(config["column"])
        head = net.rpn.head
        # Widths that the task, and a teacher, know: those of the pyramid's maps and of all answers.
        self.keep = [net.backbone.fpn.layer_blocks, head.cls_logits, head.bbox_pred, net.roi_heads.box_predictor]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str, task: Any) -> Self:
        """See `object_detection.Model`. Statistics of batch normalisation that were fixed when the weights were published stay so."""
        weights = spec.weights or "pretrained"
        net = _build(source)
        if weights != "random":
            image.fill(net, source, weights)
        known = {"column": spec.column, "torchvision": source, "fixed": weights != "random" and not source.endswith(_LIVE)}
        return cls(_fitted(net, known, task), known | {"mean": net.transform.image_mean, "std": net.transform.image_std})

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(_fitted(_build(config["torchvision"]), config, task), config)

    def forward(self, batch: Batch) -> Tensor:
        """Pixels alone → maps; crops → what they show; pixels with what they show → the loss, and what a student is to imitate.

        Args:
            batch: `pixels` (batch, 3, side, side), or `crops` (batch, regions, width, height, height); while training also `labels` (batch, most
                boxes), -1 where there is none, and `boxes` (batch, most boxes, 4), corners in [0, 1].

        Returns:
            See `_packed`; or (batch, regions, labels + 1 for none, and 4 times as many); or (batch, 1 + regions × (a crop and what it shows)).
        """
        own = named(batch, self.column)
        if _CROPS in own:
            return self._judge(own[_CROPS].flatten(0, 1)).view(*own[_CROPS].shape[:2], -1)
        images, maps, found = self._look(own["pixels"])
        return self._learn(images, maps, found, own[_LABELS], own[_BOXES]) if _LABELS in own else _packed(maps, found)

    def stages(self, batch: Batch) -> list[Batch]:
        """A batch as each of the stages takes it."""
        pixels = batch[f"{self.column}.pixels"]
        images, maps, found = self._look(pixels)
        regions = [boxes[:_CALIBRATED] for boxes in propose(self.net, images, maps, found)]
        return [{f"{self.column}.pixels": pixels}, {f"{self.column}.{_CROPS}": crop(self.net, images, maps, _padded(regions, images))}]

    def followed(self, batch: Batch) -> list[Tensor]:
        """Both stages, each on all of the pyramid's maps: what a pruner can follow to where the layers lead."""
        _, maps, (scores, shifts) = self._look(batch[f"{self.column}.pixels"])
        size = self.net.roi_heads.box_roi_pool.output_size
        return [*scores, *shifts, *(self._judge(F.adaptive_avg_pool2d(of_map, size)) for of_map in maps)]

    def _look(self, pixels: Tensor) -> tuple[ImageList, list[Tensor], tuple[list[Tensor], list[Tensor]]]:
        """Pixels → pictures, the pyramid's maps of them, and for each map what its anchors show: scores, and how boxes differ from them."""
        scaled = (pixels.float() / 255 - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        side = int(pixels.shape[-1])
        whole = F.pad(scaled, (0, -side % _DIVISOR, 0, -side % _DIVISOR))
        maps = list(self.net.backbone(whole).values())
        return ImageList(whole, [(side, side)] * len(whole)), maps, self.net.rpn.head(maps)

    def _judge(self, crops: Tensor) -> Tensor:
        """Crops (regions, width, height, height) → scores of the labels, and boxes: (regions, 5 × labels)."""
        return torch.cat(self.net.roi_heads.box_predictor(self.net.roi_heads.box_head(crops)), -1)

    def _learn(self, images: ImageList, maps: list[Tensor], found: Any, labels: Tensor, boxes: Tensor) -> Tensor:
        """Losses of both stages, as torchvision has them, and the regions that a student is to see as its teacher does."""
        rpn, heads, side = self.net.rpn, self.net.roi_heads, images.image_sizes[0][0]
        truth = [{"boxes": b[known] * side, "labels": row[known] + 1} for row, b in zip(labels, boxes, strict=True) for known in [row >= 0]]
        anchors = rpn.anchor_generator(images, maps)
        near, wanted = rpn.assign_targets_to_anchors(anchors, truth)
        scores, shifts = (x.float() for x in concat_box_prediction_layers(*found))
        first = rpn.compute_loss(scores, shifts, near, rpn.box_coder.encode(wanted, anchors))
        chosen, _, shown, moved = heads.select_training_samples(propose(self.net, images, maps, found), truth)
        regions = list(torch.cat([boxes[:, :_IMITATED], _grid(boxes)], 1) * side)
        crops = [pool(self.net, images, maps, each) for each in (chosen, regions)]
        judged, imitated = torch.split(self._judge(torch.cat(crops)).float(), [len(each) for each in crops])
        count = heads.box_predictor.cls_score.out_features
        second = fastrcnn_loss(judged[:, :count], judged[:, count:], shown, moved)
        loss = torch.stack([*first, *second]).sum().expand(len(labels), 1)
        return torch.cat([loss, torch.cat([crops[1].flatten(1), imitated], 1).view(len(labels), -1)], 1)


class Finding:
    """Objects as regions that were proposed and judged.

    Args:
        labels: how many there are.
        column: name of the tensors.
        base: torchvision's name of the model.
        side: of the pictures, in pixels.

    Raises:
        ModelError: the model is no Faster R-CNN.
    """

    def __init__(self, labels: int, column: str, base: str, side: int) -> None:
        self.labels, self.column, self.side = labels, column, side
        with torch.device("meta"):  # no weights: those are the engine's
            self.net = _build(base).eval()

    @functools.cached_property
    def _shapes(self) -> list[torch.Size]:
        """Height and width of each of the pyramid's maps."""
        side = self.side + -self.side % _DIVISOR
        return [x.shape[-2:] for x in self.net.backbone(torch.empty(1, 3, side, side, device="meta")).values()]

    def teach(self, pixels: Batch, targets: dict[str, Tensor], training: bool) -> tuple[Batch, dict[str, Tensor]]:
        """The pixels; while training with what they show, as regions to learn from are drawn near it."""
        own = {f"{self.column}.{name}": targets[name] for name in (_LABELS, _BOXES)} if training else {}
        return pixels | own, targets

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Whether an anchor is something and where, and what a region shows and where: a mean over anchors, and one over regions."""
        return outputs[:, 0].float().mean()

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Any, temperature: float) -> Tensor:
        """Distance from the teacher in what both see in the true boxes and in a grid of regions, a mean over those.

        Features: squared error, as a fraction of the teacher's square (Li et al. 2017). Labels: Kullback-Leibler divergence of the softened
        probabilities. Boxes: L1 distance, weighted by the teacher's probability of their label.
        """
        height, width = self.net.roi_heads.box_roi_pool.output_size
        size = self.net.backbone.out_channels * height * width
        parts = [size, self.labels + 1, 4 * (self.labels + 1)]
        student, parent = (torch.split(x[:, 1:].float().reshape(-1, sum(parts)), parts, -1) for x in (outputs, teacher))
        features: Tensor = (student[0] - parent[0]).square().mean() / parent[0].square().mean().clamp(min=1e-12)
        labels = divergence(student[1], parent[1], temperature)
        apart = (student[2] - parent[2]).abs().view(-1, self.labels + 1, 4).sum(-1)
        boxes: Tensor = (parent[1].softmax(-1) * apart)[:, 1:].sum(-1).mean()
        return features + labels + boxes

    def outputs(self, run: Run, pixels: Batch) -> Any:
        """One pass, both stages: of each picture 100 times a label, a score, and a box as corners in [0, 1]; after the last one, zeros."""
        rows = [torch.cat([labels[:, None], scores[:, None], boxes], 1) for boxes, scores, labels in self.find(run, pixels)]
        return torch.stack([F.pad(row, (0, 0, 0, self.net.roi_heads.detections_per_img - len(row))) for row in rows]).numpy()

    def find(self, run: Run, pixels: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each picture: boxes (found, 4) as corners in [0, 1], scores (found,) and labels (found,), best first. Two calls for any pictures."""
        maps, found = self._unpacked(torch.from_numpy(run(pixels)))
        side = self.side + -self.side % _DIVISOR
        images = ImageList(torch.empty(len(maps[0]), 3, side, side, device="meta"), [(self.side, self.side)] * len(maps[0]))
        regions = propose(self.net, images, maps, found)
        judged = torch.from_numpy(run({f"{self.column}.{_CROPS}": crop(self.net, images, maps, _padded(regions, images))}))
        real = torch.cat([row[: len(boxes)] for row, boxes in zip(judged, regions, strict=True)])
        scores, shifts = real[:, : self.labels + 1], real[:, self.labels + 1 :]
        parts = self.net.roi_heads.postprocess_detections(scores, shifts, regions, images.image_sizes)
        return [(boxes / self.side, scores, labels - 1) for boxes, scores, labels in zip(*parts, strict=True)]

    def _unpacked(self, packed: Tensor) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
        """See `_packed`."""
        width, anchors = self.net.backbone.out_channels, self.net.rpn.anchor_generator.num_anchors_per_location()[0]
        flat = torch.split(packed, [shape.numel() for shape in self._shapes], -1)
        levels = [x.reshape(*x.shape[:2], *shape) for x, shape in zip(flat, self._shapes, strict=True)]
        maps, scores, shifts = zip(*(torch.split(x, [width, anchors, 4 * anchors], 1) for x in levels), strict=True)
        return list(maps), (list(scores), list(shifts))


def _packed(maps: list[Tensor], found: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    """(batch, width + 5 × anchors, positions of all maps): of each position the features, its anchors' scores, and how boxes differ from them."""
    return torch.cat([torch.cat(parts, 1).flatten(2) for parts in zip(maps, *found, strict=True)], -1)


def propose(net: FasterRCNN, images: ImageList, maps: list[Tensor], found: tuple[Sequence[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """Regions of each picture, (regions, 4) as corners in pixels, best first: the anchors as they were moved, without near duplicates."""
    scores, shifts = (x.detach().float() for x in concat_box_prediction_layers(*found))
    boxes = net.rpn.box_coder.decode(shifts, net.rpn.anchor_generator(images, maps)).view(len(maps[0]), -1, 4)
    chosen, _ = net.rpn.filter_proposals(boxes, scores, images.image_sizes, [x[0].numel() for x in found[0]])
    return cast("list[Tensor]", chosen)


def pool(net: FasterRCNN, images: ImageList, maps: list[Tensor], regions: list[Tensor]) -> Tensor:
    """Regions of each picture, cut out of the map of their size: (all regions, width, height, height)."""
    names = [*map(str, range(len(maps) - 1)), "pool"]
    return cast(Tensor, net.roi_heads.box_roi_pool(dict(zip(names, maps, strict=True)), regions, images.image_sizes))


def crop(net: FasterRCNN, images: ImageList, maps: list[Tensor], regions: Tensor) -> Tensor:
    """As many regions of each picture: (batch, regions, 4) → (batch, regions, width, height, height)."""
    crops = pool(net, images, maps, list(regions))
    return crops.view(*regions.shape[:2], *crops.shape[1:])


def _padded(regions: list[Tensor], images: ImageList) -> Tensor:
    """(batch, most regions, 4): the picture, where there is none."""
    whole = torch.tensor([[0.0, 0.0, *images.image_sizes[0]]], device=regions[0].device)
    most = padded(max(1, *map(len, regions)))
    return pad_sequence([torch.cat([boxes, whole.expand(most - len(boxes), 4)]) for boxes in regions], batch_first=True)


def _grid(boxes: Tensor) -> Tensor:
    """Squares over each picture as corners in [0, 1]: (batch, ...) → (batch, squares, 4)."""
    place = torch.arange(_GRID, device=boxes.device, dtype=boxes.dtype) / _GRID
    corners = torch.cartesian_prod(place, place)
    return torch.cat([corners, corners + 1 / _GRID], 1).expand(len(boxes), -1, -1)


def _build(name: str) -> FasterRCNN:
    """torchvision's model for the labels of COCO, with random weights.

    Raises:
        ModelError: it is no Faster R-CNN.
    """
    builder: Any = torchvision.models.get_model_builder(name)
    net: Any = builder(weights=None, weights_backbone=None) if "weights_backbone" in inspect.signature(builder).parameters else None
    if type(net) is not FasterRCNN:
        raise ModelError("this torchvision model is no Faster R-CNN", name, "for example fasterrcnn_resnet50_fpn, or a DETR of transformers")
    most = net.rpn._post_nms_top_n
    most["testing"] = min(most["testing"], _PROPOSALS)
    return cast(FasterRCNN, net)


def _fitted(net: FasterRCNN, config: dict[str, Any], task: Any) -> FasterRCNN:
    """With a new layer for the task's labels and one more for none, and with fixed statistics if the config says so."""
    net.roi_heads.box_predictor = FastRCNNPredictor(net.roi_heads.box_predictor.cls_score.in_features, len(task.labels) + 1)
    if config["fixed"]:
        fix(net.backbone, 0.0 if config["torchvision"] == _NO_EPSILON else 1e-5)
    return net
