"""SpeechT5 (Ao et al. 2022, arXiv:2110.07205) says a text as a log-mel spectrogram, which Griffin-Lim makes sound of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, EncoderDecoderCache, SpeechT5ForTextToSpeech

from lc_ray.errors import ModelError
from lc_ray.modalities import _hub, audio
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks import _mel
from lc_ray.tasks._past import Heard, Kept, Past, attended, begun, keeps, whole
from lc_ray.tasks._task import Batch, ColumnModel, Run, named

_STOP = 5.0  # weight of the frame with which a recording ends, as SpeechT5 has it
_MASK, _FRAMES, _STATES, _SPECTROGRAM = "attention_mask", "frames", "states", "spectrogram"


class Saying:
    """Speech as a spectrogram, some frames at a time.

    Args:
        seconds: longest answer.
        reduction_factor: frames that the model says at a time.
    """

    def __init__(self, seconds: float, reduction_factor: int) -> None:
        self.seconds, self.reduction_factor, self.rate = seconds, reduction_factor, _mel.rate()

    def bind(self, column: str, tokenizer: Any) -> None:
        """Take the name of the tensors."""
        self.column = column

    def kept(self, samples: NDArray[np.float32]) -> bytes:
        """Samples as their log-mel spectrogram: float16 (frames, bins), rows first."""
        return _mel.spectrogram(samples).astype("<f2").tobytes()

    def encode(self, target: bytes) -> NDArray[np.float32]:
        """(frames, bins); as many frames as the model says in whole steps."""
        mel = np.frombuffer(target, "<f2").reshape(-1, _mel.bins()).astype(np.float32)
        return mel[: len(mel) // self.reduction_factor * self.reduction_factor]

    def collate(self, encoded: list[NDArray[np.float32]]) -> dict[str, Tensor]:
        """`mel` (batch, frames, bins), padded with 0, and `real` (batch, frames)."""
        lengths = torch.tensor([len(mel) for mel in encoded])
        mel = torch.zeros(len(encoded), int(lengths.max()), _mel.bins())
        for row, known in zip(mel, encoded, strict=True):
            row[: len(known)] = torch.from_numpy(known)
        return {"mel": mel, "real": torch.arange(mel.shape[1]) < lengths[:, None]}

    def teach(self, inputs: Batch, targets: dict[str, Tensor], random: torch.Generator, training: bool) -> tuple[Batch, dict[str, Tensor]]:
        """The last frame of each step before, the first one silent."""
        return inputs | {f"{self.column}.{_FRAMES}": self._before(targets["mel"])[:, :-1]}, targets

    def _before(self, mel: Tensor) -> Tensor:
        """(batch, frames, bins) → (batch, steps + 1, bins): what each step follows, and a further one."""
        return F.pad(mel[:, self.reduction_factor - 1 :: self.reduction_factor], (0, 0, 1, 0))

    def loss(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """L1 distance of both spectrograms, means over all numbers, and binary cross-entropy of the end.

        Args:
            outputs: (batch, frames, 2 × bins + 1): before and after the postnet, and the end's logit.
            targets: what `teach` gave.
        """
        real = targets["real"]
        before, after, end = _parted(outputs.float()[real])
        mel = targets["mel"][real]
        return F.l1_loss(before, mel) + F.l1_loss(after, mel) + F.binary_cross_entropy_with_logits(end, _last(real)[real], pos_weight=_weight(end))

    def items(self, targets: dict[str, Tensor]) -> Tensor:
        """Frames."""
        return targets["real"].sum()

    def distill(self, outputs: Tensor, teacher: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """L1 distance from the teacher's spectrograms, and Kullback-Leibler divergence of where they end."""
        real = targets["real"]
        (before, after, end), (soft_before, soft_after, soft) = (_parted(x.float()[real]) for x in (outputs, teacher))
        student, own = (F.binary_cross_entropy_with_logits(x, soft.sigmoid()) for x in (end, soft))
        return F.l1_loss(before, soft_before) + F.l1_loss(after, soft_after) + student - own

    def outputs(self, run: Run, inputs: Batch) -> NDArray[np.float32]:
        """One pass, stage by stage."""
        said = whole(run, self._states(run, inputs), {f"{self.column}.{name}": inputs[f"{self.column}.{name}"] for name in (_MASK, _FRAMES)})
        before, end = said[..., :-1], said[..., -1:]
        return torch.cat([before, self._after(run, before), end], 2).numpy()

    def _states(self, run: Run, inputs: Batch) -> Batch:
        states = run({name: tensor for name, tensor in inputs.items() if not name.endswith(f".{_FRAMES}")})
        return {f"{self.column}.{_STATES}": torch.from_numpy(states)}

    def _after(self, run: Run, before: Tensor) -> Tensor:
        return torch.from_numpy(run({f"{self.column}.{_SPECTROGRAM}": before}))

    def compared(self, run: Run, inputs: Batch, targets: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What is said of each row, given the frames before each, and what is right: (frames, bins)."""
        _, after, _ = _parted(torch.from_numpy(self.outputs(run, inputs)))
        for guess, mel, real in zip(after, targets["mel"].cpu(), targets["real"].cpu(), strict=True):
            yield guess[real], mel[real]

    def answer(self, run: Run, inputs: Batch) -> list[NDArray[np.float32]]:
        """A spectrogram (frames, bins) per row, step by step until the model ends it. The rest of the batch changes nothing."""
        states, mask = self._states(run, inputs), inputs[f"{self.column}.{_MASK}"].cpu()
        kept = Kept(run, states) if keeps(run) else None
        waiting = list(range(len(mask)))
        found: list[Any] = [None] * len(waiting)
        mel = torch.zeros(len(waiting), 0, _mel.bins())  # that the rows which wait have said
        most = max(1, int(self.seconds * _mel.frames_per_second() / self.reduction_factor)) * self.reduction_factor
        while waiting:
            frames = self._before(mel)
            told = {f"{self.column}.{_MASK}": mask[waiting], f"{self.column}.{_FRAMES}": frames[:, -1:] if kept else frames}
            said = kept(told) if kept else whole(run, {name: tensor[waiting] for name, tensor in states.items()}, told)
            said = said[:, -self.reduction_factor :]
            mel = torch.cat([mel, said[..., :-1]], 1)
            ended = (said[..., -1].sigmoid().sum(1) >= 0.5) | torch.tensor(mel.shape[1] >= most)
            if ended.any():
                for place, after in zip(ended.nonzero()[:, 0].tolist(), self._after(run, mel[ended]), strict=True):
                    found[waiting[place]] = after.numpy()
                going_on = (~ended).nonzero()[:, 0].tolist()
                waiting, mel = [waiting[place] for place in going_on], mel[going_on]
                if kept:
                    kept.select(going_on)
        return found

    def samples(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sound of a spectrogram (frames, bins)."""
        return _mel.sound(output)


def _parted(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bins = (outputs.shape[-1] - 1) // 2
    return outputs[..., :bins], outputs[..., bins:-1], outputs[..., -1]


def _last(real: Tensor) -> Tensor:
    """1 for each row's last frame: (batch, frames), bool → float."""
    return (real & ~F.pad(real[:, 1:], (0, 1))).float()


def _weight(like: Tensor) -> Tensor:
    return torch.tensor(_STOP, device=like.device)


class Model(ColumnModel):
    """SpeechT5. Its stages are run one by one when it answers: a text is encoded once, spoken step by step, and smoothed once.

    Args:
        model: SpeechT5 with the nets before and after its decoder.
        column: whose tensors it takes.
    """

    def __init__(self, model: Any, column: str) -> None:
        super().__init__(audio.plain(model), column)
        size = model.config.speaker_embedding_dim
        self.voice = nn.Parameter(torch.full((1, 1, size), size**-0.5))
        decoder = model.speecht5.decoder.prenet
        post, attentions = model.speech_decoder_postnet, [m for name, m in model.named_modules() if name.endswith(("attention", "attn"))]
        self.keep = [*attentions, model.speecht5.encoder.prenet, decoder.final_layer, decoder.speaker_embeds_layer, post.feat_out, post.prob_out]

    @classmethod
    def pretrained(cls, given: InputSpec, source: str, task: Any) -> Self:
        """See `text_to_speech.Model`.

        Raises:
            ModelError: no SpeechT5, other spectrograms or steps than the task's, or fewer positions than the job may need.
        """
        with _hub.loading("SpeechT5", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if config.model_type != "speecht5":
                raise ModelError(f"this model does not speak: {config.model_type}", source, "use microsoft/speecht5_tts, or facebook/mms-tts-eng")
            model = _hub.model(SpeechT5ForTextToSpeech, config, source, given.weights)
        if (factor := config.reduction_factor) != task.reduction_factor:
            raise ModelError(f"the model says {factor} frames at a time", source, f"set task.reduction_factor: {factor}")
        if config.num_mel_bins != _mel.bins():
            raise ModelError(f"the model's spectrograms have {config.num_mel_bins} bins, not {_mel.bins()}", source)
        if task.longest > config.max_text_positions:
            raise ModelError(f"the model reads {config.max_text_positions} tokens", source, "lower data.inputs.max_length")
        if (steps := task.seconds * _mel.frames_per_second() / task.reduction_factor) > config.max_speech_positions:
            raise ModelError(f"the model speaks {config.max_speech_positions} steps; the job may need {steps:.0f}", source, "lower task.seconds")
        return cls(model, module_name(given.column))

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(SpeechT5ForTextToSpeech(AutoConfig.for_model(**config["model"])), config["column"])

    def stages(self, batch: Batch) -> list[Batch]:
        """A taught batch as each of the stages takes it."""
        told = {name: batch[name] for name in (f"{self.column}.{_MASK}", f"{self.column}.{_FRAMES}")}
        text = {name: tensor for name, tensor in batch.items() if name != f"{self.column}.{_FRAMES}"}
        states = {f"{self.column}.{_STATES}": self(text)}
        heard = list(self(states))
        said, new = self.remember(told, heard)
        return [text, states, told | begun(heard, new), {f"{self.column}.{_SPECTROGRAM}": said[..., :-1]}]

    def forward(self, batch: Batch) -> Any:
        """A text alone → what the encoder makes of it; that alone → what the decoder hears in it; that and frames → what is said after each of them;
        a spectrogram → after the postnet.

        Args:
            batch: `input_ids` (batch, positions) or `states` (batch, positions, width); `attention_mask` (batch, positions); `frames` (batch, steps,
                bins), the last one of each step before. Or `spectrogram` (batch, frames, bins), before the postnet.

        Returns:
            As `states`; keys and values of each layer, (batch, heads, positions, width); (batch, steps × reduction factor, bins + 1): before the
            postnet, and the end's logit; or as `spectrogram`. Of a text with frames all in one: (batch, steps × reduction factor, 2 × bins + 1):
            before and after the postnet, and the end's logit.
        """
        own = named(batch, self.column)
        if _SPECTROGRAM in own:
            return self._after(own[_SPECTROGRAM])
        if _STATES in own:
            return self._said(own, own[_STATES]) if _FRAMES in own else tuple(attended(self.decoder.layers, own[_STATES]))
        states = self.model.speecht5.encoder(own["input_ids"], attention_mask=own[_MASK]).last_hidden_state
        if _FRAMES not in own:
            return states
        said = self._said(own, states)
        before, end = said[..., :-1], said[..., -1:]
        return torch.cat([before, self._after(before), end], 2)

    def remember(self, batch: Batch, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What is said after frames, before the postnet and with the end's logit, and the keys and values of those frames. Of `states` alone: what is
        heard in them.

        Args:
            batch: `attention_mask` and `frames`, as for `forward`; the frames are those after the ones before. Or `states`.
            past: keys and values of each layer, (batch, heads, positions, width): of all the text, then those of frames before, if there are any.
        """
        if f"{self.column}.{_STATES}" in batch:
            first, *others = self(batch)
            return first, others
        heard = 2 * len(self.decoder.layers)
        said = Past(past[heard:], join=True)
        return self._said(named(batch, self.column), past[0], EncoderDecoderCache(said, Heard(past[:heard]))), said.new

    @property
    def decoder(self) -> Any:
        """Its layers, without the net before them."""
        return self.model.speecht5.decoder.wrapped_decoder

    def _said(self, own: Batch, states: Tensor, cache: Any = None) -> Tensor:
        frames, before = own[_FRAMES], 0 if cache is None else cache.get_seq_length()
        hidden = self._read(frames, before)
        index = torch.arange(before + frames.shape[1], device=frames.device)
        causal = bias((index[before:, None] >= index)[None, None].expand(frames.shape[0], 1, -1, -1), hidden)
        text = bias(own[_MASK][:, None, None].bool().expand(-1, 1, frames.shape[1], -1), hidden)
        hidden = self.decoder(
            **{"hidden_states": hidden, "attention_mask": causal, "encoder_hidden_states": states, "encoder_attention_mask": text},
            **{"past_key_values": cache, "use_cache": cache is not None},
        ).last_hidden_state
        post = self.model.speech_decoder_postnet
        return torch.cat([post.feat_out(hidden).unflatten(-1, (-1, post.config.num_mel_bins)), post.prob_out(hidden).unsqueeze(-1)], -1).flatten(1, 2)

    def _after(self, before: Tensor) -> Tensor:
        after: Tensor = self.model.speech_decoder_postnet.postnet(before)
        return after

    def _read(self, frames: Tensor, before: int) -> Tensor:
        """The net before the decoder: frames (batch, steps, bins), as many steps after the first → (batch, steps, width).

        When answering, nothing of them is dropped by chance.
        """
        net = self.model.speecht5.decoder.prenet
        for layer in net.layers:
            frames = F.dropout(torch.relu(layer(frames)), self.model.config.speech_decoder_prenet_dropout, self.training)
        hidden = net.encode_positions(F.pad(net.final_layer(frames), (0, 0, before, 0)))[:, before:]  # each at its position
        voice = F.normalize(self.voice, dim=2).expand(hidden.shape[0], hidden.shape[1], -1)
        return torch.relu(net.speaker_embeds_layer(torch.cat([hidden, voice], 2)))


def bias(seen: Tensor, like: Tensor) -> Tensor:
    """What is added to attention's logits."""
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)
