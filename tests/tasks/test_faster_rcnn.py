import json
from types import SimpleNamespace

import artifacts
import numpy as np
import pytest
import torch
import torchvision
from learning import measured, sizes_fed
from pretend import on_a_gpu
from safetensors.torch import save_file
from test_object_detection import LABELS, TARGET, rows_of
from torch import nn
from torchvision.models._api import register_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import BasicBlock, ResNet

from lc_ray.errors import ModelError
from lc_ray.models import load
from lc_ray.models.batches import feed
from lc_ray.models.shapes import difference
from lc_ray.predictor import Predictor
from lc_ray.prune.structured import Pruner
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks.object_detection import Model, Task

SIZE = 64


@pytest.fixture(scope="module")
def tiny():
    """torchvision's name of a Faster R-CNN with a small backbone, published by nobody."""

    @register_model()
    def fasterrcnn_tiny(*, weights=None, weights_backbone=None):
        body = ResNet(BasicBlock, [1, 1, 1, 1])
        body.inplanes, body.conv1, body.bn1 = 16, nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        body.layer1, body.layer2 = body._make_layer(BasicBlock, 16, 1), body._make_layer(BasicBlock, 32, 1, 2)
        return FasterRCNN(
            BackboneWithFPN(body, {"layer1": "0", "layer2": "1"}, [16, 32], 24),
            rpn_anchor_generator=AnchorGenerator(((24,), (32,), (48,)), ((0.5, 1.0, 2.0),) * 3),
            **{"box_head": TwoMLPHead(24 * 49, 64), "box_predictor": FastRCNNPredictor(64, 91), "box_batch_size_per_image": 32},
            **{"rpn_post_nms_top_n_train": 64, "rpn_post_nms_top_n_test": 32, "rpn_batch_size_per_image": 64},
        )

    yield "fasterrcnn_tiny"
    del torchvision.models._api.BUILTIN_MODELS["fasterrcnn_tiny"]


def column(base, **fields):
    return InputSpec(**{"column": "image", "modality": "picture", "base": base, "size": SIZE, "weights": "random", "optional": False} | fields)


def build(base, **fields):
    torch.manual_seed(0)
    columns = load.modalities([column(base, **fields)])
    task = Task(LABELS).bind(columns)
    return load.pretrained(ModelSpec(base=base), [column(base, **fields)], task), columns, task


def save(folder, model, base, changed=({}, {})):
    return artifacts.save(folder, model, Task(LABELS), [column(base)], changed)


def halved(model, inputs, targets, task, fraction=0.5):
    pruner = Pruner(model, {k: v[:2] for k, v in inputs.items()}, model.keep)
    model.eval().requires_grad_(True)
    task.loss(model(inputs), targets).backward()
    pruner.observe()
    removed = pruner.remove(fraction)
    model.zero_grad()
    return removed


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A tiny Faster R-CNN, trained on drawn shapes, as an artifact, in int8, and on what."""
    folder = tmp_path_factory.mktemp("faster_rcnn")
    model, columns, task = build(tiny)
    rows, held_out = rows_of(96, 0, columns, folder), rows_of(32, 1, columns, folder)
    optimizer = torch.optim.AdamW(model.train().parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, 60)
    for step in range(60):
        start = step % 6 * 16
        inputs, targets = feed({k: v[start : start + 16] for k, v in rows.items()}, columns, task, training=True)
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    on_a_gpu(model, task, {k: v[:4] for k, v in rows.items()}, columns)
    dense = save(folder / "dense", model.eval(), tiny)
    int8 = quantize(dense, QuantizeSpec(calibration=32), rows, folder / "int8", "int8")
    return SimpleNamespace(
        **{"columns": columns, "task": task, "rows": rows, "held_out": held_out, "model": model, "folder": folder},
        **{"dense": Predictor(dense, 1), "int8": Predictor(int8, 1), "base": tiny},
    )


def test_it_learns_what_chance_cannot(trained):
    assert measured(trained.dense, trained.held_out)["map_50"] > 0.6
    turned = trained.held_out | {TARGET: trained.held_out[TARGET][1:] + trained.held_out[TARGET][:1]}
    assert measured(trained.dense, turned)["map_50"] < 0.15


def test_int8_finds_nearly_the_same(trained):
    dense, int8 = (measured(p, trained.held_out) for p in (trained.dense, trained.int8))
    assert abs(dense["map"] - int8["map"]) < 0.05
    whole, odd = (trained.int8.outputs(trained.held_out, size) for size in (32, 5))  # any number of pictures at a time
    assert np.stack(whole) == pytest.approx(np.stack(odd), abs=1e-3)


def test_regions_of_about_the_same_number_make_one_shape(trained):
    """An engine prepares itself for each shape that is new to it."""
    regions = sizes_fed(trained.dense, trained.held_out, "image.crops", 4)
    assert [number % 8 for number in regions] == [0] * 4


def test_an_artifact_answers_as_torchvision_does(trained):
    inputs, _ = feed({k: v[:8] for k, v in trained.held_out.items()}, trained.columns, trained.task)
    net, pixels = trained.model.net.eval(), inputs["image.pixels"].float() / 255
    net.transform.min_size, net.transform.max_size = (SIZE,), SIZE
    with torch.no_grad():
        expected = net(list(pixels))
    assert sum(len(theirs["scores"]) for theirs in expected) > 4
    for ours, theirs in zip(trained.dense.outputs({k: v[:8] for k, v in trained.held_out.items()}), expected, strict=True):
        count = len(theirs["scores"])
        assert count == int((ours[:, 1] > 0).sum())
        assert ours[:count, 1] == pytest.approx(theirs["scores"].numpy(), abs=1e-4)
        assert ours[:count, 2:] * SIZE == pytest.approx(theirs["boxes"].numpy(), abs=1e-2)
        assert ours[:count, 0].tolist() == (theirs["labels"] - 1).tolist()
    json.dumps(trained.dense.answers({k: v[:2] for k, v in trained.held_out.items()}))


def test_the_loss_is_that_of_torchvision(trained):
    model, task = trained.model.train(), trained.task
    rows = {k: v[:4] for k, v in trained.rows.items()}
    rows[TARGET] = [*rows[TARGET][:3], []]  # a picture without objects
    inputs, targets = feed(rows, trained.columns, task, training=True)
    boxes, labels = targets["boxes"] * SIZE, targets["labels"]
    truth = [{"boxes": b[row >= 0], "labels": row[row >= 0] + 1} for b, row in zip(boxes, labels, strict=True)]
    model.net.transform._skip_resize = True  # it would draw a size for each picture
    torch.manual_seed(0)
    expected = sum(model.net(list(inputs["image.pixels"].float() / 255), truth).values()).item()
    torch.manual_seed(0)
    assert task.loss(model(inputs), targets).item() == pytest.approx(expected, rel=1e-4)
    model.eval()


def test_pruned_and_rebuilt_it_recovers_by_distillation(trained):
    model, teacher = (load.open_model(trained.dense.artifact) for _ in range(2))
    inputs, targets = feed({k: v[:16] for k, v in trained.rows.items()}, trained.columns, trained.task, training=True)
    removed = halved(model, inputs, targets, trained.task)
    assert any("box_head" in name and of["after"] < of["before"] for name, of in removed.items())
    assert any("backbone.body" in name and of["after"] < of["before"] for name, of in removed.items())
    assert load.parameters(model) < 0.65 * load.parameters(teacher)
    with torch.no_grad():
        soft = teacher(inputs)
        before = trained.task.distill(model(inputs), soft, targets, 2.0).item()
    assert trained.task.distill(soft, soft, targets, 2.0).item() == pytest.approx(0, abs=1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(8):
        optimizer.zero_grad()
        trained.task.distill(model(inputs), soft, targets, 2.0).backward()
        optimizer.step()
    with torch.no_grad():
        assert trained.task.distill(model(inputs), soft, targets, 2.0).item() < 0.7 * before
    with torch.device("meta"):
        changed = difference(model, Model.rebuild(model.config, trained.task))
    found = Predictor(save(trained.folder / "pruned", model, trained.base, changed), 1)
    plain, _ = feed({k: v[:8] for k, v in trained.held_out.items()}, trained.columns, trained.task)
    with torch.no_grad():
        expected = trained.task.outputs(lambda batch: model(batch).numpy(), plain)
    assert np.stack(found.outputs({k: v[:8] for k, v in trained.held_out.items()})) == pytest.approx(expected, abs=1e-4)


def test_published_weights_keep_their_statistics(tiny, tmp_path):
    torch.manual_seed(1)
    net = torchvision.models.get_model(tiny)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    model, columns, task = build(tiny, weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(model.net.backbone.body.conv1.weight, net.backbone.body.conv1.weight)
    before = model.net.backbone.body.bn1.running_mean.clone()
    inputs, targets = feed(rows_of(2, 0, columns, tmp_path), columns, task, training=True)
    task.loss(model.train()(inputs), targets).backward()
    assert torch.equal(model.net.backbone.body.bn1.running_mean, before)
    with pytest.raises(ModelError, match="weights can't be loaded"):
        build(tiny, weights=str(tmp_path / "none.safetensors"))


def test_a_published_model_of_any_size_learns_and_is_pruned(tmp_path):
    model, columns, task = build("fasterrcnn_mobilenet_v3_large_320_fpn", size=70)
    inputs, targets = feed(rows_of(2, 0, columns, tmp_path), columns, task, training=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.train()(inputs)
    task.loss(outputs, targets).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    size = load.parameters(model)
    halved(model, inputs, targets, task)
    assert load.parameters(model) < 0.7 * size
    plain, _ = feed(rows_of(2, 0, columns, tmp_path), columns, task)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert task.outputs(lambda batch: model(batch).float().numpy(), plain).shape == (2, 100, 6)


def test_weights_that_are_nowhere_and_models_that_are_no_detector(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="no pretrained weights: fasterrcnn_mobilenet_v3_large_320_fpn"):
        build("fasterrcnn_mobilenet_v3_large_320_fpn", weights="pretrained")
    for base in ("resnet18", "retinanet_resnet50_fpn"):
        with pytest.raises(ModelError, match="no Faster R-CNN"):
            build(base)


def test_precision_is_read_at_cocos_recalls():
    """Of five boxes three are found, each before one that is not there: at recalls of 0.2, 0.4 and 0.6, each one of the 101 that count."""
    boxes, size = np.array([[0, 0, 1, 1], [0, 0, 0.1, 0.1]]), np.array([100, 100], np.float32)
    scores = [{"boxes": boxes, "scores": np.float32([0.9 - i / 5, 0.8 - i / 5]), "labels": np.array([0, 0]), "size": size} for i in range(3)]
    scores += [{"boxes": boxes[1:], "scores": np.float32([0.01]), "labels": np.array([0]), "size": size}] * 2
    task = Task(["circle"])
    truth = [task.encode([{"label": "circle", "box": [0, 0, 100, 100]}])] * 5
    assert task.metrics(scores, truth)["map"] == pytest.approx((21 * 1 + 20 * 2 / 3 + 20 * 3 / 5) / 101)
