import base64
import io
import json
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from artifacts import save
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from learning import measured, recovered, train
from PIL import Image, ImageDraw
from torchmetrics.image.fid import _compute_fid

from lc_ray.errors import DataError, ModelError, SpecError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.predictor import Predictor
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec, TaskSpec
from lc_ray.tasks.image_generation import Task, frechet_distance

SIZE = 8
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


def drawn(label, random):
    picture = Image.new("RGB", (32, 32), (240, 240, 240))
    x, y, side = random.randint(0, 8), random.randint(0, 8), random.randint(18, 23)
    ImageDraw.Draw(picture).ellipse([x, y, x + side, y + side], fill=COLOURS[label])
    return picture


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def unet(folder, **shape):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    net = UNet2DModel(
        **{"sample_size": SIZE, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8} | blocks | shape
    )
    net.save_pretrained(folder)
    return folder


def inputs_of(base, labels=True):
    seed = InputSpec(column="seed", modality="seed", base=str(base), weights="pretrained", optional=True)
    return [InputSpec(column="label", modality="tabular", weights="pretrained", optional=True), seed] if labels else [seed]


def rows_of(count, task, columns, seed=0):
    random = Random(seed)
    labels = [random.choice(list(COLOURS)) for _ in range(count)]
    values = {"label": labels, "seed": [None] * count}
    return prepare({name: values[name] for name in columns}, columns) | {TARGET: [task.read(png(drawn(n, random)), None, task) for n in labels]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny UNet that has learned to draw disks of three colours, as an artifact."""
    folder = tmp_path_factory.mktemp("generation")
    base, task = unet(folder / "base"), Task(size=SIZE, steps=10)
    inputs = inputs_of(base)
    columns = load.modalities(inputs)
    task.bind(columns)
    random = Random(1)

    def rows(count):
        labels = [random.choice(list(COLOURS)) for _ in range(count)]
        pictures = [Task.read(png(drawn(n, random)), None, task) for n in labels]
        return prepare({"label": labels, "seed": [None] * count}, columns) | {TARGET: pictures}

    made, held_out = rows(256), rows(64)
    torch.manual_seed(0)
    model = load.pretrained(ModelSpec(base=str(base)), inputs, task)
    train(model, task, made, columns, 300, 5e-3, drop=0.1)
    found = save(folder / "dense", model, task, inputs)
    return SimpleNamespace(
        **{"folder": folder, "base": base, "task": task, "inputs": inputs, "columns": columns, "model": model, "rows": made},
        **{"held_out": held_out, "artifact": found, "dense": Predictor(found, 1)},
    )


def picture(answer):
    kind, _, content = answer["image"].partition("base64,")
    assert kind == "data:image/png;"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)


def colour(pixels):
    """The colour that most of the middle has."""
    middle = pixels[2:6, 2:6].reshape(-1, 3).mean(0)
    return min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())


def test_it_learns_to_denoise(trained):
    found = measured(trained.dense, trained.held_out)
    assert found["r2"] > 0.85
    assert found["loss"] == pytest.approx(1 - found["r2"], abs=0.03)  # noise has variance 1


def test_it_draws_what_is_asked_for(trained):
    asked = [{"label": label, "seed": seed} for label in COLOURS for seed in range(6)]
    answers = [picture(a) for a in trained.dense.predict(asked)]
    assert all(a.shape == (SIZE, SIZE, 3) for a in answers)
    assert np.mean([colour(a) == question["label"] for a, question in zip(answers, asked, strict=True)]) > 0.8
    corners = np.stack([a[[0, 0, -1, -1], [0, -1, 0, -1]] for a in answers])
    assert np.median(corners) > 200  # a light background


def test_a_seed_decides_and_the_rest_of_the_batch_does_not(trained):
    asked = [{"label": "red", "seed": 1}, {"label": "red", "seed": 2}, {"label": "red"}, {"label": "blue", "seed": 1}, {}]
    together, alone = trained.dense.predict(asked), [trained.dense.predict([question])[0] for question in asked]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(picture(a) - picture(b)).max() <= 1
    assert len({a["image"] for a in together}) == 5
    assert trained.dense.predict([{"label": "red", "seed": 0}])[0] == alone[2]
    with pytest.raises(DataError, match="whole number"):
        trained.dense.predict([{"label": "red", "seed": "x"}])


def test_guidance_leans_on_the_label(trained, tmp_path):
    task = Task(size=SIZE, steps=10, guidance=3)
    guided = Predictor(save(tmp_path / "guided", trained.model, task, trained.inputs), 1)
    asked = [{"label": label, "seed": seed} for label in COLOURS for seed in range(4)]
    pairs = [(picture(a), picture(b)) for a, b in zip(guided.predict(asked), trained.dense.predict(asked), strict=True)]
    assert np.mean([colour(a) == q["label"] for (a, _), q in zip(pairs, asked, strict=True)]) > 0.8
    assert any(np.abs(a - b).mean() > 1 for a, b in pairs)


def test_an_artifact_answers_as_its_model_does(trained):
    batch, _ = feed(trained.held_out, trained.columns, trained.task)
    with torch.no_grad():
        expected = trained.model(batch).numpy()
    found = Predictor(trained.artifact, 1).engine(batch)
    assert found == pytest.approx(expected, abs=1e-4)


def test_pruned_and_int8(trained, tmp_path):
    model, units, changed = recovered(trained, 0.4, 30, rate=1e-3, rows=64)
    assert any("conv1" in name and of["after"] < of["before"] for name, of in units.items())
    assert load.parameters(model.net) < 0.8 * load.parameters(trained.model.net)
    batch, _ = feed({k: v[:64] for k, v in trained.rows.items()}, trained.columns, trained.task)
    pruned = save(tmp_path / "pruned", model, trained.task, trained.inputs, changed)
    with torch.no_grad():
        assert Predictor(pruned, 1).engine(batch) == pytest.approx(model(batch).numpy(), abs=1e-4)
    int8 = quantize(pruned, QuantizeSpec(calibration=64), trained.rows, tmp_path / "int8", "int8")
    before, after = (measured(Predictor(found, 1), trained.held_out) for found in (pruned, int8))
    assert before["r2"] > 0.75
    assert abs(before["r2"] - after["r2"]) < 0.05


def test_unconditional(tmp_path):
    task, inputs = Task(size=SIZE, steps=2), inputs_of(unet(tmp_path / "base"), labels=False)
    columns = load.modalities(inputs)
    task.bind(columns)
    rows = rows_of(8, task, columns)
    model = load.pretrained(ModelSpec(base=inputs[0].base), inputs, task)
    batch, targets = feed(rows, columns, task)
    task.loss(model(batch), targets).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    predictor = Predictor(save(tmp_path / "model", model.eval(), task, inputs), 1)
    one, other, same = (picture(a) for a in predictor.predict([1, {"seed": 2}, {"seed": 1}]))
    assert np.abs(one - other).max() > 0
    assert np.abs(one - same).max() <= 1
    assert picture(predictor.predict([{}])[0]).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_model_draws_the_picture(prediction):
    """DDIM's steps with what the model should tell lead from noise to the picture itself."""
    task = Task(size=SIZE, steps=20, prediction=prediction, schedule="squaredcos_cap_v2")
    truth = torch.rand(1, 3, SIZE, SIZE) * 1.6 - 0.8
    alphas = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod

    def run(batch):
        alpha = alphas[batch["timestep"]].view(-1, 1, 1, 1)
        noise = (batch["noisy"] - alpha.sqrt() * truth) / (1 - alpha).sqrt()
        return {"epsilon": noise, "sample": truth.expand_as(noise), "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * truth}[
            prediction
        ].numpy()

    found = task._draw(run, {}, [torch.Generator().manual_seed(s) for s in range(2)])
    expected = ((truth + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() < 8


def test_noise_is_that_of_diffusers():
    task = Task(size=SIZE)
    task.bind({})
    pictures = task.collate([np.full((SIZE, SIZE, 3), 200, np.uint8)] * 4)
    batch, noise = task.teach({}, pictures, torch.Generator().manual_seed(3), True)
    expected = DDPMScheduler().add_noise(pictures, noise, batch["timestep"])
    assert torch.equal(batch["noisy"], expected)
    again, _ = task.teach({}, pictures, torch.Generator().manual_seed(3), True)
    assert torch.equal(batch["noisy"], again["noisy"])


def test_evaluation_draws_the_same_for_a_picture_in_any_batch_and_another_for_others():
    task, random = Task(size=SIZE).bind({}), np.random.default_rng(0)
    pictures = task.collate(list(random.integers(0, 256, (64, SIZE, SIZE, 3), np.uint8)))

    def drawn(rows, training=False):
        return task.teach({}, pictures[rows], torch.Generator().manual_seed(0), training)

    batch, noise = drawn(slice(64))
    for rows in (slice(5, 6), slice(32, 64)):
        part, wanted = drawn(rows)
        assert torch.equal(part["timestep"], batch["timestep"][rows])
        assert torch.equal(part["noisy"], batch["noisy"][rows])
        assert torch.equal(wanted, noise[rows])
        assert not torch.equal(drawn(rows, training=True)[1], wanted)
    assert len(set(batch["timestep"].tolist())) > 50, "of 1000"


def test_frechet_distance():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(4000, 3)), random.normal(size=(4000, 3)) * [1, 2, 1] + [3, 0, 0]
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, other) == pytest.approx(9 + (2 - 1) ** 2, rel=0.1)  # of independent normals: means apart, deviations apart


@pytest.mark.parametrize(("rows", "width"), [(2, 16), (40, 8), (20, 64)])
def test_frechet_distance_is_that_of_torchmetrics(rows, width):
    random = np.random.default_rng(rows)
    one, other = random.normal(size=(rows, width)).clip(0), random.normal(0.3, 1.2, (rows, width)).clip(0)
    statistics = [x for side in (one, other) for x in (torch.tensor(side).mean(0), torch.tensor(side).T.cov())]
    assert frechet_distance(one, other) == pytest.approx(_compute_fid(*statistics).item(), rel=1e-4)


def test_distance_on_request(trained, tmp_path):
    task = Task(size=SIZE, steps=10, features="squeezenet1_1")
    with pytest.raises(ModelError, match="no pretrained weights"):  # they can't be had here
        measured(Predictor(save(tmp_path / "model", trained.model, task, trained.inputs), 1), {k: v[:4] for k, v in trained.held_out.items()})


def test_a_base_that_knows_other_noise(tmp_path):
    base = unet(tmp_path / "pipeline" / "unet").parent
    (base / "scheduler").mkdir()
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}), "utf-8")
    inputs = inputs_of(base)
    with pytest.raises(ModelError, match="beta_schedule") as caught:
        load.pretrained(ModelSpec(base=str(base)), inputs, Task(size=SIZE))
    assert "task.schedule: squaredcos_cap_v2" in str(caught.value)
    assert load.pretrained(ModelSpec(base=str(base)), inputs, Task(size=SIZE, schedule="squaredcos_cap_v2"))


def test_what_does_not_fit(tmp_path):
    base = unet(tmp_path / "base")
    with pytest.raises(SpecError, match="not a multiple of 2"):
        load.pretrained(ModelSpec(), inputs_of(base), Task(size=17))
    with pytest.raises(SpecError, match="modality `seed`"):
        load.pretrained(ModelSpec(), inputs_of(base)[:1], Task(size=SIZE))
    with pytest.raises(ModelError, match="three colours"):
        load.pretrained(ModelSpec(), inputs_of(unet(tmp_path / "grey", in_channels=1, out_channels=1)), Task(size=SIZE))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no UNet2D"):
        load.pretrained(ModelSpec(), inputs_of(tmp_path / "empty"), Task(size=SIZE))
    with pytest.raises(SpecError, match="steps"):
        Task.options(TaskSpec(kind="image_generation", steps=20, timesteps=10))
    for cell, reason in ((b"\x89PNG\r\n\x1a\n" + bytes(8), "image"), (None, "null"), ("missing.png", "no such file")):
        with pytest.raises(DataError, match=reason):
            Task.read(cell, tmp_path, Task(size=SIZE))
