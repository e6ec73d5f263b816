"""What tests share. Whatever costs seconds to make is made once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

WORDS = """a all bad best day flight good great had hate i is it late love my never no not ok on service so that the this time very
was we worst you"""
LABELS = ["negative", "neutral", "positive"]


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this session, with 8 CPUs whatever the machine has."""
    import ray

    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `model.base`: a random BERT of 2 layers and a WordPiece tokenizer that knows `WORDS` and all letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_base")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    signs = list(".,!?@#'\"-:;()")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*specials, *signs, *letters, *(f"##{c}" for c in letters), *WORDS.split()]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(str(folder))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape), add_pooling_layer=False).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained artifact of `tiny_base` with one text column, "text", and `LABELS`."""
    import torch

    from lc_ray.artifact import Manifest
    from lc_ray.models import load
    from lc_ray.spec import InputSpec, ModelSpec
    from lc_ray.tasks.classification import Task

    torch.manual_seed(0)
    inputs, task = [InputSpec(column="text", max_length=32)], Task(LABELS)
    model = load.pretrained(ModelSpec(base=str(tiny_base)), inputs, task)
    manifest = Manifest(
        name="tiny",
        task={"kind": "classification", **task.config},
        inputs=[i.model_dump() for i in inputs],
        architecture=load.describe(model, inputs, {}, {}),
    )
    return load.save(tmp_path_factory.mktemp("artifacts") / "tiny", manifest, model.state_dict(), load.modalities(inputs, tiny_base)).path
