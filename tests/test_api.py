"""The object API: what its plans record, and what they refuse. test_readme.py trains one."""

import io
import logging
from contextlib import ExitStack

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import ray.data
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lc_ray import (
    AudioModel,
    AutoHyperparameterOptimizer,
    DeployModel,
    ImageModel,
    LangChain,
    MultimodalModel,
    PruneModel,
    QuantizeModel,
    RunResult,
    artifact,
    evaluate_model,
)
from lc_ray.data import read
from lc_ray.data.files import files
from lc_ray.deploy import _platform
from lc_ray.deploy.ray import Deployment
from lc_ray.errors import DataError, DeployError, ModelError, SpecError
from lc_ray.models import load


@pytest.fixture
def rows(tiny_rows):
    return pd.read_csv(tiny_rows)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs are kept below the folder one works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def test_plans_are_recorded_and_not_shared(tiny_base, tiny_rows):
    gpt = LangChain(str(tiny_base), dataset=tiny_rows)
    prune_model = PruneModel(gpt, pruning_ratio=0.5)
    quantized_model = QuantizeModel(prune_model, quantization_bits=8)
    plain, whole = (AutoHyperparameterOptimizer(m, epochs=10).plan() for m in (gpt, quantized_model))
    assert (plain.prune, plain.quantize) == (None, None)
    assert (whole.prune.parameters, whole.quantize.kind, whole.train.epochs, whole.search.population) == (0.5, "int8", 10, 3)
    assert plain.name != whole.name


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["path", "DataFrame", "datasets", "ray", "list"])
def test_data_of_every_kind(ray_local, tiny_base, tiny_rows, rows, kind):
    data = {
        "path": lambda: tiny_rows,
        "DataFrame": lambda: rows,
        "datasets": lambda: datasets.Dataset.from_pandas(rows),
        "ray": lambda: ray.data.from_pandas(rows),
        "list": lambda: rows.to_dict("records"),
    }[kind]()
    plan = AutoHyperparameterOptimizer(LangChain(str(tiny_base)), dataset=data).plan()
    (file,) = files(plan.data.train)
    read.Reader(file).require(["text", "label"])
    found = [r for chunk in read.Reader(file).rows(["text"]) for r in chunk]
    texts = [r["text"].decode() if isinstance(r["text"], bytes) else r["text"] for r in found]
    assert texts == rows["text"].tolist()
    assert AutoHyperparameterOptimizer(LangChain(str(tiny_base), dataset=data)).plan().data.train == plan.data.train


def test_rows_of_mixed_types_are_kept_for_the_rejects(tiny_base):
    rows = pd.DataFrame({"text": ["good", 5, None], "label": ["a", "b", "a"]})
    for data in (rows, rows.to_dict("records")):
        plan = AutoHyperparameterOptimizer(LangChain(str(tiny_base)), dataset=data).plan()
        (file,) = files(plan.data.train)
        assert [r["text"] for chunk in read.Reader(file).rows(["text"]) for r in chunk][:2] == ["good", 5]


def cells(data, column, **names):
    plan = AutoHyperparameterOptimizer(ImageModel("resnet18", pretrained=False, **names), dataset=data).plan()
    (file,) = files(plan.data.train)
    return [row[column] for chunk in read.Reader(file).rows([column]) for row in chunk]


def test_cells_of_numpy_pandas_and_pil(folder):
    picture = np.full((4, 6, 3), 7, np.uint8)
    data = [{"image": picture, "label": 1}, {"image": bytearray(b"x"), "other": 2}, {"image": Image.fromarray(picture)}]
    first, second, third = cells(data, "image")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first))), picture)
    assert (second, third) == (b"x", first)
    assert cells(data, "label") == [1, None, None]
    plain = [{"image": "a", "label": np.int64(3)}, {"image": "b", "label": pd.NA}, {"image": "c", "label": np.array(["x", "y"])}]
    assert cells(plain, "label") == [3, None, ["x", "y"]]


def test_class_names_of_a_dataset_in_memory():
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    made = datasets.Dataset.from_dict({"image": ["a", "b"], "label": [1, 0]}, features=features)
    assert cells(made, "label") == ["good", "bad"]
    with pytest.raises(DataError, match=r"several: train.*\n.*data\['train'\]"):
        cells(datasets.DatasetDict({"train": made}), "label")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["good", "bad"], "row 0: not a dict but str"),
        ([{"image": b"x", "label": 1}, {"image": b"y", "label": "a"}], "column 'label' has values of several types"),
        (pd.DataFrame([["a", "b", "c"]], columns=["text", "label", "label"]), "2 columns are named 'label'"),
    ],
)
def test_data_that_is_no_table(data, message):
    with pytest.raises(DataError, match=message):
        cells(data, "label", image="text")


@pytest.mark.parametrize(("given", "meant"), [(None, 0.1), (0.3, 0.3), (50, 50), ("20%", 0.2), ("held_out.csv", "held_out.csv")])
def test_validation(tiny_base, tiny_rows, given, meant):
    assert AutoHyperparameterOptimizer(LangChain(str(tiny_base), dataset=tiny_rows, validation=given)).plan().data.validation == meant


def test_no_data_says_how(tiny_base):
    with pytest.raises(DataError, match=r"dataset="):
        AutoHyperparameterOptimizer(LangChain(str(tiny_base))).train()


@pytest.mark.parametrize("data", [[], pd.DataFrame({"text": [], "label": []})], ids=["list", "DataFrame"])
def test_empty_data(tiny_base, data):
    with pytest.raises(DataError, match="empty"):
        AutoHyperparameterOptimizer(LangChain(str(tiny_base)), dataset=data).plan()


def test_data_of_an_unknown_kind(tiny_base):
    with pytest.raises(DataError, match="set is not accepted"):
        AutoHyperparameterOptimizer(LangChain(str(tiny_base)), dataset={"a"}).plan()


def test_bits_that_are_not_known(tiny_base):
    with pytest.raises(SpecError, match="known: 8"):
        QuantizeModel(LangChain(str(tiny_base)), quantization_bits=3)


def test_what_is_no_plan(tiny_base):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base)
    for given in (model, str(tiny_base)):
        for call in (PruneModel, QuantizeModel, AutoHyperparameterOptimizer):
            with pytest.raises(ModelError, match=r"not a plan but \w+\n.*LangChain\(model\)"):
                call(given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"population": 0}, "population"),
        ({"population": "many"}, "population"),
        ({"epochs": float("inf")}, r"epochs: .*finite"),
        ({"validation": 1.5}, r"validation: expected a whole number, got 1\.5"),
        ({"validation": -1}, "validation: expected a part of the rows, such as 10%, or a number of them"),
    ],
)
def test_wrong_numbers_are_said_before_data_is_kept(tiny_base, tiny_rows, folder, fields, message):
    with pytest.raises(SpecError, match=message):
        AutoHyperparameterOptimizer(LangChain(str(tiny_base)), dataset=pd.read_csv(tiny_rows), **fields).plan()
    assert not (folder / "runs").exists()


def test_a_text_may_be_longer(tiny_base, tiny_rows):
    plans = [AutoHyperparameterOptimizer(LangChain(tiny_base, dataset=tiny_rows, **given)).plan() for given in ({}, {"max_length": 16})]
    assert [plan.data.inputs[0].max_length for plan in plans] == [128, 16]


def test_conversations(tiny_base, folder):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": talk} for _ in range(20)]
    gpt = LangChain(tiny_base, text="messages", chat=True, task="text_generation", target=None, dataset=rows)
    plan = AutoHyperparameterOptimizer(gpt).plan()
    assert [(i.column, i.modality, i.max_length) for i in plan.data.inputs] == [("messages", "chat", 1024)]
    (file,) = files(plan.data.train)
    assert next(iter(read.Reader(file).rows(["messages"])))[0]["messages"] == talk


def test_a_path_for_a_name(tiny_base, tiny_rows, folder):
    plan = AutoHyperparameterOptimizer(LangChain(tiny_base, storage=folder / "kept"), dataset=pd.read_csv(tiny_rows)).plan()
    assert plan.storage == str(folder / "kept")
    assert AudioModel(tiny_base).job["data"]["inputs"][0]["base"] == str(tiny_base)


def test_what_is_no_name_of_a_model():
    for kind in (LangChain, ImageModel, AudioModel):
        with pytest.raises(ModelError, match="not the name of a model but Linear"):
            kind(torch.nn.Linear(1, 1))
    with pytest.raises(SpecError, match=r"ImageModel: size: .*greater than or equal to 8"):
        ImageModel("resnet18", pretrained=False, size=0)


def test_data_that_can_not_be_kept(tiny_base, tiny_rows, folder):
    (folder / "runs").write_text("no folder")
    with pytest.raises(DataError, match="can't be kept"):
        AutoHyperparameterOptimizer(LangChain(str(tiny_base)), dataset=pd.read_csv(tiny_rows)).plan()


def test_a_way_to_show_it_that_is_not_known(tiny_base, tiny_rows):
    with pytest.raises(SpecError, match=r"mode='loud' is not known\n.*bars, json, quiet"):
        AutoHyperparameterOptimizer(LangChain(str(tiny_base), dataset=tiny_rows)).train(mode="loud")


def test_parts_are_not_pruned_alone(tiny_base):
    with pytest.raises(SpecError, match=r"PruneModel\(MultimodalModel"):
        MultimodalModel([PruneModel(LangChain(str(tiny_base))), LangChain(str(tiny_base), text="title")])


def test_a_search_begins_around_the_rate_that_was_given(tiny_base, tiny_rows):
    text, image = LangChain(str(tiny_base)), ImageModel("resnet18", pretrained=False)
    for model, given, middle in ((text, {}, 1.2e-4), (text, {"learning_rate": "2e-3"}, 2e-3), (image, {}, 1.2e-3)):
        job = AutoHyperparameterOptimizer(model, dataset=tiny_rows, **given).plan()
        low, high = job.search.genes["train.learning_rate"]["log_uniform"]
        assert (low * high) ** 0.5 == pytest.approx(middle)


def test_a_plan_shows_what_it_is(tiny_base):
    plan = QuantizeModel(PruneModel(LangChain("some/base"), "30%"))
    assert repr(plan) == "LangChain(text: some/base, prune: {'parameters': '30%'}, quantize: {'kind': 'int8'}, not trained yet)"


def test_results_and_endpoints_show_what_fits_a_line(tiny_artifact):
    result = RunResult(artifact.read(tiny_artifact), {"accuracy": 0.9}, tiny_artifact, {"segments": ["long"] * 1000})
    assert "0.9" in repr(result)
    assert len(repr(result)) < 300 + 3 * len(str(tiny_artifact))
    assert "secret" not in repr(Deployment("http://127.0.0.1", "secret", "tiny", ExitStack()))


def test_a_trained_model_is_loaded_once_and_anew_when_trained_again(tiny_base, tiny_artifact, second_artifact):
    plan = LangChain(str(tiny_base))
    for path in (tiny_artifact, second_artifact):
        plan.result = RunResult(artifact.read(path), {}, path, {})
        assert plan.predictor is plan.predictor
        assert plan.predictor.artifact.path == path


def test_platforms_that_are_not_known(tiny_base):
    with pytest.raises(DeployError, match=r"'Moon' is not known here\n.*known platforms: .*ray"):
        DeployModel(LangChain(str(tiny_base)), platform="Moon")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("Amazon SageMaker", "SageMaker", "AWS SageMaker", "amazon-sagemaker", " AWS "), "sagemaker"),
        (("Google Cloud", "Vertex AI", "vertex-ai", "Google Cloud Vertex AI", "GCP", "google_cloud"), "vertex"),
        (("Kubernetes", "k8s"), "kubernetes"),
        (("Ray", "Ray Serve", "local"), "ray"),
    ],
)
def test_platforms_by_the_names_that_people_give_them(names, kind):
    assert {_platform.find(name).__name__ for name in names} == {f"lc_ray.deploy.{kind}"}


def test_an_untrained_model_says_what_to_do(tiny_base):
    with pytest.raises(ModelError, match=r"train\(\) first"):
        evaluate_model(LangChain(str(tiny_base)), [{"text": "good", "label": "positive"}])


def test_a_loaded_model_and_tokenizer(tiny_base, tiny_rows):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    first, second = (LangChain(model, tokenizer, dataset=tiny_rows) for _ in range(2))
    assert first.job == second.job
    assert load.find(first.job["data"]["inputs"][0]["base"])
    with pytest.raises(ModelError, match="tokenizer"):
        LangChain(model)


def test_an_alias_is_named_never_silent(caplog, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="openai-community/gpt2"):
        load.find(LangChain("gpt3").job["data"]["inputs"][0]["base"])
    assert "openai-community/gpt2" in caplog.text


@pytest.mark.parametrize(
    ("kind", "name", "fields", "task", "modality"),
    [
        (LangChain, "tiny", {}, "token_classification", "words"),
        (LangChain, "tiny", {}, "text_generation", "text"),
        (AudioModel, "tiny", {}, {"kind": "speech_recognition", "max_new_tokens": 8}, "speech"),
        (AudioModel, "tiny", {}, {"class_weights": "balanced"}, "audio"),
        (ImageModel, "tiny", {"size": 64}, "object_detection", "picture"),
        (ImageModel, "tiny", {"image": "seed"}, "image_generation", "seed"),
        (ImageModel, "resnet18", {"pretrained": False}, "multilabel", "image"),
    ],
)
def test_a_column_is_as_its_task_has_it(tiny_base, kind, name, fields, task, modality):
    plan = kind(str(tiny_base) if name == "tiny" else name, task=task, **fields)
    assert plan.job["data"]["inputs"][0]["modality"] == modality


def test_a_task_that_is_not_known():
    with pytest.raises(SpecError, match=r"no kind 'token_clasification' in tasks\n.*did you mean 'token_classification'"):
        LangChain("some/base", task="token_clasification")
