"""Detection as the prediction of a set: DETR and its descendants (Carion et al. 2020, arXiv:2005.12872).

Models are those of transformers' `AutoModelForObjectDetection`: each of a fixed number of queries answers with a box and its label. Whether
labels exclude each other, with one more for "no object" (DETR, YOLOS), or are decided each by itself (RT-DETR, Deformable DETR), shows in
how many there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou, generalized_box_iou, generalized_box_iou_loss
from transformers import AutoConfig, AutoModelForObjectDetection

from lc_ray.modalities import _hub, image
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks._fixed_norm import thaw
from lc_ray.tasks._task import Batch, Run, divergence

PADDING = -1  # label of no box
_FOUND = 100  # of a picture, as COCO's metrics have it
_L1, _GIOU = 5.0, 2.0  # weights of a box's two distances, in the loss and in matching; those of DETR and RT-DETR
_NO_OBJECT = 0.1  # weight of the label "no object"
_INNER = {"q_proj", "k_proj", "v_proj", "query", "key", "value", "fc1"}  # first layers of attention and feed-forward


class Model(nn.Module):
    """A detector of transformers, normalisation of colours included.

    Args:
        net: the detector.
        config: what `rebuild` needs.
    """

    def __init__(self, net: Any, config: dict[str, Any]) -> None:
        super().__init__()
        thaw(net)
        self.net, self.config = net, config
        self.pixels = f"{module_name(config['column'])}.pixels"
        self.keep = [module for name, module in net.named_modules() if not any(True for _ in module.children()) and not _is_prunable(name)]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str, task: Any) -> Self:
        """See `object_detection.Model`."""
        with _hub.loading("detector", source):
            config = _configured(AutoConfig.from_pretrained(source, trust_remote_code=False), task)
            net = _hub.model(AutoModelForObjectDetection, config, source, spec.weights, config=config, ignore_mismatched_sizes=True)
        return cls(net, {"column": spec.column, "transformers": config.to_dict(), **image.statistics(Path(source))})

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(AutoModelForObjectDetection.from_config(AutoConfig.for_model(**config["transformers"]), trust_remote_code=False), config)

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


def _configured(config: Any, task: Any) -> Any:
    config.id2label, config.label2id = dict(enumerate(task.labels)), {label: i for i, label in enumerate(task.labels)}
    if hasattr(config, "num_denoising"):
        config.num_denoising = 0  # queries made from the targets, which a model that may be traced is not given
    return config


def _is_prunable(name: str) -> bool:
    """Whether nothing but the next layer sees what this one gives. Queries, boxes, and all that is added to them, must keep their width."""
    path = name.split(".")
    inner = path[-1] in _INNER or path[-2:] == ["intermediate", "dense"]
    return inner or "backbone" in path or bool({"fpn_blocks", "pan_blocks"} & set(path))


class Finding:
    """Objects as a set of queries.

    Args:
        labels: how many there are.
    """

    def __init__(self, labels: int) -> None:
        self.labels = labels

    def teach(self, pixels: Batch, targets: dict[str, Tensor], training: bool) -> tuple[Batch, dict[str, Tensor]]:
        """The pixels alone; boxes by centre, width and height."""
        return pixels, targets | {"boxes": box_convert(targets["boxes"], "xyxy", "cxcywh")}

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
            wanted = torch.full(logits.shape[:2], self.labels, device=logits.device)
            wanted[row, query] = label
            weight = logits.new_ones(self.labels + 1)
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
        return _assign(cost, (labels != PADDING).sum(1).tolist())

    def _exclusive(self, logits: Any) -> bool:
        return bool(logits.shape[-1] > self.labels)

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
            labels = divergence(logits, soft, temperature)
        else:
            wanted = torch.sigmoid(soft / temperature)
            both = [F.binary_cross_entropy_with_logits(x / temperature, wanted, reduction="sum") for x in (logits, soft)]
            labels = (both[0] - both[1]) / total * temperature**2
        return labels + (sure * _apart(guess, truth)).sum() / total

    def _probability(self, logits: Tensor) -> Tensor:
        """(..., labels), without that of "no object"."""
        return logits.softmax(-1)[..., :-1] if self._exclusive(logits) else logits.sigmoid()

    def outputs(self, run: Run, pixels: Batch) -> Any:
        """One pass."""
        return run(pixels)

    def find(self, run: Run, pixels: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each picture: boxes (found, 4) as corners in [0, 1], scores (found,) and labels (found,), best first."""
        return [self._found(torch.from_numpy(output)) for output in run(pixels)]

    def _found(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probability, boxes = self._probability(output[:, :-4]), _corners(output[:, -4:])
        scores, places = probability.flatten().sort(descending=True, stable=True)
        scores, places = scores[:_FOUND], places[:_FOUND]
        return boxes[places // probability.shape[-1]].clamp(0, 1), scores, places % probability.shape[-1]


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
