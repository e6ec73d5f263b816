"""VITS (Kim et al. 2021, arXiv:2106.06103) says a text as sound: a variational autoencoder of recordings whose prior is the text.

The posterior of a recording and the prior of its text meet in a latent space: a flow makes one of the other, and monotonic alignment search finds
which frames are which token's. A decoder makes sound of what is latent; a predictor says how long a token is.

Transformers has the model and no training, which is put together here of its parts, without what the paper adds to make it adversarial:
transformers has no discriminators, and no published model comes with any, so that new ones would have to be trained beside it. The decoder is
therefore only taught by the distance of spectrograms, which says nothing of a sound's fine structure: fine-tune published weights by small
steps, so that they keep theirs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, VitsModel
from transformers.utils import is_phonemizer_available, is_uroman_available

from lc_ray.errors import ModelError
from lc_ray.modalities import _hub, audio
from lc_ray.modalities._padding import padded
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks._alignment import durations, likelihood, spread
from lc_ray.tasks._durations import negative_log_likelihood
from lc_ray.tasks._speecht5 import bias
from lc_ray.tasks._task import Batch, ColumnModel, Run, named

_MEL = 45.0  # weight of the spectrogram's distance, as in the paper
_BINS = 80  # of a mel spectrogram
_SLICE = 32  # frames of a recording that the decoder is taught at a time: 8192 samples of those published
_TEXT = ("input_ids", "attention_mask")
_SPECTRUM, _REAL, _NOISE, _START, _LATENTS = "spectrum", "real", "noise", "start", "latents"


def sound(source: str) -> dict[str, Any] | None:
    """What the task needs to know of the VITS in a folder or of a hub id; None if it is none.

    Returns:
        `rate`: samples per second; `hop`: samples per frame; `bins`: of a spectrum; `width`: of what is latent; `noise`: how much of the prior's
        deviation an answer has.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    if config.model_type != "vits":
        return None
    shape = {"hop": math.prod(config.upsample_rates), "bins": config.spectrogram_bins, "width": config.flow_size}
    return {"rate": config.sampling_rate, **shape, "noise": config.noise_scale}


class Saying:
    """Speech as sound, all at once.

    Args:
        seconds: longest answer.
        rate, hop, bins, width, noise: see `sound`.
    """

    def __init__(self, seconds: float, rate: int, hop: int, bins: int, width: int, noise: float) -> None:
        self.rate, self.hop, self.bins, self.width, self.noise = rate, hop, bins, width, noise
        self.most = max(1, int(seconds * rate / hop))  # frames

    def bind(self, column: str, tokenizer: Any) -> None:
        """Take the name of the tensors.

        Raises:
            ModelError: the tokenizer reads phonemes, or needs other scripts to be romanised, and what makes them is not installed.
        """
        self.column = column
        if getattr(tokenizer, "phonemize", False) and not is_phonemizer_available():
            raise ModelError("this model reads phonemes", tokenizer.name_or_path, "pip install phonemizer, and install espeak-ng")
        if getattr(tokenizer, "is_uroman", False) and not is_uroman_available():
            raise ModelError("this model reads Roman letters, which uroman makes of others", tokenizer.name_or_path, "pip install uroman")

    def kept(self, samples: NDArray[np.float32]) -> bytes:
        """Samples as 16-bit numbers."""
        return audio.pcm(samples)

    def encode(self, target: bytes) -> NDArray[np.int16]:
        """(samples,) of whole frames."""
        samples = np.frombuffer(target, "<i2")
        return samples[: len(samples) // self.hop * self.hop]

    def collate(self, encoded: list[NDArray[np.int16]]) -> dict[str, Tensor]:
        """`samples` (batch, longest), padded with 0, and `real` (batch, frames), 1 or 0."""
        frames = torch.tensor([len(samples) // self.hop for samples in encoded])
        samples = torch.zeros(len(encoded), int(frames.max()) * self.hop)
        for row, known in zip(samples, encoded, strict=True):
            row[: len(known)] = torch.from_numpy(known / np.float32(audio.FULL_SCALE))
        return {"samples": samples, "real": _until(frames, int(frames.max()))}

    def teach(self, inputs: Batch, targets: dict[str, Tensor], random: torch.Generator, training: bool) -> tuple[Batch, dict[str, Tensor]]:
        """The recording's spectrum; while training, what the posterior draws, and a slice to be decoded."""
        samples, real = targets["samples"], targets["real"]
        own = {_SPECTRUM: self._spectrum(samples), _REAL: real}
        if training:
            size = min(_SLICE, real.shape[1])
            choices = (real.sum(1) - size + 1).clamp(min=1)
            start = (torch.rand(len(real), generator=random) * choices).long()
            own |= {_NOISE: torch.randn(len(real), self.width, real.shape[1], generator=random), _START: start}
            place = start[:, None] * self.hop + torch.arange(size * self.hop)
            targets = {"slice": samples.gather(1, place), "tokens": inputs[f"{self.column}.attention_mask"].sum(1)}
        return inputs | self._named(own), targets

    def loss(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """L1 distance of log-mel spectrograms of a slice, Kullback-Leibler divergence of the posterior from the prior, and the loss of durations.

        Args:
            outputs: (batch, 2 + samples of a slice + tokens × 2 × width): see `Model.forward`.
            targets: what `teach` gave.
        """
        parts = outputs[:, :2].float().mean(0).sum()
        return _MEL * self._distance(self._slice(outputs, targets), targets["slice"]) + parts

    def items(self, targets: dict[str, Tensor]) -> None:
        """None: see `_task.Task`."""

    def distill(self, outputs: Tensor, teacher: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """L1 distance from log-mel spectrograms of the teacher's slice, and Kullback-Leibler divergence of the prior from the teacher's."""
        said, known = (x[:, 2 + targets["slice"].shape[1] :].float().reshape(len(x), -1, 2, self.width) for x in (outputs, teacher))
        (mean, log), (true_mean, true_log) = said.unbind(2), known.unbind(2)
        apart = log - true_log - 0.5 + 0.5 * (torch.exp(2 * true_log) + (true_mean - mean).square()) * torch.exp(-2 * log)
        prior = (apart.sum((1, 2)) / targets["tokens"].clamp(min=1)).mean()
        return _MEL * self._distance(*(self._slice(x, targets) for x in (outputs, teacher))) + prior

    def _slice(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return outputs[:, 2 : 2 + targets["slice"].shape[1]].float()

    def outputs(self, run: Run, inputs: Batch) -> NDArray[np.float32]:
        """What the model says by itself, (batch, samples): what it is served for."""
        return self._said(run, inputs)[0]

    def answer(self, run: Run, inputs: Batch) -> list[NDArray[np.float32]]:
        """Samples of each row. What is drawn is the same for every row and each time, so that the rest of the batch changes nothing."""
        samples, frames = self._said(run, inputs)
        return [row[: count * self.hop] for row, count in zip(samples, frames.tolist(), strict=True)]

    def samples(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sound of an answer: itself."""
        return output

    def compared(self, run: Run, inputs: Batch, targets: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Log-mel spectrograms (frames, bins) in powers of ten of what is said of each row and of what is right.

        Each token is as long as in the recording, by alignment with the posterior's mean. Nothing is drawn: it is the prior's mean that is decoded.
        """
        said, real = torch.from_numpy(run(self._text(inputs))), targets["real"].cpu()
        heard = torch.from_numpy(run({name: inputs[name] for name in self._named({_SPECTRUM: None, _REAL: None})}))
        counts = _aligned(said, heard, inputs[f"{self.column}.attention_mask"].cpu(), real)
        samples = torch.from_numpy(run(self._named({_LATENTS: _latent(said, counts, real.shape[1], 0.0), _REAL: real})))
        guess, truth = (self._mel(x) / math.log(10) for x in (samples * real.repeat_interleave(self.hop, 1), targets["samples"].cpu()))
        for one, other, known in zip(guess, truth, real.bool(), strict=True):
            yield one.T[known], other.T[known]

    def _said(self, run: Run, inputs: Batch) -> tuple[NDArray[np.float32], Tensor]:
        """Samples (batch, samples of the longest row and some more), and each row's frames."""
        said = torch.from_numpy(run(self._text(inputs)))
        counts = said[..., -1].ceil().clamp(max=self.most)
        counts[:, 0].clamp_(min=1)
        counts = counts.cumsum(1).clamp(max=self.most).diff(dim=1, prepend=torch.zeros(len(counts), 1))
        frames = counts.sum(1).long()
        most = padded(int(frames.max()))
        return run(self._named({_LATENTS: _latent(said, counts, most, self.noise), _REAL: _until(frames, most)})), frames

    def _text(self, inputs: Batch) -> Batch:
        return {name: inputs[name] for name in self._named(dict.fromkeys(_TEXT))}

    def _named(self, tensors: dict[str, Any]) -> dict[str, Any]:
        return {f"{self.column}.{name}": tensor for name, tensor in tensors.items()}

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        return F.l1_loss(self._mel(one), self._mel(other))

    def _mel(self, samples: Tensor) -> Tensor:
        """(batch, samples) → natural logarithms of mel amplitudes (batch, bins, frames)."""
        return (_filters(self.bins, self.rate).to(samples.device).T @ self._spectrum(samples)).clamp(min=1e-5).log()

    def _spectrum(self, samples: Tensor) -> Tensor:
        """(batch, samples) → amplitudes (batch, bins, frames), the middle of whose windows is that of their frames."""
        size = 2 * (self.bins - 1)
        side = (size - self.hop) // 2
        padded, window = F.pad(samples, (side, size - self.hop - side)), torch.hann_window(size, device=samples.device)
        found = torch.stft(padded, size, self.hop, window=window, center=False, return_complex=True)
        return (torch.view_as_real(found).square().sum(-1) + 1e-6).sqrt()


class Model(ColumnModel):
    """VITS of one voice. Its stages are run one by one when it answers: a text is read, and what was made of it is decoded.

    Attention, the flow, the posterior and a stochastic predictor of durations are never pruned: the first shares its positions among its heads, and
    the others are made of layers whose width is that of what is latent, or of the text.

    Args:
        model: of transformers.
        column: whose tensors it takes.
    """

    def __init__(self, model: Any, column: str) -> None:
        super().__init__(audio.plain(model), column)
        self.hop, self.reach = math.prod(model.config.upsample_rates), _reach(model.config)
        self.stochastic = bool(model.config.use_stochastic_duration_prediction)
        text, decoder, predictor = model.text_encoder, model.decoder, model.duration_predictor
        self.keep = [*(layer.attention for layer in text.encoder.layers), text.project, model.posterior_encoder, model.flow]
        self.keep += [decoder.conv_pre, decoder.upsampler, decoder.conv_post, predictor if self.stochastic else predictor.proj]

    @classmethod
    def pretrained(cls, given: InputSpec, source: str, task: Any) -> Self:
        """See `text_to_speech.Model`.

        Raises:
            ModelError: no VITS, or one of several voices.
        """
        with _hub.loading("VITS", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            model = _hub.model(VitsModel, config, source, given.weights)
        if config.num_speakers > 1 or config.speaker_embedding_size:
            raise ModelError(f"this VITS has {config.num_speakers} voices", source, "use one of one voice, for example facebook/mms-tts-eng")
        return cls(model, module_name(given.column))

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(VitsModel(AutoConfig.for_model(**config["model"])), config["column"])

    def stages(self, batch: Batch) -> list[Batch]:
        """A taught batch as each of the stages takes it."""
        text, heard, real = ({f"{self.column}.{n}": batch[f"{self.column}.{n}"] for n in ns} for ns in (_TEXT, (_SPECTRUM, _REAL), (_REAL,)))
        mask, shown, said = batch[f"{self.column}.{_TEXT[1]}"], batch[f"{self.column}.{_REAL}"], self(text)
        counts = _aligned(said, self(heard), mask, shown)
        return [text, heard, {f"{self.column}.{_LATENTS}": _latent(said, counts, shown.shape[1], self.model.config.noise_scale)} | real]

    def followed(self, batch: Batch) -> list[Tensor]:
        """The parts that can be pruned, from end to end."""
        own = named(batch, self.column)
        hidden, *said = self._read(own)
        waveform = self.model.decoder(torch.zeros_like(own[_NOISE][..., :8]))
        return [*said, waveform] + ([] if self.stochastic else [self._durations(hidden, own)])

    def forward(self, batch: Batch) -> Tensor:
        """A text → its prior and durations; a recording → its posterior; what is latent → sound; text and recording → what training needs.

        Args:
            batch: `input_ids` and `attention_mask` (batch, tokens); or `spectrum` (batch, bins, frames) and `real` (batch, frames); or both, with
                `noise` (batch, width, frames) and `start` (batch,); or `latents` (batch, frames, width), on the text's side of the flow, and `real`.

        Returns:
            (batch, tokens, 2 × width + 1): means, logarithms of deviations, and frames of each token;
            (batch, frames, width): the posterior's mean, moved by the flow to the text's side;
            (batch, samples);
            or (batch, 2 + samples of a slice + tokens × 2 × width): divergence per frame, loss of durations per token, the slice that begins at
            `start`, and means and logarithms of deviations of each token.
        """
        own = named(batch, self.column)
        if _LATENTS in own:
            return self._decode(own[_LATENTS], own[_REAL])
        if _START in own:
            return self._learn(own)
        if _SPECTRUM in own:
            real = own[_REAL][:, None]
            _, mean, _ = self.model.posterior_encoder(own[_SPECTRUM], real)
            return self.model.flow(mean, real).transpose(1, 2)  # type: ignore[no-any-return]
        hidden, mean, log = self._read(own)
        return torch.cat([mean, log, self._durations(hidden, own)[..., None].exp() * own[_TEXT[1]][..., None] / self.model.speaking_rate], 2)

    def _read(self, own: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A text → hidden states, means, and logarithms of deviations: each (batch, tokens, ·), 0 behind its end."""
        ids, mask = (own[name] for name in _TEXT)
        weight = self.model.text_encoder.embed_tokens.weight
        seen = bias(mask[:, None, None].bool().expand(-1, 1, mask.shape[1], -1), weight)
        # What is padded need not be a token of the model's.
        found = self.model.text_encoder(ids * mask, mask[..., None].to(weight.dtype), seen)
        return found.last_hidden_state, found.prior_means.float(), found.prior_log_variances.float()

    def _durations(self, hidden: Tensor, own: Batch) -> Tensor:
        """Logarithms of each token's frames (batch, tokens), those that are likely where the predictor is stochastic."""
        mask = own[_TEXT[1]][:, None].to(hidden.dtype)
        more = {"reverse": True, "noise_scale": 0.0} if self.stochastic else {}
        with _precise(hidden):
            return self.model.duration_predictor(hidden.transpose(1, 2).float(), mask, **more)[:, 0]  # type: ignore[no-any-return]

    def _decode(self, latents: Tensor, real: Tensor) -> Tensor:
        """What is latent → sound (batch, samples). Behind a row's end there are as many empty frames as reach back into it, in any batch."""
        spoken = self.model.flow(latents.transpose(1, 2), real[:, None], reverse=True) * real[:, None]
        return self.model.decoder(F.pad(spoken, (0, self.reach)))[:, 0, : -self.reach * self.hop]  # type: ignore[no-any-return]

    def _learn(self, own: Batch) -> Tensor:
        """See `forward`."""
        hidden, mean, log = self._read(own)
        real, tokens = own[_REAL][:, None], own[_TEXT[1]]
        _, middle, spread_of = self.model.posterior_encoder(own[_SPECTRUM], real)
        drawn = (middle + own[_NOISE] * torch.exp(spread_of)) * real
        moved = self.model.flow(drawn, real)
        size = min(_SLICE, real.shape[2])
        place = (own[_START][:, None] + torch.arange(size, device=real.device))[:, None].expand(-1, drawn.shape[1], -1)
        sliced = self.model.decoder(drawn.gather(2, place))[:, 0]
        with _precise(hidden):
            moved, spread_of, frames = moved.transpose(1, 2).float(), spread_of.transpose(1, 2).float(), real[:, 0].sum(1)
            with torch.no_grad():
                counts = _aligned(torch.cat([mean, log], 2), moved, tokens, real[:, 0])
            apart = divergence(moved, spread_of, *(spread(x, counts, real.shape[2]) for x in (mean, log)))
            parts = torch.stack([(apart * real[:, 0]).sum(1) / frames, self._duration_loss(hidden, counts, own)], 1)
        return torch.cat([parts, sliced.float(), torch.cat([mean, log], 2).flatten(1)], 1)

    def _duration_loss(self, hidden: Tensor, counts: Tensor, own: Batch) -> Tensor:
        """(batch,), a mean over the tokens that have frames: their negative log-likelihood where the predictor is stochastic, see `_durations`, or
        else the squared error of their logarithms.
        """
        known = own[_TEXT[1]] * (counts > 0)
        if self.stochastic:
            found = negative_log_likelihood(self.model.duration_predictor, hidden.transpose(1, 2).float(), known[:, None].float(), counts[:, None])
        else:
            found = ((self._durations(hidden, own) - counts.clamp(min=1).log()).square() * known).sum(1)
        return found / known.sum(1).clamp(min=1)


def divergence(latents: Tensor, log_deviation: Tensor, mean: Tensor, prior_log_deviation: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the posterior from the prior, estimated by one draw from the former: equation 4 of the paper.

    Args:
        latents: what was drawn, moved by the flow, which changes no volume: (..., width).
        log_deviation: of the normal distribution that it was drawn from.
        mean: of the prior.
        prior_log_deviation: of the prior.

    Returns:
        (...)
    """
    distance = 0.5 * (latents - mean).square() * torch.exp(-2 * prior_log_deviation)
    return (prior_log_deviation - log_deviation - 0.5 + distance).sum(-1)


def _aligned(said: Tensor, heard: Tensor, mask: Tensor, real: Tensor) -> Tensor:
    """Frames of each token (batch, tokens), by its prior and the moved posterior (batch, frames, width)."""
    width = heard.shape[-1]
    return durations(likelihood(heard, said[..., :width], said[..., width : 2 * width]), real.sum(1).long(), mask.sum(1))


def _latent(said: Tensor, counts: Tensor, frames: int, noise: float) -> Tensor:
    """What is decoded of a text whose tokens are so long: the prior's mean, and a share of its deviation (batch, frames, width)."""
    mean, log, _ = torch.split(said, [said.shape[-1] // 2, said.shape[-1] // 2, 1], 2)
    drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((frames, mean.shape[-1]), np.float32)).to(said.device)
    return spread(mean, counts, frames) + noise * drawn * spread(log.exp(), counts, frames)


def _until(frames: Tensor, most: int) -> Tensor:
    """1 for each of a row's frames, else 0: (batch,) → (batch, most)."""
    return (torch.arange(most) < frames[:, None]).float()


def _precise(like: Tensor) -> torch.autocast:
    """Without bf16, which has too few digits for likelihoods and splines."""
    return torch.autocast(like.device.type, enabled=False)


def _reach(config: Any) -> int:
    """Frames, on either side, on which a sample of the decoder's depends."""
    frames, rate = 3.0, 1  # the first convolution's
    for up, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        frames, rate = frames + kernel / up / rate, rate * up
        blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        frames += max(sum((size - 1) * (dilation + 1) / 2 for dilation in dilations) for size, dilations in blocks) / rate
    return math.ceil(frames + 3 / rate)  # and the last one's


@functools.lru_cache(maxsize=2)
def _filters(bins: int, rate: int) -> Tensor:
    """Of a mel spectrogram: (bins of a spectrum, bins)."""
    return cast(Tensor, torchaudio.functional.melscale_fbanks(bins, 0.0, rate / 2, _BINS, rate, norm="slaney", mel_scale="slaney"))
