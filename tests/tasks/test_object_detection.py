import base64
import io
import json
from random import Random
from types import SimpleNamespace

import artifacts
import numpy as np
import pyarrow as pa
import pytest
import torch
from learning import measured, train
from PIL import Image, ImageDraw
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

from lc_ray.errors import DataError, ModelError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.models.shapes import difference
from lc_ray.predictor import Predictor
from lc_ray.prune.structured import Pruner
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks.object_detection import Model, Task

LABELS = ["circle", "square", "triangle"]
TASK = Task(LABELS)
SIZE = 48


def drawn(random):
    """A picture of 96 × 64 pixels with one or two shapes that do not touch, and its objects."""
    picture = Image.new("RGB", (96, 64), tuple(random.randint(200, 255) for _ in range(3)))
    pen, objects = ImageDraw.Draw(picture), []
    for half in random.sample([0, 48], random.randint(1, 2)):
        side, label, colour = random.randint(20, 36), random.choice(LABELS), tuple(random.randint(0, 120) for _ in range(3))
        x, y = half + random.randint(0, 47 - side), random.randint(0, 63 - side)
        if label == "circle":
            pen.ellipse([x, y, x + side, y + side], fill=colour)
        elif label == "square":
            pen.rectangle([x, y, x + side, y + side], fill=colour)
        else:
            pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=colour)
        objects.append({"label": label, "box": [x, y, x + side + 1, y + side + 1]})
    return picture, objects


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def column(base, **fields):
    return InputSpec(column="image", modality="picture", base=str(base), size=SIZE, **{"weights": "pretrained", "optional": False} | fields)


def rows_of(count, seed, columns, tmp):
    random = Random(seed)
    pairs = [drawn(random) for _ in range(count)]
    rows = prepare({"image": [columns["image"].decode(png(p), folder=tmp) for p, _ in pairs]}, columns)
    return rows | {TARGET: [TASK.clean(objects) for _, objects in pairs]}


def rt_detr(folder, frozen=False):
    torch.manual_seed(0)
    shape = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", "out_features": ["stage2"]}
    config = RTDetrConfig(
        **{"backbone_config": RTDetrResNetConfig(**shape), "freeze_backbone_batch_norms": frozen, "encoder_in_channels": [32], "feat_strides": [8]},
        **{"encode_proj_layers": [0], "encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32], "num_feature_levels": 1},
        **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2},
        **{"num_queries": 6, "hidden_expansion": 0.5, "num_labels": 5},
    )
    RTDetrForObjectDetection(config).save_pretrained(folder)
    return folder


def detr(folder):
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    sizes = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1, num_queries=6, num_labels=5, **sizes
    )
    DetrForObjectDetection(config).save_pretrained(folder)
    return folder


def yolos(folder):
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=[SIZE, SIZE], num_detection_tokens=6
    )
    YolosForObjectDetection(config).save_pretrained(folder)
    return folder


def build(base, **fields):
    return load.pretrained(ModelSpec(base=str(base)), [column(base, **fields)], TASK)


def save(folder, model, base, changed=({}, {})):
    return artifacts.save(folder, model, TASK, [column(base)], changed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny RT-DETR from a folder, trained on drawn shapes, as an artifact, in int8, and on what."""
    folder = tmp_path_factory.mktemp("detection")
    base = rt_detr(folder / "base")
    columns = load.modalities([column(base)])
    rows, held_out = rows_of(192, 0, columns, folder), rows_of(48, 1, columns, folder)
    torch.manual_seed(0)
    model = build(base)
    losses = train(model, TASK, rows, columns, 240, 5e-3)
    dense = save(folder / "dense", model, base)
    int8 = quantize(dense, QuantizeSpec(calibration=64), rows, folder / "int8", "int8")
    return SimpleNamespace(
        **{"base": base, "columns": columns, "rows": rows, "held_out": held_out, "model": model, "losses": losses, "folder": folder},
        **{"dense": Predictor(dense, 1), "int8": Predictor(int8, 1)},
    )


def test_it_learns_what_chance_cannot(trained):
    assert np.mean(trained.losses[-20:]) < 0.6 * np.mean(trained.losses[:20])
    assert measured(trained.dense, trained.held_out)["map_50"] > 0.3
    turned = trained.held_out | {TARGET: trained.held_out[TARGET][1:] + trained.held_out[TARGET][:1]}
    assert measured(trained.dense, turned)["map_50"] < 0.15


def test_int8_finds_nearly_the_same(trained):
    dense, int8 = (measured(p, trained.held_out) for p in (trained.dense, trained.int8))
    assert abs(dense["map_50"] - int8["map_50"]) < 0.1
    # The order of queries may change: of RT-DETR's they are the best of all positions. What the surest says may not.
    near = 0
    for one, other in zip(trained.dense.scores(trained.held_out), trained.int8.scores(trained.held_out), strict=True):
        same = [np.abs(box - one["boxes"][0]).max() < 0.1 for box in other["boxes"][:6]]
        near += any(same)
    assert near >= 0.9 * len(trained.held_out[TARGET])


def test_answers_are_in_pixels_of_the_picture_that_was_sent(trained):
    random = Random(5)
    pictures = [drawn(random)[0] for _ in range(12)]
    small = trained.dense.predict([base64.b64encode(png(p)).decode() for p in pictures])
    large = trained.dense.predict([base64.b64encode(png(p.resize((192, 64), Image.Resampling.NEAREST))).decode() for p in pictures])
    pairs = [(a, b) for one, two in zip(small, large, strict=True) for a, b in zip(one["objects"][:1], two["objects"][:1], strict=False)]
    assert len(pairs) >= 3
    for a, b in pairs:
        assert set(a) == {"label", "score", "box"}
        assert a["label"] in LABELS
        assert 0.5 <= a["score"] <= 1
        assert np.array(a["box"]) * [2, 1, 2, 1] == pytest.approx(np.array(b["box"]), abs=12)
        assert 0 <= b["box"][0] < b["box"][2] <= 192
    json.dumps(small)


def test_an_artifact_answers_as_its_model_does(trained):
    inputs, _ = feed({k: v[:8] for k, v in trained.held_out.items()}, trained.columns, TASK)
    with torch.no_grad():
        expected = trained.model(inputs).numpy()
    found = trained.dense.outputs({k: v[:8] for k, v in trained.held_out.items()})
    assert np.stack(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("make", [rt_detr, lambda f: rt_detr(f, frozen=True), detr, yolos], ids=["rt_detr", "rt_detr_frozen", "detr", "yolos"])
def test_each_family_trains_is_pruned_and_rebuilt(make, tmp_path):
    base = make(tmp_path / "base")
    columns = load.modalities([column(base)])
    rows = rows_of(16, 0, columns, tmp_path)
    inputs, targets = feed(rows, columns, TASK)
    model = build(base).train()
    TASK.loss(model(inputs), targets).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    size = load.parameters(model)
    pruner = Pruner(model, {k: v[:2] for k, v in inputs.items()}, model.keep)
    model.eval().requires_grad_(True)
    TASK.loss(model(inputs), targets).backward()
    pruner.observe()
    pruner.remove(0.5)
    model.zero_grad()
    assert load.parameters(model) < 0.85 * size
    assert TASK.loss(model(inputs), targets).isfinite()
    with torch.device("meta"):
        changed = difference(model, Model.rebuild(model.config, TASK))
    found = Predictor(save(tmp_path / "pruned", model.eval(), base, changed), 1)
    with torch.no_grad():
        assert np.stack(found.outputs(rows)) == pytest.approx(model(inputs).numpy(), abs=1e-4)


def test_a_pruned_model_recovers_by_distillation(trained):
    model = load.open_model(trained.dense.artifact)
    teacher = load.open_model(trained.dense.artifact)
    inputs, targets = feed({k: v[:32] for k, v in trained.rows.items()}, trained.columns, TASK)
    pruner = Pruner(model, {k: v[:2] for k, v in inputs.items()}, model.keep)
    TASK.loss(model.requires_grad_(True)(inputs), targets).backward()
    pruner.observe()
    pruner.remove(0.45)
    with torch.no_grad():
        soft = teacher(inputs)
        before = TASK.distill(model.eval()(inputs), soft, targets, 2.0).item()
    optimizer = torch.optim.AdamW(model.train().parameters(), 5e-4)
    for _ in range(60):
        loss = TASK.distill(model(inputs), soft, targets, 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert TASK.distill(soft, soft, targets, 2.0).item() == pytest.approx(0, abs=1e-3)
    assert TASK.distill(soft, soft.flip(1), targets, 2.0).item() == pytest.approx(0, abs=1e-3)  # queries have no order
    with torch.no_grad():
        assert TASK.distill(model.eval()(inputs), soft, targets, 2.0).item() < 0.95 * before


def losses(exclusive, random):
    """Outputs of 3 pictures by 6 queries, the task's targets, and those of transformers."""
    logits = torch.from_numpy(random.normal(size=(3, 6, 4 if exclusive else 3))).float()
    boxes = torch.from_numpy(random.uniform(0.2, 0.6, size=(3, 6, 4))).float()
    two = [{"label": "square", "box": [10, 10, 40, 60]}, {"label": "circle", "box": [50, 4, 90, 30]}]
    target = [two, [], [{"label": "circle", "box": [0, 0, 50, 64]}]]
    batch = {"image.pixels": torch.zeros(3, 3, 8, 8), "image.original": torch.tensor([[96.0, 64.0]] * 3)}
    _, ours = TASK.teach(batch, TASK.collate([TASK.encode(t) for t in target]), torch.Generator(), True)
    theirs = []
    for row in target:
        corners = torch.tensor([o["box"] for o in row], dtype=torch.float32).reshape(-1, 4) / torch.tensor([96, 64, 96, 64])
        centre = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        theirs.append({"class_labels": torch.tensor([LABELS.index(o["label"]) for o in row], dtype=torch.long), "boxes": centre})
    return logits, boxes, ours, theirs


def test_loss_of_exclusive_labels_equals_transformers():
    config = DetrConfig(use_timm_backbone=False, backbone_config=ResNetConfig(), num_labels=3)
    for seed in range(3):
        logits, boxes, ours, theirs = losses(True, np.random.default_rng(seed))
        expected, *_ = ForObjectDetectionLoss(logits, theirs, "cpu", boxes, config)
        assert TASK.loss(torch.cat([logits, boxes], -1), ours).item() == pytest.approx(expected.item(), rel=1e-4)


def test_loss_of_independent_labels_equals_transformers():
    config = RTDetrConfig(num_labels=3, auxiliary_loss=False)
    for seed in range(3):
        logits, boxes, ours, theirs = losses(False, np.random.default_rng(seed))
        expected, *_ = RTDetrForObjectDetectionLoss(logits, theirs, "cpu", boxes, config)
        assert TASK.loss(torch.cat([logits, boxes], -1), ours).item() == pytest.approx(expected.item(), rel=1e-4)


def test_pictures_without_objects_have_a_loss():
    outputs = torch.randn(2, 6, 7).sigmoid().requires_grad_()
    loss = TASK.loss(outputs, TASK.collate([TASK.encode([]), TASK.encode([])]))
    loss.backward()
    assert loss.item() > 0
    assert outputs.grad.isfinite().all()


def test_average_precision_by_hand():
    encoded = [TASK.encode([{"label": "circle", "box": [0, 0, 50, 100]}]), TASK.encode([])]
    nothing = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, int), "size": np.array([100, 100])}

    def found(*corners, label=0):
        return nothing | {"boxes": np.array([corners], np.float32), "scores": np.array([0.9], np.float32), "labels": np.array([label])}

    assert TASK.metrics([found(0, 0, 0.5, 1), nothing], encoded) == {"map": 1, "map_50": 1, "map_75": 1, "mar_100": 1}
    less = TASK.metrics([found(0, 0, 0.5, 0.62), nothing], encoded)  # IoU 0.62: right at 0.5, 0.55 and 0.6 of ten thresholds
    assert (less["map_50"], less["map_75"], less["map"]) == (pytest.approx(1), 0, pytest.approx(0.3))
    assert TASK.metrics([found(0, 0, 0.5, 1, label=1), nothing], encoded)["map"] == 0
    assert TASK.metrics([nothing, nothing], [TASK.encode([]), TASK.encode([])])["map"] == 0


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    """As COCO's own evaluation has it, and nothing of a crowd is learned."""
    boxes, scores = [[10, 10, 30, 30], [50, 10, 70, 30], [55, 50, 65, 60]], [0.5, 0.9, 0.8]
    cell = {"bbox": [[10, 10, 20, 20], [40, 0, 60, 100], [0, 0, 9, 9]], "category": ["circle", "circle", "other"], "iscrowd": [False, True, "1"]}
    target = pa.array([Task.clean(cell)], Task.TYPE).to_pylist()[0]
    Task.check(target, {"image": {"pixels": b"", "width": 80, "height": 80, "lying": False}})
    assert Task.fit([target], SimpleNamespace(threshold=0.5), {}).labels == ["circle"]
    assert TASK.collate([TASK.encode(target)])["labels"].tolist() == [[0]]
    found = {"boxes": np.float32(boxes) / 100, "scores": np.float32(scores), "labels": np.zeros(3, int), "size": np.array([100, 100])}
    order = np.argsort(-found["scores"])
    found |= {name: found[name][order] for name in ("boxes", "scores", "labels")}
    assert TASK.metrics([found], [TASK.encode(target)])["map"] == pytest.approx(1)
    assert TASK.metrics([found], [TASK.encode(target[:1])])["map"] == pytest.approx(1 / 3)
    objects = [{"label": "circle", "score": score, "box": box} for box, score in zip(boxes, scores, strict=True)]
    assert TASK.mistake({"objects": objects}, target) is None
    assert TASK.mistake({"objects": objects}, target[:1]) == 0.9


def test_mistakes():
    target = [{"label": "circle", "box": [0, 0, 50, 50]}]
    right = {"label": "circle", "score": 0.9, "box": [0, 0, 50, 40]}
    assert TASK.mistake({"objects": [right]}, target) is None
    assert TASK.mistake({"objects": []}, target) == 0
    assert TASK.mistake({"objects": []}, []) is None
    assert TASK.mistake({"objects": [right, right | {"score": 0.7}]}, target) == 0.7  # found twice
    assert TASK.mistake({"objects": [right | {"label": "square"}]}, target) == 0.9
    assert TASK.mistake({"objects": [right | {"box": [50, 50, 99, 99]}]}, target) == 0.9


def test_boxes_are_of_a_picture_as_large_as_theirs():
    def check(size, shown, lying):
        item = {"label": "a", "box": [1, 2, 3, 4], "picture_size": size}
        Task.check(Task.clean([item]), {"image": {"pixels": b"", "width": shown[0], "height": shown[1], "lying": lying}})

    check([40, 60], (40, 60), True)
    check([60, 41], (60, 40), False)
    check([40, 60], (60, 40), False)  # swapped by whoever wrote it
    check([0, 0], (60, 40), False)
    check([None, "60"], (60, 40), False)
    with pytest.raises(DataError, match="boxes of a picture of 60 × 40 pixels; it has 40 × 60, which its EXIF data turn: give boxes of it upright"):
        check([60, 40], (40, 60), True)
    with pytest.raises(DataError, match=r"boxes of a picture of 640 × 480 pixels; it has 320 × 240$"):
        check([640, 480], (320, 240), False)


def test_a_base_that_is_no_detector(tiny_base, tmp_path):
    with pytest.raises(ModelError, match="no detector can be loaded"):
        build(tiny_base)
    DetrConfig(backbone="resnet18").save_pretrained(tmp_path)  # a backbone of timm, which is not installed
    with pytest.raises(ModelError, match="timm"):
        build(tmp_path, weights="random")
