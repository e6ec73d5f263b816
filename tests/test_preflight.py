import io
import json
import logging
import shutil
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import ray
import torch
from PIL import Image
from rich.console import Console
from transformers import BertConfig, BertModel, PvtV2Config, PvtV2Model

from lc_ray import preflight, runtime, spec
from lc_ray.errors import ClusterError, DataError, ModelError, SpecError
from lc_ray.section import override

pytestmark = pytest.mark.cluster


@pytest.fixture
def job(ray_local, tiny_job, tmp_path):
    def job(**values):
        return spec.parse(override({**tiny_job, "quantize": None, "storage": str(tmp_path)}, values))

    return job


def test_what_will_happen_is_shown(job, tmp_path):
    found = preflight.check(job())
    assert found["missing"] == []
    assert found["slots"] == 2
    assert [set(r) for r in found["rows"]] == [{"text", "label", "fed"}] * 5
    assert found["rows"][0]["fed"]["text.input_ids"][0] == 2  # [CLS]
    assert found["parameters"] == found["trained"] > 10_000
    assert found["memory"][3] < found["memory"][2] < found["memory"][1] < found["memory"][0]
    json.dumps(found)
    page = io.StringIO()
    preflight.show(found, Console(file=page, width=100))
    assert "the cluster can place the job; 2 members train at a time" in page.getvalue()
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_disk_without_room_is_told(job, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    (missing,) = preflight.check(job())["missing"]
    assert missing.endswith("which has room for 0 B")


def test_texts_that_are_cut_are_told(job):
    found = preflight.check(job(**{"data.inputs.0.max_length": 4}))
    assert found["notes"] == ["text: 5 of the first 5 rows fill the 4 tokens of its max_length, beyond which texts are cut"]
    page = io.StringIO()
    preflight.show(found, Console(file=page, width=200))
    assert found["notes"][0] in page.getvalue()
    generated = {"task": {"kind": "masked_language_modeling"}, "data.target": None, "data.inputs.0.max_length": 4}
    assert preflight.check(job(**generated, prune=None))["notes"] == [], "they are several rows"


def test_what_is_missing_is_shown(job):
    found = preflight.check(job(**{"train.workers.count": 64, "train.batch_size": 64}))
    assert "64 workers of 1 CPU need 64 CPUs" in found["missing"][0]
    page = io.StringIO()
    preflight.show(found, Console(file=page, width=200))
    assert "64 CPUs" in page.getvalue()


def test_storage_that_can_not_be_written_stands_in_the_way(job, tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "runs"
    assert preflight.check(job(storage=str(place)))["missing"] == [f"nothing can be written to storage {place}: Not a directory"]


def test_storage_of_an_unknown_kind_stands_in_the_way_beside_all_else(job):
    (missing,) = preflight.check(job(storage="foo://bucket/runs"))["missing"]
    assert "nothing can be written to storage foo://bucket/runs" in missing


def test_rows_that_will_be_rejected_are_shown(job, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good", "label": "x"}\n{"text": null, "label": "y"}\n{oops\n{"text": "bad", "label": "y"}\n', "utf-8")
    found = preflight.check(job(**{"data.train": str(file)}))
    assert [tuple(r.values()) for r in found["rejected"]] == [(1, "text", "null"), (2, "", "not valid JSON")]
    preflight.show(found, Console(file=(page := io.StringIO()), width=100))
    assert "would be rejected: row 1, text: null\n" in page.getvalue()
    assert "would be rejected: row 2: not valid JSON\n" in page.getvalue()


def test_texts_in_brackets_are_shown_as_they_are(job, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n[/INST] good,x\nsee [link] here,y\n" * 4, "utf-8")
    preflight.show(preflight.check(job(**{"data.train": str(file)})), Console(file=(page := io.StringIO()), width=100))
    assert "text: [/INST] good" in page.getvalue()
    assert "text: see [link] here" in page.getvalue()


def test_pictures_are_shown_by_their_size(job, tmp_path):
    for number in range(4):
        file = tmp_path / "pets" / "xy"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(file)
    inputs = [{"column": "image", "modality": "image", "base": "resnet18", "weights": "random", "size": 8}]
    found = preflight.check(job(**{"model": {}, "data": {"train": str(tmp_path / "pets"), "inputs": inputs, "target": "label"}}))
    assert json.loads(json.dumps(found["rows"]))[0]["fed"] == {"image.pixels": "tensor of 3 × 8 × 8"}


def test_rows_of_which_none_can_be_used_stand_in_the_way(job, tmp_path):
    (tmp_path / "1.csv").write_text("text,label\n", "utf-8")
    (tmp_path / "2.csv").write_text("text,label\n" + "a.png,x\nb.png,y\n" * 200, "utf-8")
    pictures = [{"column": "text", "modality": "image", "base": "resnet18", "weights": "random", "size": 8}]
    (missing,) = preflight.check(job(**{"data.train": str(tmp_path), "data.inputs": pictures}))["missing"]
    assert missing.startswith("none of the first 256 rows can be used; files are looked for from the data file's folder; `path` of")
    assert len(preflight.check(job(**{"data.train": str(tmp_path)}))["rows"]) == 5, "the first file is empty, the second is not"
    (tmp_path / "2.csv").write_text("text,label\n" + "good,sch\xf6n\nbad,\xfcbel\n" * 20, "latin-1")
    with pytest.raises(DataError, match=r"none of the first 40 rows can be used; row 0, label: not valid UTF-8\n.*correct them.*windows-1252"):
        preflight.check(job(**{"data.train": str(tmp_path)}))


def test_labels_that_there_are_not(job):
    with pytest.raises(SpecError, match=r"data\.target: the task 'classification' needs a column"):
        preflight.check(job(**{"data.target": None}))
    for task in ("regression", "token_classification", "object_detection", "speech_recognition", "text_generation"):
        with pytest.raises(SpecError, match=rf"data\.stratify: rows of the task '{task}' have no labels"):
            preflight.check(job(**{"data.stratify": True, "task.kind": task}))


def test_a_file_sorted_by_label_is_read_to_the_last_one(job, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "good,x\n" * 10_000 + "bad,y\n", "utf-8")
    assert preflight.check(job(**{"data.train": str(file)}))["missing"] == []


def test_files_and_columns_that_are_not_there(job):
    with pytest.raises(DataError, match="no such file"):
        preflight.check(job(**{"data.train": "nothing.csv"}))
    with pytest.raises(DataError, match="no column 'stars'"):
        preflight.check(job(**{"data.target": "stars"}))
    with pytest.raises(DataError, match="no column 'speaker'"):
        preflight.check(job(**{"data.split": "speaker"}))


def test_a_model_of_which_nothing_can_be_pruned_is_told_before_it_is_trained(job, tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    BertModel(BertConfig.from_pretrained(base, num_attention_heads=1, intermediate_size=1)).save_pretrained(base)
    with pytest.raises(ModelError, match=r"no layer of this model can be pruned\n.*leave out `prune`"):
        preflight.check(job(**{"model.base": str(base)}))
    assert preflight.check(job(**{"model.base": str(base), "prune": None}))["missing"] == []


def test_a_model_that_does_not_fit_together_once_it_is_pruned_is_told_before_it_is_trained(job, tmp_path):
    shape = {"image_size": 32, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [2, 2, 4, 4]}
    PvtV2Model(PvtV2Config(**shape)).save_pretrained(tmp_path / "base")
    for number in range(4):
        file = tmp_path / "pets" / "xy"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(file)
    inputs = [{"column": "image", "modality": "image", "size": 32}]
    data = {"train": str(tmp_path / "pets"), "inputs": inputs, "target": "label"}
    with pytest.raises(ModelError, match=r"does not fit together: .*\n.*leave out `prune`"):
        preflight.check(job(**{"model.base": str(tmp_path / "base"), "data": data}))


def test_a_model_that_can_not_be_quantized_is_told_before_it_is_trained(job, tiny_base, monkeypatch):
    monkeypatch.setattr(BertModel, "forward", lambda self, input_ids, **_: SimpleNamespace(last_hidden_state=_counted(self, input_ids)))
    with pytest.raises(ModelError, match=r"can't be made int8: .*histc\n.*leave out `quantize`"):
        preflight.check(job(quantize={}, prune=None))
    assert preflight.check(job(prune=None))["missing"] == []


def _counted(model, ids):
    """What OpenVINO has no operation for."""
    return model.embeddings(input_ids=ids) + torch.histc(ids.float(), 3).sum()


def test_a_base_that_is_not_there(job):
    with pytest.raises(ModelError, match="no such folder"):
        preflight.check(job(**{"model.base": "./nothing"}))


def test_a_ray_that_is_not_there_is_told_at_once(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: no Ray can be reached"), runtime.session():
        pass


def test_a_ray_of_another_version_is_told(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(runtime, "_reach", lambda address: None)
    monkeypatch.setattr(ray, "init", MagicMock(side_effect=RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1")))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterError, match="Version mismatch: The cluster was started with: Ray: 2"), runtime.session():
        pass


def test_rays_words_about_handles_are_not_for_whoever_deploys(monkeypatch):
    monkeypatch.setattr(runtime, "_reach", lambda address: None)
    monkeypatch.setattr(ray, "init", MagicMock())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "level", logging.INFO)
    runtime._connect(None)
    assert not logger.isEnabledFor(logging.INFO)


@pytest.mark.parametrize("before", [False, True])
def test_a_ray_stays_until_the_last_session_of_all_threads_ends(monkeypatch, before):
    up = [before]
    monkeypatch.setattr(runtime, "_sessions", 0)
    monkeypatch.setattr(runtime, "_connect", lambda cpus: up.append(True))
    monkeypatch.setattr(ray, "is_initialized", lambda: up[-1])
    monkeypatch.setattr(ray, "shutdown", lambda: up.append(False))
    first, second = ExitStack(), ExitStack()
    for one in (first, second):
        one.enter_context(runtime.session())
    first.close()
    assert up[-1]
    second.close()
    assert up == ([True] if before else [False, True, False])


def test_of_a_ray_that_was_there_before_all_is_for_the_workers(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runtime, "_started", False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    with runtime.session():
        assert [node.cpu for node in runtime.nodes()] == [2.0]
