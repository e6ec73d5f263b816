"""Texts "spoken" as a tone per letter, so that a tiny SpeechT5 learns to speak them."""

from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
from artifacts import save
from learning import measured, recovered, train
from tones import Voice, column, samples_of, texts, turned
from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5Tokenizer

from lc_ray.errors import DataError, ModelError, SpecError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed
from lc_ray.predictor import Predictor
from lc_ray.quantize import int8, none
from lc_ray.quantizer import quantize
from lc_ray.spec import ModelSpec, QuantizeSpec
from lc_ray.tasks import _mel
from lc_ray.tasks.text_to_speech import Task

RATE = 16_000
TONES = Voice(RATE, {"a": 300, "b": 700, "c": 1500, "d": 3200})


def speecht5(folder, **fields):
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcd " * 4, "d c b a", "ab cd"] * 50),
        model_prefix=str(folder / "spm_char"),
        **{"vocab_size": 9, "model_type": "char", "character_coverage": 1.0, "minloglevel": 2},
        **{"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3},
    )
    SpeechT5Tokenizer(str(folder / "spm_char.model")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))}
    dropouts = ["hidden", "attention", "activation", "positional", "speech_decoder_prenet", "speech_decoder_postnet"]
    config = SpeechT5Config(
        **{"vocab_size": 16, "hidden_size": 48, "speaker_embedding_dim": 8, "speech_decoder_prenet_units": 32, "speech_decoder_postnet_units": 32},
        **{"speech_decoder_postnet_layers": 2, "max_text_positions": 64, "max_speech_positions": 256, "conv_dim": (16,), "conv_kernel": (3,)},
        **{"conv_stride": (2,), "num_feat_extract_layers": 1, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, **sizes},
        **{f"{name}_dropout": 0.0 for name in dropouts} | fields,
    )
    SpeechT5ForTextToSpeech(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny SpeechT5 that has learned to speak in tones, as an artifact."""
    folder = tmp_path_factory.mktemp("speech")
    base, task = speecht5(folder / "base"), Task(seconds=2)
    inputs = [column(base)]
    columns = load.modalities(inputs)
    task.bind(columns)
    every = texts(400, 0)
    rows, held_out = TONES.rows(every[24:], columns, task), TONES.rows(every[:24], columns, task)
    torch.manual_seed(0)
    model = load.pretrained(ModelSpec(base=str(base)), inputs, task)
    train(model, task, rows, columns, 800, 4e-3)
    found = save(folder / "dense", model, task, inputs)
    return SimpleNamespace(
        **{"base": base, "task": task, "inputs": inputs, "columns": columns, "model": model, "rows": rows, "held_out": held_out},
        **{"unseen": every[:24], "artifact": found, "dense": Predictor(found, 1)},
    )


def test_it_learns_the_sound_of_texts(trained):
    found = measured(trained.dense, trained.held_out)
    assert found["r2"] > 0.85
    mixed = trained.held_out | {TARGET: [trained.held_out[TARGET][i] for i in turned(trained.unseen)]}
    assert measured(trained.dense, mixed)["r2"] < found["r2"] - 0.2


def test_it_speaks_texts_that_it_has_not_seen(trained):
    answers = trained.dense.predict(trained.unseen)
    assert TONES.right(answers, trained.unseen) > 0.5  # chance: 0.25
    same_length = [len(TONES.heard(answer)) == len(text) for answer, text in zip(answers, trained.unseen, strict=True)]
    assert np.mean(same_length) > 0.5


def test_answers_do_not_depend_on_the_batch(trained):
    chosen = ["ab", "dcba", "c"]
    together, alone = trained.dense.predict(chosen), [trained.dense.predict([text])[0] for text in chosen]
    for a, b in zip(together, alone, strict=True):
        one, other = (samples_of(x)[0] for x in (a, b))
        assert len(one) == len(other)
        assert np.abs(one - other).max() < 0.02


class Watched:
    """An engine, and how many rows and frames it has read at a time; of a text or a spectrogram None."""

    def __init__(self, engine):
        self.engine, self.read = engine, []

    def __call__(self, given):
        self.read.append(None)
        return self.engine(given)

    def remember(self, told, past):
        if "text.frames" in told:
            self.read.append(told["text.frames"].shape[:2])
        return self.engine.remember(told, past)


def forgetful(engine):
    """An engine that keeps nothing."""

    def run(given):
        if "text.states" not in given:
            return engine(given)
        states = {"text.states": given["text.states"]}
        first, others = engine.remember(states, [])
        return engine.remember({name: tensor for name, tensor in given.items() if name not in states}, [first, *others])[0].numpy()

    return run


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_a_text_is_read_once_and_each_frame_once(trained, tmp_path, kind):
    task = trained.task
    batch, _ = feed({k: v[:4] for k, v in trained.held_out.items()}, trained.columns, task)
    if kind == "int8":
        int8.build(trained.model, [feed({k: v[:32] for k, v in trained.rows.items()}, trained.columns, task)[0]], tmp_path)
        assert "attn/aten::mul/Multiply/fq" not in (tmp_path / "model_2.xml").read_text(), "queries, and what is kept, are not made int8"
    engine = Watched(none.Run(trained.model, 1) if kind == "none" else int8.Run(tmp_path, 1, exact=True))
    found, read = task.answer(engine, batch), engine.read
    said = [shape for shape in read if shape]
    ends = {len(mel) // task.reduction_factor for mel in found}
    assert len(ends) > 1, "they end at several steps"
    assert {frames for _, frames in said} == {1}
    assert sum(rows for rows, _ in said) * task.reduction_factor == sum(map(len, found))
    assert len(read) - len(said) == 1 + len(ends), "the text once, and each spectrogram once"
    with torch.no_grad():
        wholes = [forgetful(engine)] + ([lambda given: trained.model(given).numpy()] if kind == "none" else [])  # the latter as in training
        for whole in wholes:
            for mel, same in zip(found, task.answer(whole, batch), strict=True):
                assert mel == pytest.approx(same, abs=1e-3)
            assert task.outputs(engine, batch) == pytest.approx(task.outputs(whole, batch), abs=1e-5)
        with torch.autocast("cpu", torch.bfloat16):  # as training evaluates it by default
            rounded = task.outputs(lambda given: trained.model(given).float().numpy(), batch)
        assert np.abs(rounded - task.outputs(wholes[0], batch)).mean() < 0.1
    for row, mel in enumerate(found):
        length = int(batch["text.attention_mask"][row].sum())
        (alone,) = task.answer(engine, {name: batch[name][row : row + 1, :length] for name in ("text.input_ids", "text.attention_mask")})
        assert alone == pytest.approx(mel, abs=1e-3)


def test_pruned_and_int8(trained, tmp_path):
    model, _, changed = recovered(trained, 0.3, 40)
    assert load.parameters(model) < 0.95 * load.parameters(trained.model)
    pruned = save(tmp_path / "pruned", model, trained.task, trained.inputs, changed)
    int8 = quantize(pruned, QuantizeSpec(calibration=64), trained.rows, tmp_path / "int8", "int8")
    before, after = (measured(Predictor(found, 1), trained.held_out) for found in (pruned, int8))
    assert before["r2"] > 0.7
    assert abs(before["r2"] - after["r2"]) < 0.1
    assert len(Predictor(int8, 1).outputs({k: v[:4] for k, v in trained.held_out.items()})) == 4
    assert TONES.right(Predictor(int8, 1).predict(trained.unseen[:8]), trained.unseen[:8]) > 0.5


def test_an_artifact_answers_as_its_model_does(trained):
    batch, _ = feed(trained.held_out, trained.columns, trained.task)
    with torch.no_grad():
        expected = trained.model(batch).numpy()
    assert trained.task.outputs(trained.dense.engine, batch) == pytest.approx(expected, abs=1e-3)


def test_loss_equals_transformers(tmp_path):
    base, task = speecht5(tmp_path / "base", use_guided_attention_loss=False), Task(seconds=2)
    inputs = [column(base)]
    columns = load.modalities(inputs)
    task.bind(columns)
    batch, targets = feed(TONES.rows(["ab", "dcba"], columns, task), columns, task)
    model = load.pretrained(ModelSpec(base=str(base)), inputs, task).eval()
    labels = targets["mel"].masked_fill(~targets["real"].unsqueeze(-1), -100)
    whole = SpeechT5ForTextToSpeech.from_pretrained(base).eval()
    whole.speecht5.decoder.prenet._consistent_dropout = lambda x, p: x
    expected = whole(
        input_ids=batch["text.input_ids"],
        attention_mask=batch["text.attention_mask"],
        labels=labels,
        speaker_embeddings=model.voice[0].expand(2, -1),
    ).loss
    assert task.loss(model(batch), targets).item() == pytest.approx(expected.item(), rel=1e-3)


def test_every_trained_weight_has_a_gradient(trained):
    model = load.pretrained(ModelSpec(base=str(trained.base)), trained.inputs, trained.task).train()
    batch, targets = feed({k: v[:4] for k, v in trained.rows.items()}, trained.columns, trained.task)
    trained.task.loss(model(batch), targets).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_sound_of_a_spectrogram():
    """There and back: the tone is still there."""
    time = np.arange(RATE) / RATE
    back = _mel.sound(_mel.spectrogram((0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)))
    assert len(back) == pytest.approx(RATE, abs=300)
    assert np.fft.rfftfreq(len(back), 1 / RATE)[np.abs(np.fft.rfft(back)).argmax()] == pytest.approx(1000, rel=0.05)


def test_no_text_is_cut(tmp_path):
    base = speecht5(tmp_path / "base")
    inputs = [column(base, max_length=4)]
    columns = load.modalities(inputs)
    assert columns["text"].decode("abcdabcd")
    task = Task.reader(Task.Options(seconds=1), columns)
    assert columns["text"].decode("ab") == "ab"
    with pytest.raises(DataError, match="longer than 4 tokens"):
        columns["text"].decode("abcdabcd")
    predictor = Predictor(save(tmp_path / "model", load.pretrained(ModelSpec(), inputs, task), task, inputs), 1)
    with pytest.raises(DataError, match="longer than 4 tokens"):
        predictor.predict(["ab", "abcdabcd"])
    assert predictor.columns["text"].decode(predictor.columns["text"].example)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_what_ends_at_once_is_sound_too(frames):
    samples, rate = samples_of(Task().decode(np.full((frames, _mel.bins()), -1.0, np.float32), {}))
    assert rate == RATE
    assert len(samples) >= (frames - 1) * 256
    assert np.abs(samples).max() > 0.01


def test_what_does_not_fit(tmp_path, tiny_base):
    task = Task(seconds=1)
    for cell, reason in ((None, "null"), (b"RIFFxxxx", "not audio"), ("none.wav", "no such file"), (TONES.spoken("abcdabcdabcd"), "longer than 1 s")):
        with pytest.raises(DataError, match=reason):
            Task.read(cell, tmp_path, task)
    with pytest.raises(ModelError, match=r"^\S+: this model does not speak: bert\n.*speecht5_tts"):
        load.pretrained(ModelSpec(), [column(tiny_base)], task.bind(load.modalities([column(tiny_base)])))
    base = speecht5(tmp_path / "base")
    columns = load.modalities([column(base)])
    with pytest.raises(ModelError, match="reduction_factor: 2"):
        load.pretrained(ModelSpec(), [column(base)], Task(seconds=1, reduction_factor=1).bind(columns))
    with pytest.raises(ModelError, match=r"lower task\.seconds"):
        load.pretrained(ModelSpec(), [column(base)], Task(seconds=20).bind(columns))
    with pytest.raises(ModelError, match="max_length"):
        load.pretrained(ModelSpec(), [column(base)], task.bind(load.modalities([column(base, max_length=128)])))
    with pytest.raises(SpecError, match="one column of text"):
        Task.fit([], Task.Options(), columns | {"other": columns["text"]})
