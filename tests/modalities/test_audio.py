"""Sounds: decoded, refused, batched, varied and encoded."""

import io

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    MoonshineConfig,
    MoonshineModel,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities.audio import Encoder, Modality
from lc_ray.spec import InputSpec

RATE = 16_000


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Folders of a tiny wav2vec2 of either normalisation; of one that feels padding; and of others, which take features."""
    torch.manual_seed(0)
    raw, group, felt, frames, mel, ast = (tmp_path_factory.mktemp(name) for name in ("wav2vec2", "group", "felt", "frames", "whisper", "ast"))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_conv_pos_embeddings": 16}
    conv = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 8, 4), "num_conv_pos_embedding_groups": 2}
    layers = {"num_feat_extract_layers": 3, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    Wav2Vec2Model(Wav2Vec2Config(**shape, **conv, **layers)).save_pretrained(raw)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(raw)
    Wav2Vec2Model(Wav2Vec2Config(**shape, **conv, num_feat_extract_layers=3)).save_pretrained(group)
    Wav2Vec2FeatureExtractor().save_pretrained(group)
    conv = conv | {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}
    Data2VecAudioModel(Data2VecAudioConfig(**shape | conv, num_feat_extract_layers=3)).save_pretrained(felt)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(felt)
    Wav2Vec2BertModel(Wav2Vec2BertConfig(**shape)).save_pretrained(frames)
    SeamlessM4TFeatureExtractor().save_pretrained(frames)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ends = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    WhisperModel(WhisperConfig(d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50, **layers, **ends)).save_pretrained(mel)
    WhisperFeatureExtractor().save_pretrained(mel)
    small = ASTModel(ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    torch.nn.init.normal_(small.embeddings.position_embeddings)
    small.save_pretrained(ast)
    ASTFeatureExtractor().save_pretrained(ast)
    return {"raw": str(raw), "group": str(group), "felt": str(felt), "frames": str(frames), "mel": str(mel), "ast": str(ast)}


def modality(speech, kind, seconds=1.0):
    return Modality(InputSpec(column="audio", modality="audio", seconds=seconds), speech[kind])


def tone(hertz=440.0, seconds=0.5, rate=RATE, form="WAV", subtype=None, channels=1, loud=1):
    wave = 0.5 * loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    file = io.BytesIO()
    soundfile.write(file, np.stack([wave] * channels, 1), rate, format=form, subtype=subtype)
    return file.getvalue()


def pitch(samples):
    wave = np.frombuffer(samples, "<i2").astype(float)
    return np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)


@pytest.mark.parametrize(
    "options",
    [
        *({"subtype": s} for s in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT")),
        {"form": "FLAC"},
        {"form": "OGG"},
        {"channels": 2},
        {"rate": 8000},
        {"rate": 44100},
        {"rate": 44101},
        {"rate": 16007},
    ],
)
def test_a_tone_keeps_its_pitch_and_length(speech, options):
    found = modality(speech, "raw").decode(tone(**options))
    assert pitch(found) == pytest.approx(440, abs=4)
    assert len(found) / 2 / RATE == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.frombuffer(found, "<i2")).max() / 32767 == pytest.approx(0.5, abs=0.03)


def test_samples_of_16_bits_are_as_they_were(speech):
    levels, file = np.arange(-32768, 32768, dtype="<i2"), io.BytesIO()
    soundfile.write(file, levels, RATE, format="WAV")
    audio = modality(speech, "raw", 5.0)
    assert audio.decode(file.getvalue()) == levels.tobytes()
    assert audio.decode(audio.show({"samples": levels.tobytes()})) == levels.tobytes()


def test_an_mp3_that_does_not_count_its_frames(speech):
    whole = tone(form="MP3", rate=44_100, seconds=0.6)
    plain = whole[whole.index(whole[:2], 4) :]  # without the first frame, which says how many there are
    cover = b"ID3\x04\0\0\0\x01\x1c\x20" + bytes(20_000)
    for data in (plain, cover + plain, cover + whole):
        assert pitch(modality(speech, "raw").decode(data)) == pytest.approx(440, abs=4)


@pytest.mark.parametrize("rate", [8001, 16_007, 44_101, 383_999])
def test_odd_rates_need_no_large_filter(speech, rate, monkeypatch):
    asked = []
    monkeypatch.setattr(torchaudio.functional, "resample", lambda samples, *rates: asked.append(rates) or samples)
    modality(speech, "raw").decode(tone(rate=rate))
    ((given, wanted),) = asked
    assert given * wanted < 1e7, "numbers in the filter"
    assert given / wanted == pytest.approx(rate / RATE, rel=1e-3)


def test_samples_that_were_decoded_before(speech):
    audio = modality(speech, "raw")
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    for array in (wave.tolist(), wave.astype(np.float32), np.stack([wave, wave]), np.stack([wave, wave], 1).tolist()):
        found = audio.decode({"path": "a.wav", "array": array, "sampling_rate": 8000}, folder=".")
        assert pitch(found) == pytest.approx(440, abs=4)
        assert len(found) / 2 / RATE == pytest.approx(0.5, abs=0.01)
    long = audio.decode({"array": np.tile(wave, 9), "sampling_rate": 8000}, folder=".")
    assert len(long) == 2 * RATE
    for value, reason in (
        ({"array": [0.1], "sampling_rate": None}, "with its sampling_rate"),
        ({"array": ["a"], "sampling_rate": 8000}, "with its sampling_rate"),
        ({"array": [], "sampling_rate": 8000}, "no samples"),
        ({"array": [0.1], "sampling_rate": 3}, "3 Hz"),
        ({"array": [float("nan")] * 9, "sampling_rate": 8000}, "not numbers"),
        ({"array": None, "sampling_rate": 8000}, "not bytes"),
        ([0.1, 0.2], r"give \{array, sampling_rate\}"),
    ):
        with pytest.raises(DataError, match=reason):
            audio.decode(value, folder=".")
    with pytest.raises(DataError, match="not bytes"):
        audio.decode({"array": wave.tolist(), "sampling_rate": 8000})


def test_long_clips_are_cut_and_short_ones_padded(speech):
    assert len(modality(speech, "raw").decode(tone(seconds=3))) == 2 * RATE
    assert len(modality(speech, "raw").decode(tone(seconds=0.001))) == 2 * round(0.1 * RATE)


def test_the_shortest_clip_is_long_enough_for_a_model_that_pools_frames(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (16,) * 13}
    SEWModel(SEWConfig(**shape, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    spec = InputSpec(column="audio", modality="audio", seconds=1.0)
    column = Modality(spec, tmp_path)
    batch = column.collate(column.prepare([column.decode(tone(seconds=0.001))]))
    hidden, mask = Encoder.pretrained(spec, str(tmp_path)).eval()(**batch)
    assert hidden.shape[1] > 0
    assert mask.any()


def header(rate=RATE, frames=None):
    """A WAV whose header says something else."""
    data = bytearray(tone())
    data[24:28] = rate.to_bytes(4, "little")
    if frames:
        data[40:44] = (2 * frames).to_bytes(4, "little")
    return bytes(data)


def not_numbers():
    file = io.BytesIO()
    soundfile.write(file, np.full(800, np.nan), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tone()[:4000], "ends before its header says"),
        (tone(form="OGG", seconds=2)[:-40], "ends before its header says"),
        (tone(form="AIFF")[:-400], "ends before its header says"),
        (tone(form="MP3")[:-900], "ends before its header says"),
        (tone(subtype="FLOAT", loud=30_000), "samples of up to 1.5e"),
        (header(rate=3), "sample rate of 3 Hz"),
        (tone(seconds=1.3 * 3600, rate=1000), "audio of 1.3 hours"),
        (tone(seconds=0), "no samples"),
        (not_numbers(), "not numbers"),
        (b"\0not a sound", "not audio of a known format"),
        (None, "null"),
    ],
)
def test_bad_sounds_are_told_apart(speech, data, reason):
    with pytest.raises(DataError, match=reason):
        modality(speech, "raw").decode(data)


@pytest.mark.parametrize("kind", ["raw", "frames", "mel"])
def test_shown_saved_and_opened_again(speech, kind, tmp_path):
    audio = modality(speech, kind)
    clean = audio.decode(tone())
    assert audio.decode(audio.show({"samples": clean})) == clean
    audio.decode(audio.example)
    audio.save(tmp_path)
    again = Modality(audio.spec, tmp_path)
    for name, tensor in audio.collate(audio.prepare([clean, None])).items():
        assert torch.equal(again.collate(again.prepare([clean, None]))[name], tensor)


@pytest.mark.parametrize("kind", ["raw", "group", "felt", "frames", "mel", "ast"])
def test_neighbours_and_rebuilding_change_nothing(speech, kind):
    audio = modality(speech, kind)
    encoder = Encoder.pretrained(audio.spec, speech[kind]).eval()
    again = Encoder.rebuild(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    clips = [audio.decode(tone(300, 0.2)), audio.decode(tone(900, 0.9))]
    alone, both = (audio.collate(audio.prepare(c)) for c in (clips[:1], clips))
    with torch.no_grad():
        (one, own), (two, mask) = encoder(**alone), encoder(**both)
        torch.testing.assert_close(again(**both)[0], two)
    assert two.shape[2] == encoder.width
    real = int(mask[0].sum())
    assert real == int(own.sum())
    torch.testing.assert_close(two[0, :real], one[0, :real], rtol=1e-3, atol=1e-4)
    assert ("padded_to" in encoder.config["transformers"]) == (kind == "felt")
    assert audio.whole == (kind in ("mel", "ast"))
    assert not audio.whole or two.shape[1] == {"mel": 50, "ast": 2 + 12 * 9}[kind]  # a second, of the 30 or 10.24 that they were made for


@pytest.mark.parametrize("kind", ["raw", "frames"])
def test_clips_of_about_the_same_length_make_batches_of_one_shape(speech, kind):
    audio = modality(speech, kind)
    clips = [audio.decode(tone(seconds=seconds)) for seconds in (0.7, 0.72, 0.75, 0.79)]
    first, *others = (audio.collate(audio.prepare([clip])) for clip in clips)
    feed = next(name for name in first if name != "lengths")
    assert [other[feed].shape for other in others] == [first[feed].shape] * 3
    assert len({int(batch["lengths"]) for batch in (first, *others)}) == 4


def test_what_only_a_trained_model_makes_of_padding(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (16,) * 7}
    HubertModel(HubertConfig(**shape, conv_pos_batch_norm=True, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = Encoder.pretrained(InputSpec(column="audio", modality="audio", seconds=2.0), str(tmp_path))
    assert encoder.config["transformers"]["padded_to"] == 2 * RATE


def test_models_that_do_not_hear_alone_are_refused(tmp_path):
    layers = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")}
    MoonshineModel(MoonshineConfig(hidden_size=16, intermediate_size=32, vocab_size=50, **layers)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not encode sounds alone: moonshine"):
        Encoder.pretrained(InputSpec(column="audio", modality="audio", seconds=1.0), str(tmp_path))


@pytest.mark.parametrize("kind", ["raw", "group", "frames"])
def test_a_clip_is_heard_as_transformers_hears_it(speech, kind):
    audio = modality(speech, kind)
    encoder = Encoder.pretrained(audio.spec, speech[kind]).eval()
    clips = [audio.decode(tone(300, 0.2)), audio.decode(tone(900, 0.9))]
    given = audio.extractor(np.frombuffer(clips[0], "<i2").astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(speech[kind]).eval()(**given).last_hidden_state[0]
        found, mask = encoder(**audio.collate(audio.prepare(clips)))
    assert int(mask[0].sum()) == len(expected)
    near = 1e-2 if kind == "frames" else 1e-3  # features are kept in float16
    torch.testing.assert_close(found[0, : len(expected)], expected, rtol=1e-3, atol=near)


def test_a_frame_that_is_filled_up_is_not_heard(speech):
    audio = modality(speech, "frames")
    odd = audio.decode(tone(seconds=0.205))  # 19 frames, which are joined by twos
    given = audio.extractor(np.frombuffer(odd, "<i2").astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="pt")
    assert given["attention_mask"].tolist() == [[1] * 9 + [0]]
    assert audio.collate(audio.prepare([odd]))["lengths"].tolist() == [9]


def test_positions_stay_where_they_were(speech):
    whole, cut = (Encoder.pretrained(modality(speech, "ast", seconds).spec, speech["ast"]).model for seconds in (10.24, 2.0))
    sound = modality(speech, "ast", 10.24)
    features = sound.collate(sound.prepare([sound.decode(tone(seconds=10))]))["input_features"]
    with torch.no_grad():
        far, near = whole.embeddings(features), cut.embeddings(features[:, :200])
    torch.testing.assert_close(near[:, 2:].unflatten(1, (12, -1)), far[:, 2:].unflatten(1, (12, -1))[:, :, :19])
    torch.testing.assert_close(near[:, :2], far[:, :2])


@pytest.mark.parametrize(("kind", "seconds", "said"), [("mel", 31, "up to 30 s, not 31"), ("ast", 11, r"up to 10\.24 s"), ("ast", 0.1, "patch")])
def test_clips_that_a_model_was_not_made_for(speech, kind, seconds, said):
    with pytest.raises(ModelError, match=said):
        Encoder.pretrained(modality(speech, kind, seconds).spec, speech[kind])


@pytest.mark.parametrize("kind", ["raw", "frames", "mel"])
def test_variations_are_seeded(speech, kind):
    audio = modality(speech, kind)
    batch = audio.collate(audio.prepare([audio.decode(tone())]))
    one, same, other = (audio.augment(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(one[k].shape == batch[k].shape and torch.equal(one[k], same[k]) for k in batch)
    assert any(not torch.equal(one[k], other[k]) for k in batch)
