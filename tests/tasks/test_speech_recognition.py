"""Words "spoken" as a tone per letter, so that tiny models of both kinds learn to write them down."""

import io
import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from random import Random
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from artifacts import save
from learning import measured, recovered, train
from transformers import (
    BertConfig,
    BertModel,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from lc_ray.errors import DataError, ModelError, SpecError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.predictor import Predictor
from lc_ray.quantize import none
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks import _ctc, _seq2seq
from lc_ray.tasks.speech_recognition import Task, _plain

RATE, LETTERS, SLOT, SECONDS = 16_000, "abcd ", 0.06, 0.9
PITCH = dict(zip(LETTERS, (400, 800, 1400, 2200, 3400), strict=True))


def spoken(text, random):
    """A text as WAV: a tone per letter, of varying length, in noise."""
    pieces = []
    for letter in text:
        time = np.arange(int(RATE * SLOT * random.uniform(0.9, 1.1))) / RATE
        pieces.append(np.sin(2 * np.pi * PITCH[letter] * time) * np.hanning(len(time)))
    noise = np.random.default_rng(random.randrange(2**32))
    samples = np.concatenate(pieces)
    file = io.BytesIO()
    soundfile.write(file, 0.5 * samples + 0.01 * noise.normal(size=len(samples)), RATE, format="WAV")
    return file.getvalue()


def sentences(count, seed):
    random = Random(seed)
    found = []
    for _ in range(count):
        words = ["".join(random.choices("abcd", k=random.randint(1, 3))) for _ in range(random.randint(1, 3))]
        found.append(" ".join(words))
    return found


def wav2vec2(folder):
    folder.mkdir()
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCD"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": (48, 48, 48)},
        **{"conv_kernel": (64, 4, 4), "conv_stride": (32, 4, 2), "num_feat_extract_layers": 3, "feat_extract_norm": "layer"},
        **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": len(vocabulary), "pad_token_id": 0},
        **{"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "layerdrop": 0.0},
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def whisper(folder):
    folder.mkdir()
    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = {token: i for i, token in enumerate([*"abcdefgh", "Ġ", *specials])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], unk_token="<|endoftext|>", additional_special_tokens=specials[1:])
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=32).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 96))}
    config = WhisperConfig(
        **{"vocab_size": len(tokenizer), "num_mel_bins": 32, "d_model": 48, "max_source_positions": 100, "max_target_positions": 32, **sizes},
        **{"pad_token_id": 9, "bos_token_id": 9, "eos_token_id": 9, "decoder_start_token_id": 10, "dropout": 0.0},
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


MAKE = {"ctc": wav2vec2, "seq2seq": whisper}


def column(base, **fields):
    return InputSpec(column="clip", modality="speech", base=str(base), seconds=SECONDS, **{"weights": "pretrained", "optional": False} | fields)


def untrained(make, folder):
    """A tiny model as it is loaded, its task and its columns."""
    base = make(folder / "base")
    inputs, task = [column(base)], Task(max_new_tokens=16)
    columns = load.modalities(inputs)
    task.bind(columns)
    return load.pretrained(ModelSpec(base=str(base)), inputs, task).eval(), task, columns


def rows_of(texts, columns, seed=0):
    random = Random(seed)
    return prepare({"clip": [columns["clip"].decode(spoken(text, random)) for text in texts]}, columns) | {TARGET: texts}


@pytest.fixture(scope="module", params=["ctc", "seq2seq"])
def trained(request, tmp_path_factory):
    """A tiny model of each kind that has learned to write down tones, as an artifact."""
    folder = tmp_path_factory.mktemp(request.param)
    base = MAKE[request.param](folder / "base")
    inputs, task = [column(base)], Task(max_new_tokens=16)
    columns = load.modalities(inputs)
    task.bind(columns)
    rows, held_out = rows_of(sentences(320, 0), columns), rows_of(sentences(48, 1), columns, 1)
    torch.manual_seed(0)
    steps, rate = {"ctc": (260, 4e-3), "seq2seq": (1000, 3e-3)}[request.param]
    model = load.pretrained(ModelSpec(base=str(base)), inputs, task)
    train(model, task, rows, columns, steps, rate)
    found = save(folder / "dense", model, task, inputs)
    return SimpleNamespace(
        **{"kind": request.param, "base": base, "task": task, "inputs": inputs, "columns": columns, "model": model, "rows": rows},
        **{"held_out": held_out, "artifact": found, "dense": Predictor(found, 1)},
    )


def test_it_learns_what_chance_cannot(trained):
    found = measured(trained.dense, trained.held_out)
    assert found["wer"] < 0.4
    assert found["cer"] < 0.2
    assert found["word_accuracy"] == pytest.approx(1 - found["wer"])
    turned = trained.held_out | {TARGET: trained.held_out[TARGET][1:] + trained.held_out[TARGET][:1]}
    assert measured(trained.dense, turned)["wer"] > 0.8


def test_answers_are_those_measured_and_do_not_depend_on_the_batch(trained):
    texts = trained.held_out[TARGET][:12]
    rows = {k: v[:12] for k, v in trained.held_out.items()}
    together, alone = trained.dense.answers(rows), trained.dense.answers(rows, batch_size=1)
    assert together == alone
    assert all(set(answer) == {"text"} for answer in together)
    assert [trained.task.decode(score, {}) for score in trained.dense.scores(rows)] == together
    spoken_again = [trained.columns["clip"].show({"samples": samples}) for samples in rows["clip.samples"]]
    assert trained.dense.predict(spoken_again) == together
    wrong = [trained.task.mistake(answer, text) for answer, text in zip(together, texts, strict=True)]
    assert all((w is None) == (a["text"].lower() == t) for w, a, t in zip(wrong, together, texts, strict=True))


def test_an_artifact_answers_as_its_model_does(trained):
    rows = {k: v[:6] for k, v in trained.held_out.items()}
    batch, _ = feed({k: [v[i] for i in np.argsort(rows["_size"], kind="stable")] for k, v in rows.items()}, trained.columns, trained.task)
    with torch.no_grad():
        expected = trained.model(batch).numpy()
    found = np.stack(trained.dense.outputs(rows))[np.argsort(rows["_size"], kind="stable")]
    assert found == pytest.approx(expected, abs=1e-3)


def test_pruned_and_int8(trained, tmp_path):
    model, _, changed = recovered(trained, 0.3, 25)
    assert load.parameters(model) < 0.93 * load.parameters(trained.model)
    pruned = save(tmp_path / "pruned", model, trained.task, trained.inputs, changed)
    int8 = quantize(pruned, QuantizeSpec(calibration=64), trained.rows, tmp_path / "int8", "int8")
    assert len([name for name in int8.manifest.files if name.endswith(".xml")]) == (1 if trained.kind == "ctc" else 3)
    before, after = (measured(Predictor(found, 1), trained.held_out) for found in (pruned, int8))
    assert before["wer"] < 0.6
    assert after["wer"] < before["wer"] + 0.1
    rows = {k: v[:8] for k, v in trained.held_out.items()}
    assert len(Predictor(int8, 1).outputs(rows)) == 8


def test_workers_call_the_model_alike(trained):
    """Of batches whose transcripts have other lengths: with ZeRO-3 a call more or less would never return."""
    counts = []
    for rows in ({k: v[:1] for k, v in trained.held_out.items()}, {k: v[:9] for k, v in trained.held_out.items()}):
        calls = []

        def run(batch, calls=calls):
            calls.append(sorted(batch))
            return trained.dense.engine(batch)

        trained.task.score(run, *feed(rows, trained.columns, trained.task))
        counts.append(calls)
    assert counts[0] == counts[1]


def test_every_trained_weight_has_a_gradient(trained):
    model = load.pretrained(ModelSpec(base=str(trained.base)), trained.inputs, trained.task).train()
    batch, targets = feed({k: v[:4] for k, v in trained.rows.items()}, trained.columns, trained.task)
    trained.task.loss(model(batch), targets).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_error_rates_are_jiwers(trained):
    texts, heard = ["ab cd", "a b c"], ["ab dd", "a b"]
    task = trained.task
    encoded = [task.encode(t) for t in texts]
    found = task.metrics([(0.5, task.encode(t)[1]) for t in heard], encoded)
    assert found["wer"] == pytest.approx(jiwer.wer(texts, heard)) == pytest.approx(2 / 5)
    assert found["cer"] == pytest.approx(jiwer.cer(texts, heard))
    assert task.metrics([(0.0, ids) for _, ids in encoded], encoded)["wer"] == 0


def test_a_wrong_character_of_a_text_without_blanks_is_one_wrong_word():
    task = Task()
    task.reading = SimpleNamespace(text=str, spoken=str)
    found = task.metrics([(0.0, "今天天气很好 ok")], [("今天天气真好 ok", [])])
    assert found["wer"] == pytest.approx(1 / 7)
    assert found["cer"] == pytest.approx(jiwer.cer("今天天气真好 ok", "今天天气很好 ok"))
    assert task.mistake({"text": "今天天气很好"}, "今天天气真好") == pytest.approx(1 / 6)
    assert task.mistake({"text": "สวัสดี"}, "สวัสดิ") == pytest.approx(1 / 4)


def test_padding_makes_distillation_no_smaller(tmp_path):
    task = Task().bind(load.modalities([column(wav2vec2(tmp_path / "base"))]))
    student, teacher = torch.randn(2, 1, 6, len(task.reading.tokenizer), generator=torch.Generator().manual_seed(0))
    padding = torch.zeros_like(student)
    padding[..., task.reading.blank] = 1e4
    longer = [torch.cat([outputs, padding], 1) for outputs in (student, teacher)]
    assert task.distill(*longer, None, 2.0).item() == pytest.approx(task.distill(student, teacher, None, 2.0).item())


def test_words_that_are_heard_in_silence_are_errors(trained):
    task, texts = trained.task, ["...", "ab cd"]
    encoded, heard = [task.encode(text) for text in texts], [(0.0, task.encode("ab cd")[1])] * 2
    assert task.metrics(heard, encoded)["wer"] == jiwer.wer(["", "ab cd"], ["ab cd"] * 2) == 1
    assert task.metrics([(0.0, []), heard[1]], encoded)["wer"] == 0
    assert task.mistake({"text": "ab"}, "...") == 1
    assert task.mistake({"text": ""}, "...") is None


@pytest.mark.parametrize("text", ["Well, don't (laughs)  <noise> STOP 5%!", "Grüße [x]: Café—ﬁn", "你好，世界"])
def test_case_and_punctuation_do_not_count(text):
    assert _plain(text) == BasicTextNormalizer()(text).strip()


def test_vowels_that_are_marks_count():
    assert _plain("नमस्ते, दुनिया!") == "नमस्ते दुनिया"
    assert _plain("\u0130stanbul") == "istanbul"


def test_letters_that_a_vocabulary_lacks_are_errors(tmp_path):
    task = Task().bind(load.modalities([column(wav2vec2(tmp_path / "base"))]))
    perfect = [(0.0, [token for token in task.encode("ab xd")[1] if token != 3])]  # what it can say of it
    assert task.metrics(perfect, [task.encode("ab xd")]) == pytest.approx({"word_accuracy": 0.5, "wer": 0.5, "cer": 0.2, "loss": 0})
    assert task.mistake(task.decode(perfect[0], {}), "ab xd") == 0.5
    assert task.mistake({"text": "AB CD"}, "ab-cd!") is None


def test_no_transcript_is_cut(tmp_path):
    long = "abcd " * 40
    letters = Task.reader(Task.Options(), load.modalities([column(wav2vec2(tmp_path / "ctc"))]))
    assert letters.read(long, None, letters) == long
    assert len(letters.encode(long)[1]) == len(long.strip()) > letters.max_new_tokens
    tokens = Task.reader(Task.Options(max_new_tokens=4), load.modalities([column(whisper(tmp_path / "whisper"))]))
    assert tokens.read("ab", None, tokens) == "ab"  # a space, two letters and the end
    with pytest.raises(DataError, match=r"more than task\.max_new_tokens \(4\) tokens"):
        tokens.read("abc", None, tokens)


def test_letters_of_a_ctc_vocabulary(tmp_path):
    columns = load.modalities([column(wav2vec2(tmp_path / "base"))])
    reading = _ctc.Reading("clip", columns["clip"], 16, None)
    assert reading.text(reading.encode("Ab,  cd!")) == "AB CD"
    assert reading.encode("- Ab \u2013 cd \u2026") == reading.encode("AB CD"), "no word lies between signs that stand alone"
    assert reading.spoken("ab-cd a/b c\u2014d a.b.") == "AB CD A B C D AB", "models that know LibriSpeech say twenty-five as two words"
    accented, letters = unicodedata.normalize("NFC", "\u00e9\u00fc"), set(reading._known)
    for form, known in (("NFC", "\u00c9\u00dc"), ("NFD", "EU\u0301\u0308")):
        reading._known = letters | set(known)
        said = {reading.spoken(unicodedata.normalize(written, accented)) for written in ("NFC", "NFD")}
        assert said == {unicodedata.normalize(form, "\u00c9\u00dc")}
    reading._known = letters
    assert reading.spoken("d\u2019a") == "DA"
    reading._known.add("'")
    assert reading.spoken("d\u2019a") == "D'A"
    reading._case = str.lower
    for together, apart in (("\u1ec7", "e\u0323\u0302"), ("\ud55c", "\u1112\u1161\u11ab")):
        for form in (together, apart):
            reading._known = {*form}
            assert reading.spoken(apart) == reading.spoken(together) == form
    reading._known = {"\u0958"}
    assert reading.spoken("\u0958") == "\u0958", "which Unicode never puts together"
    assert reading.spoken("\u0130I") == "ii", "which Python makes three of"
    assert reading.text([5, 5, 4, 6]) == "AA B"
    outputs = torch.zeros(1, 7, 9)
    for frame, token in enumerate([5, 5, 0, 5, 6, 6, 0]):
        outputs[0, frame, token] = 9
    assert reading._read(outputs) == [[5, 5, 6]]
    with pytest.raises(DataError, match="no letter"):
        Task.fit(["ж", "ш"], Task.Options(), columns)


def test_ctc_loss_equals_transformers(tmp_path):
    model, task, columns = untrained(wav2vec2, tmp_path)
    batch, targets = feed(rows_of(["ab cd", "a"], columns), columns, task)
    values, lengths = batch["clip.input_values"], batch["clip.lengths"]
    given = (torch.arange(values.shape[1])[None] < lengths[:, None]).long()
    model.model.config.ctc_loss_reduction = "mean"
    expected = model.model(values, attention_mask=given, labels=targets).loss
    assert task.loss(model(batch), targets).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_transcript_with_more_tokens_than_frames_does_not_count(tmp_path):
    model, task, columns = untrained(wav2vec2, tmp_path)
    clips = [columns["clip"].decode(spoken(text, Random(0))) for text in ("a", "ab cd ab cd")]
    rows = prepare({"clip": clips}, columns) | {TARGET: ["abcd " * 4, "ab cd"]}  # the first would fit into the other's frames
    batch, targets = feed(rows, columns, task)
    lost, kept = task.reading._nats(model(batch), targets).tolist()
    assert lost == 0
    assert 0 < kept < 100


def test_a_whisper_hears_once_and_reads_each_token_once(tmp_path):
    model, task, columns = untrained(whisper, tmp_path)
    rows = rows_of(["ab cd", "a", "dcb", "bad cd", "abba"], columns)
    batch, _ = feed(rows, columns, task)
    engine = none.Run(model, 1)
    remember, read = engine.remember, []

    def noted(told, past):
        if "clip.tokens" in told:
            read.append(told["clip.tokens"].shape)
        return remember(told, past)

    engine.remember = noted
    with torch.no_grad():
        whole = task.reading.answer(lambda given: model(given).numpy(), batch)  # as in training: an engine that keeps nothing
        assert task.reading.answer(engine, batch) == whole
        longest = max(map(len, whole[:4]))
        assert read[:longest] == [(4, 2), *([(4, 1)] * (longest - 1))], "random weights never end"
        assert {rows for rows, _ in read[longest:]} == {1}, "the fifth by itself"
        assert task.reading.outputs(engine, batch) == pytest.approx(model(batch).numpy(), abs=1e-5)
        known, said = list(model({"clip.states": model({"clip.input_features": batch["clip.input_features"]})})), []
        tokens, found = batch["clip.tokens"], []
        for start, end in ((0, 2), (2, 3), (3, tokens.shape[1])):
            told = {"clip.tokens": tokens[:, start:end], "clip.asked": torch.arange(end - start).expand(len(tokens), -1)}
            logits, new = remember(told, known + said)
            found.append(logits)
            said = [torch.cat(pair, 2) for pair in zip(said, new, strict=True)] if said else new
        asked = batch["clip.asked"][0]
        torch.testing.assert_close(torch.cat(found, 1)[:, asked], model(batch), atol=1e-5, rtol=1e-5)


def test_threads_and_training_hear_a_whisper_alike(tmp_path):
    model, task, columns = untrained(whisper, tmp_path)
    engine = none.Run(model, 1)
    batch, targets = feed(rows_of(["ab cd", "a", "dcb", "bad cd", "abba"], columns), columns, task)
    expected = task.reading.answer(engine, batch)
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: task.reading.answer(engine, batch), range(9))) == [expected] * 9
    by_engine, heard = task.reading.score(engine, batch, targets)
    for autocast in (False, True):  # as training evaluates it, in bf16 by default
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, autocast):
            nats, said = task.reading.score(lambda given: model(given).float().numpy(), batch, targets)
        assert nats == pytest.approx(by_engine, rel=0.02 if autocast else 1e-5)
        assert autocast or said == heard == expected


def test_what_does_not_fit(tmp_path, tiny_base):
    with pytest.raises(DataError, match=r"longer than 0\.9 s"):
        load.modalities([column(wav2vec2(tmp_path / "long"))])["clip"].decode(spoken("a" * 18, Random(0)))
    for value, reason in ((None, "missing"), (" ", "missing"), (b"\xff\xfe", "UTF-8"), ([3], "not text")):
        with pytest.raises(DataError, match=reason):
            Task.clean(value)
    assert Task.clean(3) == "3"
    with pytest.raises(ModelError, match="no feature extractor"):
        load.modalities([column(tiny_base)])
    base = whisper(tmp_path / "whisper")
    columns = load.modalities([column(base)])
    with pytest.raises(SpecError, match="one column"):
        Task.fit(["a"], Task.Options(), columns | {"other": columns["clip"]})
    with pytest.raises(ModelError, match="max_new_tokens: 30"):
        load.pretrained(ModelSpec(base=str(base)), [column(base)], Task(max_new_tokens=64).bind(columns))
    other = wav2vec2(tmp_path / "other")
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).save_pretrained(other)
    with pytest.raises(ModelError, match="no CTC model"):
        load.pretrained(ModelSpec(base=str(other)), [column(other)], Task().bind(load.modalities([column(other)])))
    assert _seq2seq.Reading("clip", columns["clip"], 16, None).encode("ab")[-1] == 9
    with pytest.raises(SpecError, match=r"task\.language: .*klingon"):
        Task.fit(["a"], Task.Options(language="klingon"), columns)
