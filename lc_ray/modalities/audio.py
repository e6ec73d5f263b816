"""Audio: decoded, mixed to one channel and resampled once per dataset, encoded by a Hugging Face speech model.

Models of raw samples (wav2vec2, HuBERT, WavLM) and of log-mel features (Whisper's encoder, AST, wav2vec2-BERT) are told apart by their feature
extractor. Of features, those of Whisper and AST are all as long as `seconds`.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import pyarrow as pa
import soundfile
import torch
import torch.nn.functional as F
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import _clips, _hub, _media
from lc_ray.modalities._padding import padded
from lc_ray.spec import InputSpec

FULL_SCALE = 32768  # of 16-bit samples, 1 as a fraction: as files are read
_LONGEST = 3600  # seconds; a longer file is a mistake rather than a clip
_RATES = (1_000, 384_000)  # Hz
_STEPS = 640  # most that rates are resampled by, as from 11,025 to 16,000 Hz: filters of odd rates' own ratios would take gigabytes
_TOLERANCE = 0.05  # seconds
_LOUDEST = 16.0  # where 1 is full scale; more is another scale, or noise
_SHORTEST = 0.1  # seconds, to which shorter clips are padded: one frame of 25 ms is too few for models that pool neighbouring ones, such as SEW
_COUNTED = re.compile(rb"\xff[\xe2-\xfb]..(?:.{9}|.{17}|.{32})(?:Xing|Info)", re.DOTALL)  # an MP3's first frame, if it tells of how many there are


class Modality:
    """One column of clips.

    Args:
        spec: the column and its longest clip in seconds.
        source: folder or hub id that has the feature extractor.

    Raises:
        ModelError: the source has none.
    """

    TYPE = pa.binary()
    MEDIA = "audio"
    SCHEMA: ClassVar[dict[str, Any]] = _media.schema(MEDIA)
    CUT: ClassVar[bool] = True  # whether longer clips are cut, or refused

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        self.spec = spec
        with _hub.loading("feature extractor", str(source)):
            self.extractor = AutoFeatureExtractor.from_pretrained(str(source), trust_remote_code=False)
        self.rate = int(self.extractor.sampling_rate)
        self.whole = _is_ast(self.extractor) or "Whisper" in type(self.extractor).__name__
        self.mel = self.whole or self.extractor.model_input_names[0] != "input_values"
        self.longest = round(spec.seconds * self.rate)

    @property
    def example(self) -> str:
        """A quarter of a second of silence."""
        return str(self.show({"samples": bytes(2 * (self.rate // 4))}))

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> bytes:
        """A sound as 16-bit samples of one channel at the model's rate, cut at `seconds`.

        Args:
            value: what `_media.fetch` takes; of files also samples that Hugging Face datasets decoded, `{"array": ..., "sampling_rate": ...}`.
            errors: as `data.encoding_errors`.
            folder: in which paths are looked for.

        Raises:
            DataError: missing, damaged, cut off, of another format, over an hour, or with an impossible sample rate; too long, if not cut.
        """
        seconds = self.spec.seconds + 2 * _TOLERANCE
        if folder is not None and isinstance(value, dict) and value.get("array") is not None:
            samples = _resampled(*_given(value, seconds), self.rate)
        else:
            samples = samples_of(_media.fetch(value, folder, self.spec.path), self.rate, seconds)
        if not self.CUT and len(samples) > self.longest + _TOLERANCE * self.rate:
            raise DataError(f"longer than {self.spec.seconds:g} s")
        samples = np.pad(samples, (0, max(0, round(_SHORTEST * self.rate) - len(samples))))[: self.longest]
        return pcm(samples)

    def prepare(self, values: list[bytes | None]) -> dict[str, list[Any]]:
        """The samples; for models of log-mel features these too, as float16."""
        parts: dict[str, list[Any]] = {"samples": values}
        if self.mel:
            parts["mel"] = [None if v is None else self._mel(_waveform(v)).astype(np.float16).tobytes() for v in values]
        return parts

    def _mel(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-mel features of the model's own layout."""
        if _is_ast(self.extractor):
            self.extractor.max_length = round(self.spec.seconds * 100)
            return np.asarray(self.extractor(samples, sampling_rate=self.rate, return_tensors="np")["input_values"][0])
        if self.whole:
            samples = np.pad(samples, (0, self.longest - len(samples)))
        made = self.extractor(samples, sampling_rate=self.rate, padding="longest", truncation=False, return_tensors="np")
        features = np.asarray(made["input_features"][0])
        if self.whole or "attention_mask" not in made:
            return features
        return features[np.asarray(made["attention_mask"][0]) > 0]  # without a frame that is filled up, as wav2vec2-BERT's pairs may be

    def sizes(self, columns: dict[str, list[Any]]) -> list[int]:
        """Frames of 20 ms; all the same for features that are padded."""
        return [0 if self.whole or v is None else len(v) * 50 // self.rate for v in columns["samples"]]

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`input_features` (batch, bins, frames); or with `lengths` (batch,), clips that are padded with zeros.

        These are `input_values` (batch, samples), or `input_features` (batch, frames, bins).
        """
        if self.whole:
            shape = self._shape(next((len(row) // 2 for row in columns["mel"] if row), None))
            rows = [np.zeros(shape, np.float16) if row is None else np.frombuffer(row, np.float16).reshape(shape) for row in columns["mel"]]
            return {"input_features": torch.from_numpy(np.stack(rows).astype(np.float32))}
        silence = bytes(2 * round(_SHORTEST * self.rate))
        if self.mel:
            known = [self._mel(_waveform(silence)) if row is None else np.frombuffer(row, np.float16).astype(np.float32) for row in columns["mel"]]
            clips = [row.reshape(-1, self._bins) for row in known]
        else:
            clips = [_waveform(row or silence) for row in columns["samples"]]
            if self.extractor.do_normalize:
                clips = [_normal(clip) for clip in clips]
        lengths, frame = [len(clip) for clip in clips], 1 if self.mel else self.rate // 50
        more = padded(-(-max(lengths) // frame)) * frame - max(lengths)
        batch = F.pad(pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True), (*[0, 0] * self.mel, 0, more))
        return {"input_features" if self.mel else "input_values": batch, "lengths": torch.tensor(lengths)}

    @functools.cached_property
    def _bins(self) -> int:
        """Numbers of a frame of features."""
        return int(self._mel(np.zeros(round(_SHORTEST * self.rate), np.float32)).shape[1])

    @property
    def steps(self) -> int:
        """Of the longest clip: its samples, or frames of features."""
        return len(self._mel(np.zeros(self.longest, np.float32))) if self.mel else self.longest

    def _shape(self, numbers: int | None) -> tuple[int, int]:
        numbers = numbers or self._mel(np.zeros(self.longest, np.float32)).size
        if _is_ast(self.extractor):
            return numbers // self.extractor.num_mel_bins, self.extractor.num_mel_bins
        return self.extractor.feature_size, numbers // self.extractor.feature_size

    def augment(self, tensors: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Noise 20 dB below the clip and a shift of up to 50 ms for samples; SpecAugment (Park et al. 2019, arXiv:1904.08779) for features."""
        if not self.mel:
            values = tensors["input_values"]
            loud = (values.square().sum(1) / tensors["lengths"]).sqrt()[:, None]
            noisy = values + 0.1 * loud * torch.randn(values.shape, generator=random)
            shift = int(torch.randint(-self.rate // 20, self.rate // 20, (), generator=random))
            return tensors | {"input_values": noisy.roll(shift, 1)}
        features = tensors["input_features"].clone()
        for axis in (1, 2):
            size = features.shape[axis]
            for row in features:
                width = int(torch.randint(size // 8 + 1, (), generator=random))
                start = int(torch.randint(size - width + 1, (), generator=random))
                row.narrow(axis - 1, start, width).fill_(float(row.mean()))
        return tensors | {"input_features": features}

    def show(self, parts: dict[str, Any]) -> Any:
        """The resampled clip as a data URI of WAV."""
        return None if parts["samples"] is None else wav(parts["samples"], self.rate)

    def measure(self, parts: dict[str, Any]) -> dict[str, float | str]:
        """How long it is, and how loud, in decibels of full scale."""
        samples = _waveform(parts["samples"])
        return {"seconds": len(samples) / self.rate, "level": float(10 * np.log10(np.square(samples).mean() + 1e-10))}

    def save(self, folder: Path) -> None:
        """Write the feature extractor's file."""
        self.extractor.save_pretrained(str(folder))


class Encoder(nn.Module):
    """A speech model without its head.

    Args:
        model: of Hugging Face.
        config: what `rebuild` needs.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, config

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str) -> Self:
        """With pretrained weights, or random ones of that shape. Whisper's and AST's positions are cut to `spec.seconds`.

        Raises:
            ModelError: no such model, or one of shorter clips.
        """
        with _hub.loading("speech model", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            model = plain(_hub.model(AutoModel, config, source, spec.weights))
        if config.model_type == "whisper":
            model = shorter(model.encoder, spec.seconds, source)
        elif config.model_type == "audio-spectrogram-transformer":
            _shorter_ast(model, spec.seconds, source)
        else:
            _clips.settle(model, Modality(spec, source).steps, source)
        return cls(model, {"transformers": model.config.to_dict() | {"model_type": config.model_type}})

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded, from `config`."""
        model = AutoModel.from_config(AutoConfig.for_model(**config["transformers"]), trust_remote_code=False)
        return cls(plain(model.encoder if config["transformers"]["model_type"] == "whisper" else model), config)

    @property
    def width(self) -> int:
        """Length of a hidden vector."""
        known = self.config["transformers"]
        return int(known.get("d_model") or (known.get("add_adapter") and known["output_hidden_size"]) or known["hidden_size"])

    def forward(
        self, input_features: Tensor | None = None, input_values: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns hidden (batch, frames, width) and mask (batch, frames)."""
        model = cast(Any, self.model)
        if lengths is None:
            hidden = model(input_features).last_hidden_state
            return hidden, torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device)
        hidden = _clips.hear(model, cast(Tensor, input_features if input_values is None else input_values), lengths).last_hidden_state
        return hidden, _clips.heard(model, hidden.shape[1], lengths).to(hidden.dtype)


def samples_of(data: bytes, rate: int, seconds: float) -> NDArray[np.float32]:
    """An encoded sound as samples of one channel at a rate in Hz, of which about the first `seconds` are read.

    Raises:
        DataError: damaged, cut off, of another format, over an hour, or with an impossible sample rate.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if not _RATES[0] <= file.samplerate <= _RATES[1]:
                raise DataError(f"sample rate of {file.samplerate} Hz")
            if file.frames > _LONGEST * file.samplerate:
                raise DataError(f"audio of {file.frames / file.samplerate / 3600:.1f} hours")
            expected = min(file.frames, round(seconds * file.samplerate) + 1)
            _media.spend(expected * file.channels)
            samples = file.read(expected, dtype="float32", always_2d=True).mean(1)  # (samples,)
            counted = file.format != "MP3" or _COUNTED.search(data)  # else libsndfile guesses, by the file's size
            if _cut_off(data) or (counted and len(samples) < expected):
                raise DataError("the file ends before its header says")
            given = file.samplerate
    except soundfile.LibsndfileError as error:
        raise DataError(f"not audio of a known format: {str(error).rpartition(': ')[2]}") from None
    return _resampled(samples, given, rate)


def _given(value: dict[str, Any], seconds: float) -> tuple[NDArray[np.float32], int]:
    """About the first `seconds` of samples that a cell holds, as one channel, and their rate."""
    try:
        given = int(value["sampling_rate"])
        samples = np.asarray(value["array"], np.float32)
    except (KeyError, TypeError, ValueError):
        raise DataError("not an array of samples with its sampling_rate") from None
    if not _RATES[0] <= given <= _RATES[1]:
        raise DataError(f"sample rate of {given} Hz")
    if samples.ndim == 2:  # channels first or last: there are few
        samples = samples.mean(int(np.argmin(samples.shape)))
    if samples.ndim != 1:
        raise DataError(f"samples in {samples.ndim} dimensions")
    return samples[: round(seconds * given) + 1], given


def _resampled(samples: NDArray[np.float32], given: int, rate: int) -> NDArray[np.float32]:
    """Samples of one rate as those of another.

    Raises:
        DataError: there are none, or what are none.
    """
    if not len(samples):
        raise DataError("no samples")
    if not np.isfinite(samples).all():
        raise DataError("samples that are not numbers")
    if (peak := float(np.abs(samples).max())) > _LOUDEST:
        raise DataError(f"samples of up to {peak:.3g}, where full scale is 1")
    if given != rate:
        ratio = Fraction(given, rate).limit_denominator(_STEPS)
        samples = torchaudio.functional.resample(torch.from_numpy(samples), ratio.numerator, ratio.denominator).numpy()
    return samples


def pcm(samples: NDArray[np.float32]) -> bytes:
    """Samples as 16-bit numbers; those of a 16-bit file are as they are there."""
    return (samples * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()


def wav(samples: bytes, rate: int) -> str:
    """16-bit samples as a data URI of WAV."""
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(samples, "<i2"), rate, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


def shorter(encoder: Any, seconds: float, source: str) -> Any:
    """Whisper's encoder for clips shorter than its 30 seconds.

    Raises:
        ModelError: the clips are longer.
    """
    positions, most = round(seconds * 50), encoder.config.max_source_positions
    if positions > most:
        raise _too_long(seconds, most / 50, source)
    if positions < most:
        table = nn.Embedding(positions, encoder.embed_positions.weight.shape[1])
        table.weight.data.copy_(encoder.embed_positions.weight[:positions])
        encoder.embed_positions = table.requires_grad_(False)
        encoder.config.max_source_positions = positions
        encoder.max_source_positions = positions
    return encoder


def _shorter_ast(model: Any, seconds: float, source: str) -> None:
    """Cut AST's table of positions (1, 2 + bins × times, width) in time."""
    part, config = model.embeddings, model.config
    (bins, most), longest = part.get_shape(config), config.max_length
    config.max_length = round(seconds * 100)
    times = part.get_shape(config)[1]
    if times > most:
        raise _too_long(seconds, longest / 100, source)
    if times < 1:
        raise ModelError(f"clips of {seconds:g} s are shorter than one patch of this model", source, "raise data.inputs.seconds")
    special, patches = part.position_embeddings.data.split([2, bins * most], 1)
    part.position_embeddings = nn.Parameter(torch.cat([special, patches.unflatten(1, (bins, most))[:, :, :times].flatten(1, 2)], 1))


def _too_long(seconds: float, most: float, source: str) -> ModelError:
    return ModelError(f"the model hears clips of up to {most:g} s, not {seconds:g}", source, f"set data.inputs.seconds to {most:g} or less")


def plain(model: Any) -> Any:
    """Without layers that no output depends on, always or now and then, which would break the gradient's all-reduce; and hearing each clip alone."""
    for part in (model.config, *model.modules()):
        if hasattr(part, "layerdrop"):
            part.layerdrop = 0.0
    if hasattr(model, "masked_spec_embed"):  # wav2vec2's own SpecAugment, drawn with NumPy
        model.config.apply_spec_augment = False
        del model.masked_spec_embed
    if model.config.model_type == "wav2vec2-conformer":
        _hub.headless(model.encoder, "pos_conv_embed")  # which it has and does not call
    _clips.alone(model)
    return model


def _is_ast(extractor: Any) -> bool:
    return "AST" in type(extractor).__name__


def _waveform(samples: bytes) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", np.frombuffer(samples, "<i2").astype(np.float32) / FULL_SCALE)


def _normal(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and variance 1, as wav2vec2 was trained with."""
    return cast("NDArray[np.float32]", (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))


def _cut_off(data: bytes) -> bool:
    """Whether a WAV's, AIFF's or Ogg's last part is longer than the file; libsndfile would silently read what is there."""
    if data[:4] == b"FORM":
        return 8 + int.from_bytes(data[4:8], "big") > len(data)
    if data[:4] == b"OggS":
        page = data[data.rfind(b"OggS") :]
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            return size not in (0, 0xFFFFFFFF) and at + 8 + size > len(data)
        at += 8 + size + size % 2
    return False
