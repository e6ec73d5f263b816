"""SpeechT5 (Ao et al. 2022, arXiv:2110.07205) says a text as a log-mel spectrogram, which Griffin-Lim makes sound of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, SpeechT5ForTextToSpeech

from lc_ray.errors import ModelError
from lc_ray.modalities import _hub, audio
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks import _mel
from lc_ray.tasks._task import Batch, Run

_STOP = 5.0  # weight of the frame with which a recording ends, as SpeechT5 has it
_FRAMES, _STATES = "frames", "states"


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
        said = targets["mel"][:, self.reduction_factor - 1 :: self.reduction_factor]
        return inputs | {f"{self.column}.{_FRAMES}": torch.cat([torch.zeros_like(said[:, :1]), said[:, :-1]], 1)}, targets

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

    def distill(self, outputs: Tensor, teacher: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """L1 distance from the teacher's spectrograms, and how much more its end surprises the student than itself."""
        real = targets["real"]
        (before, after, end), (soft_before, soft_after, soft) = (_parted(x.float()[real]) for x in (outputs, teacher))
        student, own = (F.binary_cross_entropy_with_logits(x, soft.sigmoid()) for x in (end, soft))
        return F.l1_loss(before, soft_before) + F.l1_loss(after, soft_after) + student - own

    def outputs(self, run: Run, inputs: Batch) -> NDArray[np.float32]:
        """One pass, stage by stage."""
        return run(self._encoded(run, inputs) | {f"{self.column}.{_FRAMES}": inputs[f"{self.column}.{_FRAMES}"]})

    def _encoded(self, run: Run, inputs: Batch) -> Batch:
        text = {name: tensor for name, tensor in inputs.items() if not name.endswith(f".{_FRAMES}")}
        mask = f"{self.column}.attention_mask"
        return {f"{self.column}.{_STATES}": torch.from_numpy(run(text)), mask: inputs[mask].cpu()}

    def compared(self, run: Run, inputs: Batch, targets: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What is said of each row, given the frames before each, and what is right: (frames, bins)."""
        _, after, _ = _parted(torch.from_numpy(self.outputs(run, inputs)))
        for guess, mel, real in zip(after, targets["mel"].cpu(), targets["real"].cpu(), strict=True):
            yield guess[real], mel[real]

    def answer(self, run: Run, inputs: Batch) -> list[NDArray[np.float32]]:
        """A spectrogram (frames, bins) per row, step by step until the model ends it. The rest of the batch changes nothing."""
        known = self._encoded(run, inputs)
        waiting = list(range(len(inputs[f"{self.column}.attention_mask"])))
        found: list[Any] = [None] * len(waiting)
        frames = torch.zeros(len(waiting), 1, _mel.bins())
        most = max(1, int(self.seconds * _mel.frames_per_second() / self.reduction_factor))
        while waiting:
            outputs = torch.from_numpy(np.array(run({k: v[waiting] for k, v in known.items()} | {f"{self.column}.{_FRAMES}": frames})))
            before, after, end = _parted(outputs)
            ended = (end[:, -self.reduction_factor :].sigmoid().sum(1) >= 0.5) | torch.tensor(frames.shape[1] >= most)
            for place in ended.nonzero()[:, 0].tolist():
                found[waiting[place]] = after[place].numpy()
            waiting = [row for row, over in zip(waiting, ended.tolist(), strict=True) if not over]
            frames = torch.cat([frames, before[:, -1:]], 1)[~ended]
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


class Model(nn.Module):
    """SpeechT5. Its two stages are run one by one when it answers: a text is encoded once, and spoken step by step.

    Args:
        model: SpeechT5 with the nets before and after its decoder.
        column: whose tensors it takes.
    """

    def __init__(self, model: Any, column: str) -> None:
        super().__init__()
        self.model, self.column = model, column
        audio.plain(model)
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
            config = AutoConfig.from_pretrained(source)
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
        kept = {k: v for k, v in config["model"].items() if k != "model_type"}
        return cls(SpeechT5ForTextToSpeech(AutoConfig.for_model("speecht5", **kept)), config["column"])

    @property
    def config(self) -> dict[str, Any]:
        """What `rebuild` needs, as JSON."""
        return {"column": self.column, "model": self.model.config.to_dict()}

    def stages(self, batch: Batch) -> list[Batch]:
        """A taught batch as each of the stages takes it."""
        frames, mask = f"{self.column}.{_FRAMES}", f"{self.column}.attention_mask"
        text = {name: tensor for name, tensor in batch.items() if name != frames}
        return [text, {f"{self.column}.{_STATES}": self(text), mask: batch[mask], frames: batch[frames]}]

    def forward(self, batch: Batch) -> Tensor:
        """A text alone → what the encoder makes of it; with frames, or that and frames → what is said after each of them.

        Args:
            batch: `input_ids` (batch, positions) or `states` (batch, positions, width); `attention_mask` (batch, positions); `frames`
                (batch, steps, bins), the last one of each step before.

        Returns:
            (batch, positions, width), or (batch, steps × reduction factor, 2 × bins + 1): before and after the postnet, and the end's logit.
        """
        own = {name.removeprefix(f"{self.column}."): tensor for name, tensor in batch.items()}
        mask, net = own["attention_mask"], self.model.speecht5
        states: Tensor = own[_STATES] if _STATES in own else net.encoder(own["input_ids"], attention_mask=mask).last_hidden_state
        if _FRAMES not in own:
            return states
        frames = own[_FRAMES]
        hidden = self._heard(frames)
        index = torch.arange(frames.shape[1], device=frames.device)
        causal = bias((index[:, None] >= index)[None, None].expand(frames.shape[0], 1, -1, -1), hidden)
        text = bias(mask[:, None, None].bool().expand(-1, 1, frames.shape[1], -1), hidden)
        hidden = net.decoder.wrapped_decoder(
            hidden_states=hidden, attention_mask=causal, encoder_hidden_states=states, encoder_attention_mask=text, use_cache=False
        ).last_hidden_state
        before, after, end = self.model.speech_decoder_postnet(hidden)
        return torch.cat([before, after, end.unsqueeze(2)], 2)

    def _heard(self, frames: Tensor) -> Tensor:
        """The net before the decoder: frames (batch, steps, bins) → (batch, steps, width). When answering, nothing of them is dropped by chance."""
        net = self.model.speecht5.decoder.prenet
        for layer in net.layers:
            frames = F.dropout(torch.relu(layer(frames)), self.model.config.speech_decoder_prenet_dropout, self.training)
        hidden = net.encode_positions(net.final_layer(frames))
        voice = F.normalize(self.voice, dim=2).expand(hidden.shape[0], hidden.shape[1], -1)
        return torch.relu(net.speaker_embeds_layer(torch.cat([hidden, voice], 2)))


def bias(seen: Tensor, like: Tensor) -> Tensor:
    """What is added to attention's logits."""
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)
