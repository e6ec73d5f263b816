"""Speech recognition by a decoder that says one token after the other: Whisper (Radford et al. 2022, arXiv:2212.04356)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, EncoderDecoderCache, WhisperForConditionalGeneration

from lc_ray.errors import ModelError, SpecError
from lc_ray.modalities import _hub, audio
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks import _language
from lc_ray.tasks._language import IGNORED
from lc_ray.tasks._past import Heard, Kept, Past, attended, begun, beside, keeps, whole
from lc_ray.tasks._task import Batch, ColumnModel, Run, divergence, named

_PREFIX = ("<|startoftranscript|>", "<|notimestamps|>")
_FEATURES, _STATES, _TOKENS, _ASKED = "input_features", "states", "tokens", "asked"
_TARGETS = "targets"
_ROWS = 4  # that an engine decodes together: each has keys and values of all of its recording, as large as a good part of the weights


class Model(ColumnModel):
    """Whisper. Its stages are run one by one when it answers: a recording is encoded once, and decoded token by token.

    Args:
        model: Whisper with its head.
        column: whose tensors it takes.
    """

    def __init__(self, model: Any, column: str) -> None:
        super().__init__(audio.plain(model), column)
        self.keep = [model.proj_out, *(m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Embedding))]

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str, reading: Reading) -> Self:
        """See `speech_recognition.Model`. The encoder's positions are cut to `spec.seconds`."""
        with _hub.loading("Whisper", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if config.model_type != "whisper":
                raise ModelError(f"this model does not write transcripts: {config.model_type}", source, "use Whisper, or a wav2vec2 or HuBERT model")
            model = _hub.model(WhisperForConditionalGeneration, config, source, spec.weights)
        if (most := config.max_target_positions - len(reading.prefix)) < reading.longest:
            raise ModelError(f"the model writes {most} tokens; this job may ask for {reading.longest}", source, f"set task.max_new_tokens: {most}")
        audio.shorter(model.model.encoder, spec.seconds, source)
        return cls(model, module_name(spec.column))

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(WhisperForConditionalGeneration(AutoConfig.for_model(**config["model"])), config["column"])

    def stages(self, batch: Batch) -> Iterator[Batch]:
        """A taught batch as each of the stages takes it."""
        features = {name: batch[name] for name in (f"{self.column}.{_FEATURES}",)}
        yield features
        states = {f"{self.column}.{_STATES}": self(features)}
        yield states
        told, heard = {name: tensor for name, tensor in batch.items() if name not in features}, list(self(states))
        _, new = self.remember(told, heard)
        yield told | begun(heard, new)

    def forward(self, batch: Batch) -> Any:
        """Features alone → what the encoder makes of them; that alone → what the decoder hears in it; with tokens → logits of those that follow.

        Args:
            batch: `input_features` (batch, bins, frames) or `states` (batch, positions, width); `tokens` (batch, said) so far, and `asked`
                (batch, asked), the positions after which the next is asked for.

        Returns:
            (batch, positions, width); keys and values of each layer, (batch, heads, positions, width); or (batch, asked, vocabulary).
        """
        own = named(batch, self.column)
        states = own[_STATES] if _STATES in own else self.model.model.encoder(own[_FEATURES]).last_hidden_state
        if _TOKENS in own:
            return self._logits(own, states)
        return tuple(attended(self.model.model.decoder.layers, states)) if _STATES in own else states

    def remember(self, batch: Batch, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits of the tokens that follow, and the keys and values of those that were said. Of `states` alone: what is heard in them.

        Args:
            batch: `tokens` and `asked`, as for `forward`; the tokens are those after the ones before. Or `states`.
            past: keys and values of each layer, (batch, heads, positions, width): all that is heard, then those of tokens before, if there are any.

        Returns:
            The logits, and those keys and values; or the first of what is heard, and the others.
        """
        if f"{self.column}.{_STATES}" in batch:
            first, *others = self(batch)
            return first, others
        heard = 2 * len(self.model.model.decoder.layers)
        said = Past(past[heard:])
        with beside(self.model):
            return self._logits(named(batch, self.column), past[0], EncoderDecoderCache(said, Heard(past[:heard]))), said.new

    def _logits(self, own: Batch, states: Tensor, cache: Any = None) -> Tensor:
        tokens, asked = own[_TOKENS], own[_ASKED]
        before = 0 if cache is None else cache.get_seq_length()
        index = torch.arange(before + tokens.shape[1], device=tokens.device)
        new = index[before:]
        seen = (new[:, None] >= index)[None, None].expand(tokens.shape[0], 1, -1, -1)  # given whole, for tracing
        hidden: Tensor = self.model.model.decoder(
            **{"input_ids": tokens, "attention_mask": seen, "position_ids": new[None].expand(tokens.shape[0], -1)},
            **{"encoder_hidden_states": states, "past_key_values": cache, "use_cache": cache is not None},
        ).last_hidden_state
        found: Tensor = self.model.proj_out(hidden.gather(1, asked.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))
        return found


class Reading:
    """Transcripts as tokens.

    Args:
        column: name of the tensors.
        modality: of modality `speech`.
        longest: of a transcript, in tokens, its end among them.
        language: of a multilingual model.

    Raises:
        SpecError: the model does not know the language.
    """

    MODEL: ClassVar[Any] = Model

    def __init__(self, column: str, modality: Any, longest: int, language: str | None) -> None:
        self.column, self.longest, self.tokenizer = column, longest, modality.tokenizer
        if language:
            try:
                self.tokenizer.set_prefix_tokens(language=language, task="transcribe")
            except (ValueError, AttributeError) as error:
                raise SpecError(f"task.language: {error}", "task 'speech_recognition'") from None
        known = self.tokenizer.get_vocab()
        plain = [known[token] for token in _PREFIX if token in known]  # of a tokenizer that is Whisper's in content but not in class
        self.prefix, self.end = list(getattr(self.tokenizer, "prefix_tokens", plain)), int(self.tokenizer.eos_token_id)
        self.never_first = modality.never_first
        self.suppressed = sorted({*modality.suppressed, *self.tokenizer.all_special_ids} - {self.end})

    def spoken(self, text: str) -> str:
        """A transcript as it is."""
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of the text and of its end."""
        return [*self.tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"], self.end]

    def text(self, ids: list[int]) -> str:
        """The text of token ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def teach(self, inputs: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """What was said so far, and the tokens that follow."""
        prefix = torch.tensor(self.prefix).expand(len(targets), -1)
        before = torch.cat([prefix, targets[:, :-1]], 1)
        asked = torch.arange(len(self.prefix) - 1, before.shape[1]).expand(len(targets), -1)
        return inputs | self._told(before.where(before != IGNORED, torch.tensor(self.end)), asked), targets

    def _told(self, tokens: Tensor, asked: Tensor) -> Batch:
        return {f"{self.column}.{_TOKENS}": tokens.contiguous(), f"{self.column}.{_ASKED}": asked.contiguous()}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Nats per token."""
        return _language.cross_entropy(outputs, targets)

    def items(self, targets: Tensor) -> Tensor:
        """Tokens."""
        return (targets != IGNORED).sum()

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Mean over tokens."""
        real = targets != IGNORED
        return divergence(outputs[real], teacher[real], temperature)

    def outputs(self, run: Run, inputs: Batch) -> NDArray[np.float32]:
        """One pass, stage by stage."""
        return self._outputs(run, self._states(run, inputs), inputs).numpy()  # type: ignore[no-any-return]

    def _outputs(self, run: Run, states: Batch, inputs: Batch) -> Tensor:
        return whole(run, states, {name: tensor for name, tensor in inputs.items() if not name.endswith(f".{_FEATURES}")})

    def _states(self, run: Run, inputs: Batch) -> Batch:
        states = run({name: tensor for name, tensor in inputs.items() if name.endswith(f".{_FEATURES}")})
        return {f"{self.column}.{_STATES}": torch.from_numpy(states)}

    def score(self, run: Run, inputs: Batch, targets: Tensor) -> tuple[list[float], list[list[int]]]:
        """Nats per token, and transcripts. As many passes are made for any rows by what is not an engine."""
        nats: list[float] = []
        said: list[list[int]] = []
        for piece in _pieces(run, inputs | {_TARGETS: targets.cpu()}):
            wanted, states = piece.pop(_TARGETS), self._states(run, piece)
            outputs = self._outputs(run, states, piece)
            lost = F.cross_entropy(outputs.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED).sum(1)
            nats += (lost / (wanted != IGNORED).sum(1).clamp(min=1)).tolist()
            said += self._say(run, states, all_steps=True)
        return nats, said

    def answer(self, run: Run, inputs: Batch) -> list[list[int]]:
        """The likeliest token after those so far, again and again until the end."""
        return [ids for piece in _pieces(run, inputs) for ids in self._say(run, self._states(run, piece))]

    def _say(self, run: Run, states: Batch, all_steps: bool = False) -> list[list[int]]:
        """Transcripts. With all steps, what is not an engine makes as many as for the longest transcript, the last ones for nothing."""
        ((name, known),) = states.items()
        kept = Kept(run, states) if keeps(run) else None
        said: list[list[int]] = [[] for _ in known]
        waiting = list(range(len(said)))
        for step in range(self.longest):
            if not waiting and (kept or not all_steps):
                break
            rows = waiting or [0]
            tokens = torch.tensor([self.prefix + (said[i] if waiting else []) for i in rows])  # all have said as much
            if kept and step:
                tokens = tokens[:, -1:]
            told = self._told(tokens, torch.full((len(rows), 1), tokens.shape[1] - 1))
            logits = (kept(told) if kept else torch.from_numpy(run({name: known[rows]} | told)))[:, 0]
            logits[:, self.suppressed + (self.never_first if step == 0 else [])] = -torch.inf
            for i, token in zip(waiting, logits.argmax(-1).tolist(), strict=False):
                said[i].append(token)
            going_on = [place for place, i in enumerate(waiting) if said[i][-1] != self.end]
            if kept and len(going_on) < len(waiting):
                kept.select(going_on)
            waiting = [waiting[place] for place in going_on]
        return said


def _pieces(run: Run, rows: Batch) -> Iterator[Batch]:
    """A batch as an engine takes it, some rows at a time; else whole."""
    count = len(next(iter(rows.values())))
    size = _ROWS if keeps(run) else count
    for start in range(0, count, size):
        yield {name: tensor[start : start + size] for name, tensor in rows.items()}
