import os
import subprocess
import sys

import pytest
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from lc_ray.spec import ModelSpec, TrainSpec
from lc_ray.train.deepspeed import build, config


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_batches_and_stage(stage):
    settings = config(TrainSpec(batch_size=64, workers={"count": 4}, zero={"stage": stage}, clip_norm=0.5), ModelSpec(base="b"))
    assert settings["train_micro_batch_size_per_gpu"] == 16
    assert settings["zero_optimization"] == {"stage": stage}
    assert settings["gradient_clipping"] == 0.5
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def test_offload_and_fp32():
    settings = config(TrainSpec(zero={"stage": 2, "offload": "cpu"}), ModelSpec(base="b", dtype="fp32"))
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert "torch_autocast" not in settings


def test_accumulated_gradients_are_of_smaller_passes():
    settings = config(TrainSpec(batch_size=64, accumulate=4, workers={"count": 2}), ModelSpec(base="b"))
    assert settings["train_micro_batch_size_per_gpu"] * settings["gradient_accumulation_steps"] * 2 == 64


def test_one_worker_shards_nothing():
    assert config(TrainSpec(zero={"stage": 3}), ModelSpec(base="b"))["zero_optimization"] == {"stage": 0}
    assert config(TrainSpec(zero={"stage": 2, "offload": "cpu"}), ModelSpec(base="b"))["zero_optimization"]["stage"] == 2


def test_ninja_need_not_be_on_the_path_and_a_compiler_must(tmp_path):
    code = "from lc_ray.train.deepspeed import build; build()"
    environment = os.environ | {"PATH": "/nowhere", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-2:] == [
        "lc_ray.errors.TrainError: no C++ compiler (c++) to make DeepSpeed's communication op",
        "  → install one, such as g++, on every node",
    ]


def test_the_path_of_a_worker_does_not_grow_with_its_segments(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(ShareMemCommBuilder, "load", lambda op: None)
    build()
    once = os.environ["PATH"]
    build()
    assert os.environ["PATH"] == once


def test_communication_is_timed_where_computing_does_not_go_on_beside_it():
    """DeepSpeed waits for the device at each operation that it times."""
    enabled = [config(TrainSpec(workers={"gpu": gpu}), ModelSpec(base="b"))["comms_logger"]["enabled"] for gpu in (0, 1)]
    assert enabled == [True, False]
