"""Clips of any length in int8: as the dense model hears them, and each as if it were alone."""

import numpy as np
import pytest
import torch
from artifacts import save
from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from lc_ray.models import load
from lc_ray.models.batches import prepare
from lc_ray.predictor import Predictor
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks.classification import Task

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.15}
CONV = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4), "num_feat_extract_layers": 3}
MODELS = {
    "normalised over time": Wav2Vec2Model(Wav2Vec2Config(**SHAPE, **CONV, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)),
    "padded alike": Data2VecAudioModel(Data2VecAudioConfig(**SHAPE, **CONV, num_conv_pos_embeddings=2)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_clip_has_one_answer_whatever_its_neighbours(kind, tmp_path):
    base, random = tmp_path / "base", np.random.default_rng(0)
    MODELS[kind].save_pretrained(base)
    Wav2Vec2FeatureExtractor().save_pretrained(base)
    inputs, task = [InputSpec(column="clip", modality="audio", base=str(base), seconds=1.0, optional=False)], Task(["a", "b", "c"])
    columns = load.modalities(inputs)
    clips = [(3000 * np.sin(np.arange(n) * random.uniform(0.05, 1)) + random.normal(0, 300, n)).astype("<i2") for n in range(2000, 16_000, 1001)]
    rows = prepare({"clip": [clip.tobytes() for clip in clips]}, columns)
    torch.manual_seed(0)
    dense = save(tmp_path / "dense", load.pretrained(ModelSpec(dropout=0.0), inputs, task), task, inputs)
    engines = [Predictor(found, 1) for found in (dense, quantize(dense, QuantizeSpec(), rows, tmp_path / "int8", "int8"))]
    found = []
    for engine in engines:
        beside, alone = (np.stack(engine.outputs(rows, size)) for size in (len(clips), 1))
        assert beside == pytest.approx(alone, abs=0.02 * float(alone.std()))
        found.append(alone)
    assert np.sqrt(np.mean((found[1] - found[0]) ** 2)) < 0.15 * found[0].std()
