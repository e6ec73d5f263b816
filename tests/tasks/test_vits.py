"""Texts "spoken" as a tone per letter, so that a tiny VITS learns to speak them."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from artifacts import save
from learning import measured, recovered, sizes_fed, train
from tones import Voice, column, samples_of, texts, turned
from torch.distributions import Independent, Normal, kl_divergence
from transformers import VitsConfig, VitsModel, VitsTokenizer

from lc_ray.errors import DataError, ModelError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed
from lc_ray.predictor import Predictor
from lc_ray.quantizer import quantize
from lc_ray.spec import ModelSpec, QuantizeSpec
from lc_ray.tasks import _vits
from lc_ray.tasks._alignment import durations, likelihood, spread
from lc_ray.tasks._durations import negative_log_likelihood, through
from lc_ray.tasks.text_to_speech import Task

RATE, HOP = 4000, 64
TONES = Voice(RATE, {"a": 312.5, "b": 625, "c": 1000, "d": 1500})  # whole waves per frame: what a tiny decoder can go on with from frame to frame


def vits(folder, tokenizer=(), **fields):
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"_": 0, "a": 1, "b": 2, "c": 3, "d": 4}), "utf-8")
    VitsTokenizer(str(folder / "vocab.json"), pad_token="_", unk_token="_", **{"phonemize": False} | dict(tokenizer)).save_pretrained(folder)
    torch.manual_seed(0)
    text = {"vocab_size": 5, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64}
    flows = {"flow_size": 16, "spectrogram_bins": 129, "prior_encoder_num_flows": 2}
    flows |= {f"{name}_encoder_num_wavenet_layers": 2 for name in ("prior", "posterior")}
    predictor = {"depth_separable_num_layers": 2, "use_stochastic_duration_prediction": False}
    predictor |= {"duration_predictor_num_flows": 2, "duration_predictor_filter_channels": 32}
    decoder = {"sampling_rate": RATE, "upsample_initial_channel": 32, "upsample_rates": (HOP,), "upsample_kernel_sizes": (2 * HOP,)}
    decoder |= {"resblock_kernel_sizes": (3,), "resblock_dilation_sizes": ((1,),)}
    dropouts = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "duration_predictor_dropout"), 0.0)
    config = VitsConfig(**text | flows | predictor | decoder | dropouts | fields)
    VitsModel(config).save_pretrained(folder)
    return folder


def opened(base, seconds=2.0):
    """What a job makes of a base model: inputs, modalities, the task and the model."""
    inputs = [column(base)]
    columns = load.modalities(inputs)
    task = Task.fit([], Task.Options(seconds=seconds), columns).bind(columns)
    return inputs, columns, task, load.pretrained(ModelSpec(base=str(base)), inputs, task)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """In so small a model several would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny VITS that has learned to speak in tones, as an artifact."""
    folder = tmp_path_factory.mktemp("speech")
    base = vits(folder / "base")
    inputs, columns, task, model = opened(base)
    every = texts(400, 0)
    rows, held_out = TONES.rows(every[24:], columns, task), TONES.rows(every[:24], columns, task)
    torch.manual_seed(0)
    train(model, task, rows, columns, 400, 5e-3)
    found = save(folder / "dense", model, task, inputs)
    return SimpleNamespace(
        **{"base": base, "task": task, "inputs": inputs, "columns": columns, "model": model, "rows": rows, "held_out": held_out},
        **{"unseen": every[:24], "artifact": found, "dense": Predictor(found, 1)},
    )


@pytest.fixture(scope="module")
def stochastic(tmp_path_factory):
    """An untrained one whose durations are drawn, and whose decoder has several steps, as those that are published."""
    steps = {"upsample_rates": (8, 4, 2), "upsample_kernel_sizes": (16, 8, 4)}
    blocks = {"resblock_kernel_sizes": (3, 7), "resblock_dilation_sizes": ((1, 3), (1, 3))}
    return opened(vits(tmp_path_factory.mktemp("speech") / "base", use_stochastic_duration_prediction=True, **steps, **blocks))


def test_it_learns_the_sound_of_texts(trained):
    found = measured(trained.dense, trained.held_out)
    assert found["r2"] > 0.5
    mixed = trained.held_out | {TARGET: [trained.held_out[TARGET][i] for i in turned(trained.unseen)]}
    assert measured(trained.dense, mixed)["r2"] < found["r2"] - 0.2


def test_it_speaks_texts_that_it_has_not_seen(trained):
    answers = trained.dense.predict(trained.unseen)
    assert TONES.right(answers, trained.unseen) > 0.8
    same_length = [len(TONES.heard(answer)) == len(text) for answer, text in zip(answers, trained.unseen, strict=True)]
    assert np.mean(same_length) > 0.5


def test_answers_do_not_depend_on_the_batch(trained):
    chosen = ["ab", "dcba", "c"]
    together, alone = trained.dense.predict(chosen), [trained.dense.predict([text])[0] for text in chosen]
    for a, b in zip(together, alone, strict=True):
        one, other = samples_of(a)[0], samples_of(b)[0]
        assert len(one) == len(other)
        assert np.abs(one - other).max() < 1e-3


def test_latents_of_about_the_same_length_have_one_shape(trained):
    """An engine prepares itself for each shape that is new to it."""
    frames = sizes_fed(trained.dense, trained.held_out, "text.latents", 8)
    assert [number % 8 for number in frames] == [0] * 8


def test_what_is_behind_a_row_does_not_reach_back(stochastic):
    model = stochastic[-1].eval()
    sizes, own = (6, 40), torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    real = (torch.arange(40) < torch.tensor(sizes)[:, None]).float()
    with torch.no_grad():
        together = model({"text.latents": own, "text.real": real})[0, : 6 * HOP]
        alone = model({"text.latents": own[:1, :6], "text.real": real[:1, :6]})[0]
    assert together.std() > 1e-3
    assert together.numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_pruned_and_int8(trained, tmp_path):
    model, _, changed = recovered(trained, 0.3, 40, training=True, labels=True)
    assert load.parameters(model) < 0.97 * load.parameters(trained.model)
    pruned = save(tmp_path / "pruned", model, trained.task, trained.inputs, changed)
    int8 = quantize(pruned, QuantizeSpec(calibration=64), trained.rows, tmp_path / "int8", "int8")
    before, after = (measured(Predictor(found, 1), trained.held_out) for found in (pruned, int8))
    assert before["r2"] > 0.4
    assert abs(before["r2"] - after["r2"]) < 0.1
    assert len(Predictor(int8, 1).outputs({k: v[:4] for k, v in trained.held_out.items()})) == 4
    assert TONES.right(Predictor(int8, 1).predict(trained.unseen[:8]), trained.unseen[:8]) > 0.5


def test_drawn_durations_in_int8(stochastic, tmp_path):
    """The predictor's splines, and other lengths than those of calibration."""
    inputs, columns, task, model = stochastic
    rows = TONES.rows(["ab", "cdc", "dcba", "bd"], columns, task)
    dense = save(tmp_path / "dense", model.eval(), task, inputs)
    int8 = quantize(dense, QuantizeSpec(calibration=4), rows, tmp_path / "int8", "int8")
    batch, _ = feed(rows, columns, task)
    own = {name: batch[f"text.{name}"] for name in ("input_ids", "attention_mask")}
    one, other = (Predictor(found, 1).engine({f"text.{k}": v for k, v in own.items()})[..., -1] for found in (dense, int8))
    real = own["attention_mask"].bool().numpy()
    assert np.median(np.abs(other[real] / one[real] - 1)) < 0.15
    assert not one[~real].any()
    assert not other[~real].any()
    assert len(Predictor(int8, 1).predict(["a", "abcdabc"])) == 2


def test_an_artifact_answers_as_its_model_does(trained):
    batch, _ = feed(trained.held_out, trained.columns, trained.task)
    with torch.no_grad():
        expected = trained.task.outputs(lambda own: trained.model(own).numpy(), batch)
    assert trained.task.outputs(trained.dense.engine, batch) == pytest.approx(expected, abs=1e-4)


def test_it_says_what_transformers_does(trained, tmp_path):
    """Without what is drawn, an answer is that of the exported model."""
    whole = VitsModel.from_pretrained(load.export(trained.artifact, tmp_path / "plain"), attn_implementation="eager").eval()
    whole.noise_scale = 0.0
    ids = trained.columns["text"].tokenizer("dcba", return_tensors="pt")
    with torch.no_grad():
        expected = whole(**ids).waveform[0].numpy()
    silent = Task(seconds=2, sound=trained.task.sound | {"noise": 0.0}).bind(trained.columns)
    (found,) = silent.answer(trained.dense.engine, {f"text.{k}": v for k, v in ids.items()})
    inside = len(found) - trained.model.reach * HOP  # the end is another: see `Model._decode`
    assert found.shape == expected.shape
    assert found[:inside] == pytest.approx(expected[:inside], abs=1e-4)


@pytest.mark.parametrize("stochastic_too", [False, True])
def test_every_trained_weight_has_a_gradient(trained, stochastic, stochastic_too):
    inputs, columns, task, _ = stochastic if stochastic_too else (trained.inputs, trained.columns, trained.task, None)
    model = load.pretrained(ModelSpec(), inputs, task).train()
    batch, targets = feed(TONES.rows(["ab", "dcba"], columns, task), columns, task, training=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch)
    task.loss(outputs, targets).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def ways(frames, tokens):
    """All alignments: how many frames each token has."""
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        yield np.diff([0, *cuts, frames])


def test_alignment_is_the_best_of_all():
    random = torch.Generator().manual_seed(0)
    fit = torch.randn(6, 8, 4, generator=random)
    frames, tokens = torch.tensor([8, 7, 5, 4, 8, 1]), torch.tensor([4, 3, 4, 4, 1, 1])
    found = durations(fit, frames, tokens)
    for row, length, count, own in zip(fit, frames.tolist(), tokens.tolist(), found.int().tolist(), strict=True):
        of = {tuple(way): sum(row[i, token].item() for i, token in enumerate(np.repeat(np.arange(count), way))) for way in ways(length, count)}
        assert max(of, key=of.get) == tuple(own[:count])
        assert not any(own[count:])


def test_a_text_that_is_longer_than_its_recording():
    fit = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert durations(fit, torch.tensor([3, 2]), torch.tensor([5, 4])).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_likelihood_and_spread():
    random = torch.Generator().manual_seed(0)
    latents, mean, log = (torch.randn(2, size, 3, generator=random) for size in (5, 4, 4))
    each = Independent(Normal(mean[:, None], log.exp()[:, None]), 1).log_prob(latents[:, :, None])
    assert likelihood(latents, mean, log).numpy() == pytest.approx(each.numpy(), abs=1e-4)
    counts = torch.tensor([[2.0, 0, 1, 2], [1, 1, 1, 0]])
    assert spread(mean, counts, 5)[0].tolist() == mean[0, [0, 0, 2, 3, 3]].tolist()
    assert spread(mean, counts, 5)[1].tolist() == [*mean[1, :3].tolist(), [0, 0, 0], [0, 0, 0]]


def test_divergence_is_that_of_normal_distributions():
    """On average over what is drawn."""
    random = torch.Generator().manual_seed(0)
    mean, log, prior_mean, prior_log = (0.5 * torch.randn(3, generator=random) for _ in range(4))
    drawn = mean + log.exp() * torch.randn(200_000, 3, generator=random)
    expected = kl_divergence(Independent(Normal(mean, log.exp()), 1), Independent(Normal(prior_mean, prior_log.exp()), 1))
    assert _vits.divergence(drawn, log, prior_mean, prior_log).mean().item() == pytest.approx(expected.item(), rel=0.01)


def test_the_flow_changes_no_volume(trained):
    """So that densities on both of its sides can be compared; and what answers go through is its inverse."""
    flow, real = trained.model.model.flow, torch.ones(1, 1, 3)
    one = torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x, real).flatten(), one).reshape(48, 48)
    assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(0, abs=1e-3)
    with torch.no_grad():
        assert flow(flow(one, real), real, reverse=True).numpy() == pytest.approx(one.numpy(), abs=1e-4)


def test_durations_are_drawn_by_what_is_learned_from_them(stochastic, monkeypatch):
    """What the flows move to a normal distribution, transformers' predictor moves back."""
    predictor = stochastic[-1].model.duration_predictor.eval()
    random = torch.Generator().manual_seed(0)
    hidden, mask, latents = torch.randn(2, 32, 5, generator=random), torch.ones(2, 1, 5), torch.randn(2, 2, 5, generator=random)
    with torch.no_grad():
        text = predictor.conv_proj(predictor.conv_dds(predictor.conv_pre(hidden), mask)) * mask
        moved, _ = through(predictor.flows, latents, mask, text)
        monkeypatch.setattr(torch, "randn", lambda *size: moved)
        back = predictor(hidden, mask, reverse=True)
    assert back.numpy() == pytest.approx(latents[:, :1].numpy(), abs=1e-3)


def test_a_stochastic_predictor_learns_durations(tmp_path):
    *_, model = opened(vits(tmp_path / "base", use_stochastic_duration_prediction=True))
    own = {"input_ids": torch.tensor([[0, 1, 0, 2, 0, 3, 0, 4]]), "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    counts, mask = torch.tensor([[1.0, 7, 2, 9, 3, 5, 1, 12]]), torch.ones(16, 1, 8)
    hidden = model._read(own)[0].detach()
    many = hidden.transpose(1, 2).expand(16, -1, -1), mask, counts[:, None].expand(16, -1, -1)
    optimizer = torch.optim.AdamW(model.model.duration_predictor.parameters(), 5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        negative_log_likelihood(model.model.duration_predictor, *many).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        assert (model._durations(hidden, own).exp().ceil() - counts).abs().max() <= 1


def test_loss_of_a_perfect_answer(trained):
    """Nothing of the spectrogram is left; divergence and loss of durations are what the model gave."""
    _, targets = feed({k: v[:4] for k, v in trained.rows.items()}, trained.columns, trained.task, training=True)
    said = torch.randn(4, 2 * 16 * 16)
    outputs = torch.cat([torch.tensor([[1.0, 2.0]]).expand(4, 2), targets["slice"], said], 1)
    assert trained.task.loss(outputs, targets).item() == pytest.approx(3)
    silent = torch.cat([outputs[:, :2], torch.zeros_like(targets["slice"]), said], 1)
    assert trained.task.loss(silent, targets).item() > 30


def test_distance_from_a_teacher_is_that_of_normal_distributions(trained):
    _, targets = feed({k: v[:2] for k, v in trained.rows.items()}, trained.columns, trained.task, training=True)
    random = torch.Generator().manual_seed(0)
    student, teacher = (0.3 * torch.randn(2, 16, 2, 16, generator=random) for _ in range(2))
    outputs = [torch.cat([torch.zeros(2, 2), targets["slice"], x.flatten(1)], 1) for x in (student, teacher)]
    (mean, log), (true_mean, true_log) = student.unbind(2), teacher.unbind(2)
    apart = kl_divergence(Normal(true_mean, true_log.exp()), Normal(mean, log.exp())).sum((1, 2)) / targets["tokens"]
    assert trained.task.distill(*outputs, targets, 2.0).item() == pytest.approx(apart.mean().item(), rel=1e-4)


def test_a_slice_is_of_its_recording(trained):
    batch, targets = feed({k: v[:8] for k, v in trained.rows.items()}, trained.columns, trained.task, training=True)
    recordings = [trained.task.encode(t) for t in trained.rows[TARGET][:8]]
    for start, part, recording in zip(batch["text.start"].tolist(), targets["slice"], recordings, strict=True):
        known = recording[start * HOP :][: len(part)] / 32768
        assert part[: len(known)].numpy() == pytest.approx(known, abs=1e-6)
        assert start == 0 or len(known) == len(part)


def test_what_does_not_fit(tmp_path, monkeypatch):
    _, columns, task, _ = opened(vits(tmp_path / "base"), seconds=1)
    for cell, reason in ((None, "null"), (b"RIFFxxxx", "not audio"), (TONES.spoken("abcdabcdabcd"), "longer than 1 s")):
        with pytest.raises(DataError, match=reason):
            Task.read(cell, tmp_path, task)
    with pytest.raises(ModelError, match="4 voices"):
        opened(vits(tmp_path / "voices", num_speakers=4, speaker_embedding_size=8))
    monkeypatch.setattr(_vits, "is_phonemizer_available", lambda: False)
    with pytest.raises(ModelError, match="pip install phonemizer"):
        opened(vits(tmp_path / "phonemes", {"phonemize": True}))
    monkeypatch.setattr(_vits, "is_uroman_available", lambda: False)
    with pytest.raises(ModelError, match="pip install uroman"):
        opened(vits(tmp_path / "scripts", {"is_uroman": True}))
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no VITS can be loaded"):
        load.pretrained(ModelSpec(), [column(tmp_path / "base")], task)
    assert columns["text"].tokenizer("ab", add_special_tokens=False)["input_ids"] == [0, 1, 0, 2, 0]
    assert columns["text"].decode("2 d") == "2 d"
    for text in ("2024", "\u0434\u0430", "..."):
        with pytest.raises(DataError, match="no letter of the text"):
            columns["text"].decode(text)
