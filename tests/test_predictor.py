"""Rows as users give them to a model of several columns."""

import base64
import io
import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from artifacts import save
from PIL import Image
from pretend import CUDA, Pretended

from lc_ray import artifact
from lc_ray import predictor as predictors
from lc_ray.errors import DataError
from lc_ray.models import load
from lc_ray.predictor import Predictor
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks.classification import Task


@pytest.fixture(scope="module")
def model(tiny_base, tmp_path_factory):
    """Of a text, and a cell that a row may lack."""
    torch.manual_seed(0)
    text = InputSpec(column="text", base=str(tiny_base), max_length=8, optional=False)
    inputs = [text, InputSpec(column="cell", modality="tabular", optional=True)]
    task = Task(["no", "yes"])
    made = load.pretrained(ModelSpec(), inputs, task)
    return Predictor(save(tmp_path_factory.mktemp("fused") / "model", made, task, inputs), 1)


def test_a_misspelt_column_is_not_ignored(model):
    (whole,), (alone,) = (model.predict([row]) for row in ({"text": "good", "cell": "3"}, {"text": "good"}))
    assert whole != alone
    with pytest.raises(DataError, match="instance 1: unknown column cel; expected text, cell"):
        model.predict([{"text": "good"}, {"text": "good", "cel": "3"}])
    with pytest.raises(DataError, match="missing column text; expected text, cell"):
        model.predict([{"texts": "good", "cell": "3"}])


def test_columns_that_one_input_is_of_are_given_as_they_are_named(tiny_base, tmp_path):
    inputs, task = [InputSpec(column="premise|hypothesis", base=str(tiny_base), max_length=16)], Task(["no", "yes"])
    model = Predictor(save(tmp_path / "model", load.pretrained(ModelSpec(), inputs, task), task, inputs), 1)
    whole, apart, alone = model.predict(["good [SEP] bad", {"premise": "good", "hypothesis": "bad"}, {"hypothesis": "bad"}])
    assert whole == apart != alone
    with pytest.raises(DataError, match="missing column"):
        model.predict([{"text": "bad"}])


def test_rows_come_as_programs_have_them(model):
    rows = [{"text": "good", "cell": "3"}, {"text": "bad", "cell": "4"}]
    frame = pd.DataFrame(rows)
    answers = model.predict(rows)
    table = pa.Table.from_pylist(rows)
    for given in (frame, tuple(rows), frame.apply(dict, axis=1), iter(rows), table, SimpleNamespace(to_arrow=lambda: table)):
        assert model.predict(given) == answers
    assert model.predict(frame[:0]) == []
    for alone in ("good", b"good", rows[0], None):
        with pytest.raises(DataError, match=r"expected a list of instances, got .*\n.*predict\(\[...\]\)"):
            model.predict(alone)


@pytest.mark.parametrize("nothing", [pd.NA, pd.NaT, float("nan"), np.float32("nan")])
def test_what_is_missing_is_so_to_every_library(model, nothing):
    assert model.predict([{"text": "good", "cell": nothing}]) == model.predict([{"text": "good"}])


def test_a_picture_or_a_sound_is_given_as_training_takes_it(tmp_path):
    torch.manual_seed(0)
    inputs, task = [InputSpec(column="photo", modality="image", base="resnet18", weights="random", size=16)], Task(["no", "yes"])
    model = Predictor(save(tmp_path / "model", load.pretrained(ModelSpec(), inputs, task), task, inputs), 1)
    levels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    expected = model.predict([file.getvalue()] * 8)
    tensor = torch.from_numpy(levels).permute(2, 0, 1)
    alone = [{"b64": base64.b64encode(file.getvalue()).decode()}, {"bytes": file.getvalue(), "path": None}]
    assert model.predict([levels, tensor, tensor / 255, {"photo": tensor}, *alone, *({"photo": one} for one in alone)]) == expected
    with pytest.raises(DataError, match="instance 0: missing column photo"):
        model.predict([{"picture": levels}])
    with pytest.raises(DataError, match="instance 1: 2 × 2 × 2 × 2 numbers"):
        model.predict([levels, np.zeros((2, 2, 2, 2), np.uint8)])


def test_it_is_sent_to_other_processes(model):
    rows = [{"text": "good", "cell": 1}]
    assert pickle.loads(pickle.dumps(model)).predict(rows) == model.predict(rows)


def test_other_keys_beside_a_whole_row_are_left_alone(model):
    for cell in ("3", None):
        row = {"text": "good", "cell": cell}
        assert model.predict([row | {"label": "yes"}]) == model.predict([row])


def test_a_model_runs_on_a_gpu_if_it_is_told_to(tiny_artifact):
    found = artifact.read(tiny_artifact)
    with Pretended():
        there = Predictor(found, 1, gpu=True)
        assert there.engine.device == CUDA
        answers = there.predict(["good day", "so late"])
    assert answers == Predictor(found, 1).predict(["good day", "so late"])


def test_rows_without_end_are_answered_some_at_a_time(model, monkeypatch):
    monkeypatch.setattr(predictors, "_AT_A_TIME", 3)
    asked = []
    endless = ({"text": f"good {asked.append(n) or n}"} for n in itertools.count())
    answers = model.stream(endless)
    found = [next(answers) for _ in range(4)]
    assert len(asked) == 6
    alone = [model.predict([{"text": f"good {n}"}])[0] for n in range(4)]
    assert [answer["probabilities"]["yes"] for answer in found] == pytest.approx([answer["probabilities"]["yes"] for answer in alone], abs=1e-5)
    with pytest.raises(DataError, match="instance 7: missing column text"):
        model.predict([{"text": "good"}] * 7 + [{}])
