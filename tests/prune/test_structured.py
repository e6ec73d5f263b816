import copy

import pytest
import torch
from artifacts import save
from torch import nn
from torchvision.models import SwinTransformer
from transformers import AutoConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from lc_ray import family
from lc_ray.errors import ModelError
from lc_ray.models import load
from lc_ray.models.batches import collate, prepare
from lc_ray.models.fusion import FusionModel
from lc_ray.models.shapes import apply, difference
from lc_ray.prune.structured import Pruner, contribution, select
from lc_ray.spec import FusionSpec, InputSpec, ModelSpec
from lc_ray.tasks.classification import Task

TASK = Task(["a", "b"])


def inputs(base):
    return [InputSpec(column="text", base=str(base), max_length=16)]


TEXTS = ["good day", "the worst flight ever was late", "ok", "love that"]


def test_contribution_is_the_change_of_loss_to_first_order():
    """Against finite differences: scaling a unit's weights by (1 - e) changes a linear loss by exactly -e times its contribution."""
    layer, x, y = nn.Linear(5, 3), torch.randn(7, 5), torch.randn(7, 3)
    loss = (layer(x) * y).sum()
    loss.backward()
    for unit in range(3):
        other = copy.deepcopy(layer)
        with torch.no_grad():
            other.weight[unit] = 0
        change = (other(x) * y).sum() - loss
        assert contribution(layer.weight, 0)[unit].item() == pytest.approx(-change.item(), rel=1e-3, abs=1e-4)
    assert contribution(layer.weight, 1).shape == (5,)
    assert contribution(layer.bias, 0).shape == (3,)


def test_select_takes_the_least_per_parameter_first():
    chosen = select([torch.tensor([1.0, 9, 2, 8]), torch.tensor([4.0, 5])], costs=[1, 10], steps=[1, 1], budget=2)
    assert [c.tolist() for c in chosen] == [[0, 2], []]
    chosen = select([torch.tensor([10.0, 9, 20, 8]), torch.tensor([1.0, 2])], costs=[1, 1], steps=[1, 1], budget=2)
    assert [c.tolist() for c in chosen] == [[3], [0]]


def test_select_leaves_something_of_every_layer():
    chosen = select([torch.zeros(64), torch.ones(64)], costs=[1, 1], steps=[16, 1], budget=1000)
    assert [len(c) for c in chosen] == [48, 56]


@pytest.fixture
def model(tiny_base):
    torch.manual_seed(0)
    return load.pretrained(ModelSpec(), inputs(tiny_base), TASK).eval()


@pytest.fixture
def batch(tiny_base):
    columns = load.modalities(inputs(tiny_base))
    return collate(prepare({"text": TEXTS}, columns), columns)


def observed(model, batch):
    pruner = Pruner(model, {k: v[:2] for k, v in batch.items()}, keep=model.keep)
    TASK.loss(model(batch), torch.tensor([0, 1, 0, 1])).backward()
    pruner.observe()
    return pruner


def test_heads_and_neurons_are_found(model, batch):
    layers = {layer.name.rpartition("encoders.text.model.encoder.")[2]: layer for layer in observed(model, batch).layers}
    assert {name for name, layer in layers.items() if layer.attention is not None} == {"layer.0.attention.self", "layer.1.attention.self"}
    assert layers["layer.0.attention.self"].units == 4
    assert sorted(layer.units for layer in layers.values()) == [4, 4, 64, 64]


def test_scores_equal_what_zeroing_a_unit_changes(model, batch):
    """A neuron whose weights are zero matters nothing, and is the first to go."""
    dead = model.encoders["text"].model.encoder.layer[0].intermediate.dense
    out = model.encoders["text"].model.encoder.layer[0].output.dense
    with torch.no_grad():
        dead.weight[5], dead.bias[5], out.weight[:, 5] = 0, 0, 0
    pruner = observed(model, batch)
    scores = dict(zip([layer.name for layer in pruner.layers], torch.split(pruner.scores, [layer.units for layer in pruner.layers]), strict=True))
    (neurons,) = [s for name, s in scores.items() if "layer.0.intermediate" in name]
    assert neurons.argmin().item() == 5
    assert neurons[5].item() == 0


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_the_fraction_is_of_the_prunable_parameters(model, batch, fraction):
    pruner = observed(model, batch)
    before, prunable = load.parameters(model), pruner.parameters
    kept = pruner.remove(fraction)
    assert (before - load.parameters(model)) / prunable == pytest.approx(fraction, abs=0.08)
    assert all(1 <= k["after"] <= k["before"] for k in kept.values())
    assert model(batch).shape == (4, 2)


@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_a_weight_between_two_layers_is_counted_once(fraction):
    """Half of the channels of a chain of convolutions has a quarter of its weights."""
    torch.manual_seed(0)
    widths = [(3, 64), (64, 64), (64, 128), (128, 128)]
    convs = [part for a, b in widths for part in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())]
    model = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 2))
    pruner, picture = Pruner(model, torch.randn(2, 3, 8, 8), keep=[model[-1]]), torch.randn(4, 3, 8, 8)
    assert pruner.parameters == load.parameters(model) - 2  # all but the head's bias
    model(picture).square().sum().backward()
    pruner.observe()
    before = load.parameters(model)
    pruner.remove(fraction)
    assert (before - load.parameters(model)) / (before - 2) == pytest.approx(fraction, abs=0.03)
    assert model(picture).shape == (4, 2)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 60}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60}
SPEECH = {"conv_dim": [32, 32], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SIGHT = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
SIGHT |= {"patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
FAMILIES = {
    "bert": SMALL,
    "electra": SMALL | {"embedding_size": 16},  # whose residual stream no embedding reaches
    "gpt2": GPT,
    "gpt_neox": SMALL,
    "llama": SMALL | {"num_key_value_heads": 2},
    "phi3": SMALL | {"num_key_value_heads": 2, "pad_token_id": 0},  # whose neurons are halves of one layer
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "vocab_size": 60},
    "wav2vec2": SMALL | SPEECH,  # with a grouped convolution
    "wav2vec2-conformer": SMALL | SPEECH,  # half of a layer gates the other
    "segformer": SIGHT,
    "dinov3_vit": SMALL | {"image_size": 32, "patch_size": 8},  # with rotary positions of patches alone
    "hiera": {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "image_size": [32, 32], "num_query_pool": 1, "masked_unit_size": [4, 4]},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8},
}


def family_of(kind):
    """A small model of a family, with no weight at zero, and what it reads."""
    config = AutoConfig.for_model(kind, **FAMILIES[kind])
    pixels = {"image.pixels": torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)}
    sound = {"audio.input_values": torch.randn(4, 1000), "audio.lengths": torch.tensor([1000, 900, 800, 1000])}
    words = {"text.input_ids": torch.randint(5, 60, (4, 8)), "text.attention_mask": torch.ones(4, 8, dtype=torch.int64)}
    sees = any(hasattr(config, name) for name in ("hidden_sizes", "patch_size", "image_size"))
    column, given = ("image", pixels) if sees else ("audio", sound) if kind.startswith("wav2vec2") else ("text", words)
    known = config.to_dict()
    if column != "text":
        known = {"transformers": known, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    encoder = family.load("modalities", column).Encoder.rebuild(known)
    made = FusionModel({column: encoder}, FusionSpec(), TASK, 0.1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made, given


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_left_computes_what_the_whole_does_with_the_units_at_zero(kind):
    torch.manual_seed(0)
    left_computes_the_same(*family_of(kind))


def test_a_residual_stream_that_is_split_and_joined_many_times_is_not_followed_to_its_end():
    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=[2, 2], num_classes=2)
    model = nn.Sequential(swin)
    pruner, picture = Pruner(model, torch.randn(2, 3, 32, 32), keep=[swin.head]), torch.randn(2, 3, 32, 32)
    assert [layer.units for layer in pruner.layers] == [512, 256, 128, 64]
    pruner.remove(0.5)
    assert model(picture).shape == (2, 2)


def test_what_joins_columns_keeps_the_heads_that_it_has():
    torch.manual_seed(0)
    columns = {name: family_of("bert") for name in ("text", "title")}
    encoders = {name: model.encoders["text"] for name, (model, _) in columns.items()}
    given = {key.replace("text.", f"{name}."): value for name, (_, words) in columns.items() for key, value in words.items()}
    model = FusionModel(encoders, FusionSpec(kind="attention"), TASK, 0.1).eval()
    pruner = left_computes_the_same(model, given)
    assert {layer.units for layer in pruner.layers if layer.name.startswith("join.") and layer.attention is not None} == {4}
    assert model.join.blocks[0].up.out_features < 512


def left_computes_the_same(model, given):
    masked, names = copy.deepcopy(model), {parameter: name for name, parameter in model.named_parameters()}
    pruner = observed(model, given)
    chosen = pruner._chosen(0.5 * pruner.parameters)
    for layer, units in zip(pruner.layers, chosen, strict=True):
        for parameter, dim, indices in layer.parts:
            gone = [indices[unit * layer.size + i] for unit in units.tolist() for i in range(layer.size)]
            masked.get_parameter(names[parameter]).data.index_fill_(dim, torch.tensor(gone, dtype=torch.int64), 0)
    before, prunable = load.parameters(model), pruner.parameters
    with torch.no_grad():
        whole = model(given)
        pruner.remove(0.5)
        torch.testing.assert_close(model(given), masked(given), atol=1e-5, rtol=1e-4)
    assert (before - load.parameters(model)) / prunable == pytest.approx(0.5, abs=0.05)
    assert (whole - masked(given)).abs().max() > 1e-3, "something must be gone, or this shows nothing"
    return pruner


class Sized(nn.Module):
    """What DepGraph can't follow: it keeps a size of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x):
        return self.down(self.up(x).view(-1, 64))


def test_a_model_that_can_not_be_followed(model, batch):
    sized, given = Sized(), torch.randn(2, 8)
    pruner = Pruner(sized, given, keep=[sized.down])
    sized(given).sum().backward()
    pruner.observe()
    with pytest.raises(ModelError, match=r"does not fit together.*\n.*leave out `prune`"):
        pruner.remove(0.5)
    model.followed = lambda given: given["nothing"]
    with pytest.raises(ModelError, match=r"can't be followed: 'nothing'\n.*leave out `prune`"):
        Pruner(model, batch, keep=model.keep)


def test_removing_dead_units_changes_nothing(model, batch):
    with torch.no_grad():
        for layer in model.encoders["text"].model.encoder.layer:
            layer.intermediate.dense.weight[16:] = 0
            layer.intermediate.dense.bias[16:] = 0
            layer.output.dense.weight[:, 16:] = 0
        before = model(batch)
    pruner = observed(model, batch)
    kept = pruner.remove(0.4)
    neurons = [k for name, k in kept.items() if "intermediate" in name]
    assert all(k["after"] < k["before"] for k in neurons)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), before, atol=1e-5, rtol=1e-4)


def test_gradients_and_frozen_parts_are_left_as_they_were(model, batch):
    load.freeze(model, ("embeddings",), [])
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    Pruner(model, batch, keep=model.keep)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_the_head_is_never_touched(model, batch):
    pruner = observed(model, batch)
    pruner.remove(0.6)
    assert model.head.weight.shape == (2, 32)


def test_a_pruned_artifact_answers_alike(model, batch, tiny_base, tmp_path):
    original = copy.deepcopy(model)
    observed(model, batch).remove(0.5)
    again = load.open_model(save(tmp_path / "p", model, TASK, inputs(tiny_base), difference(model, original)))
    with torch.no_grad():
        torch.testing.assert_close(again(batch), model(batch), rtol=0, atol=0)


def test_an_encoder_of_raw_sound_is_pruned_and_rebuilt(tmp_path):
    """Its positions come of a grouped convolution over what all layers add to."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_conv_pos_embedding_groups": 4}
    Wav2Vec2Model(Wav2Vec2Config(**shape, conv_dim=(16,) * 7, num_conv_pos_embeddings=16)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    task = Task(["a", "b"])
    model = load.pretrained(ModelSpec(), [InputSpec(column="sound", modality="audio", base=str(tmp_path), seconds=1)], task).eval()
    sounds = {"sound.input_values": torch.randn(2, 8000), "sound.lengths": torch.tensor([8000, 5000])}
    whole = load.parameters(model)
    pruner = Pruner(model, sounds, model.keep)
    task.loss(model(sounds), torch.tensor([0, 1])).backward()
    pruner.observe()
    pruner.remove(0.5)
    assert load.parameters(model) < 0.8 * whole
    again = FusionModel.rebuild(model.config, task)
    again = apply(again, *difference(model, again)).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(sounds), model(sounds))


def test_nothing_to_prune():
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ModelError, match="leave out `prune`"):
        Pruner(model, torch.randn(2, 4), keep=[model[0]])


def test_the_pruner_of_the_contributing_guide(model, batch, monkeypatch, tmp_path):
    """CONTRIBUTING's ten lines, added as the file it says, prune."""
    import re
    from pathlib import Path

    import lc_ray.prune

    text = Path("CONTRIBUTING.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 16
    (tmp_path / "random.py").write_text(code, "utf-8")
    monkeypatch.setattr(lc_ray.prune, "__path__", [*lc_ray.prune.__path__, str(tmp_path)])
    assert "random" in family.kinds("prune")
    pruner = family.load("prune", "random").Pruner(model, batch, keep=model.keep)
    pruner.observe()
    before = load.parameters(model)
    pruner.remove(0.5)
    assert load.parameters(model) < before


def test_the_last_stage_of_a_resnet_can_be_pruned_where_it_is_joined_to_another_column():
    picture = InputSpec(column="picture", modality="image", base="resnet18", weights="random", size=32)
    columns = {"picture": picture, "n": InputSpec(column="n", modality="tabular")}
    encoders = {name: family.load("modalities", one.modality).Encoder.pretrained(one, one.base or "") for name, one in columns.items()}
    model = FusionModel(encoders, FusionSpec(), TASK, 0.1)
    given = {"picture.pixels": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "n.number": torch.rand(2), "n.category": torch.zeros(2).long()}
    layers = Pruner(model, given, model.keep).layers
    assert any(parameter is model.join.norms[0].weight for layer in layers for parameter, _, _ in layer.parts)
