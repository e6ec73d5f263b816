"""Speech recognition by connectionist temporal classification (Graves et al. 2006): a letter or blank per frame; wav2vec2, HuBERT and others."""

from __future__ import annotations

import unicodedata
from itertools import groupby
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCTC

from lc_ray.errors import ModelError
from lc_ray.modalities import _clips, _hub, _text, audio
from lc_ray.spec import InputSpec, module_name
from lc_ray.tasks._language import IGNORED
from lc_ray.tasks._task import Batch, ColumnModel, Run, divergence, named

_QUOTE, _JOINING = "\u2019", "-\u2010\u2011\u2013\u2014/"
_SURE = 1e4  # logit of the blank in frames of padding


class Model(ColumnModel):
    """A Hugging Face model with its CTC head.

    Args:
        model: of `AutoModelForCTC`.
        column: whose tensors it takes.
    """

    def __init__(self, model: Any, column: str) -> None:
        super().__init__(model, column)
        audio.plain(model.base_model)
        model.config.apply_spec_augment = False
        self.keep = [model.lm_head, *(m for m in model.modules() if isinstance(m, nn.Conv1d))]

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str, reading: Reading) -> Self:
        """See `speech_recognition.Model`. A base without a head, or with one of other letters, gets a new one."""
        with _hub.loading("CTC model", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            config.vocab_size, config.pad_token_id = len(reading.tokenizer), reading.blank
            model = _hub.model(AutoModelForCTC, config, source, spec.weights, config=config, ignore_mismatched_sizes=True)
        found = cls(model, module_name(spec.column))
        _clips.settle(model.base_model, reading.steps, source)
        return found

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(AutoModelForCTC.from_config(AutoConfig.for_model(**config["model"]), trust_remote_code=False), config["column"])

    def forward(self, batch: Batch) -> Tensor:
        """Clips (batch, steps, ...) and `lengths` (batch,) → logits (batch, frames, vocabulary); frames of padding are blank."""
        own = named(batch, self.column)
        lengths = own["lengths"]
        logits: Tensor = _clips.hear(self.model, own["input_values"] if "input_values" in own else own["input_features"], lengths).logits
        padding = ~_clips.heard(self.model, logits.shape[1], lengths)
        blank = F.one_hot(torch.tensor(self.model.config.pad_token_id, device=logits.device), logits.shape[-1]).to(logits.dtype) * _SURE
        return torch.where(padding.unsqueeze(-1), blank, logits)


class Reading:
    """Transcripts as letters.

    Args:
        column: name of the tensors.
        modality: of modality `speech`.
        longest: of a transcript that is said token by token, which these are not.
        language: for models of several languages, which these are not.

    Raises:
        ModelError: the tokenizer has no token for the blank.
    """

    MODEL: ClassVar[Any] = Model
    longest: ClassVar[int | None] = None

    def __init__(self, column: str, modality: Any, longest: int, language: str | None) -> None:
        self.tokenizer, self.steps = modality.tokenizer, modality.steps
        if self.tokenizer.pad_token_id is None:
            raise ModelError("this tokenizer is not one for CTC: it has no token for the blank", fix="use a wav2vec2, HuBERT or Whisper model")
        self.blank = int(self.tokenizer.pad_token_id)
        letters = [token for token in self.tokenizer.get_vocab() if len(token) == 1 and token.isalpha()]
        self._case = str.upper if letters and not any(letter.islower() for letter in letters) else str
        if letters and not any(letter.isupper() for letter in letters):
            self._case = str.lower
        self._known = {*letters, *(token for token in self.tokenizer.get_vocab() if len(token) == 1)}

    def spoken(self, text: str) -> str:
        """A transcript in the vocabulary's case, without punctuation that it lacks; an apostrophe that is printed as a quote is one, and words that a
        dash or slash joins are two. Letters with marks are one character or several, as the vocabulary has them.
        """
        cased = _text.dotted(self._case(text if _QUOTE in self._known else text.replace(_QUOTE, "'")))
        forms = (cased, unicodedata.normalize("NFC", cased), unicodedata.normalize("NFD", cased))
        cased = min(forms, key=lambda form: sum(c not in self._known for c in form))
        said = (c if c in self._known or not unicodedata.category(c).startswith(("P", "S")) else " " * (c in _JOINING) for c in cased)
        return " ".join("".join(said).split())  # a dash that stood alone leaves one space, not two

    def encode(self, text: str) -> list[int]:
        """Token ids of what is spoken."""
        return list(self.tokenizer(self.spoken(text))["input_ids"])

    def text(self, ids: list[int]) -> str:
        """The text of token ids, of which none is repeated."""
        return str(self.tokenizer.decode(ids, group_tokens=False, skip_special_tokens=True)).strip()

    def teach(self, inputs: Batch, targets: Tensor) -> tuple[Batch, Tensor]:
        """The recordings, and their tokens."""
        return inputs, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Nats per token; transcripts that have more tokens than frames do not count."""
        return self._nats(outputs, targets).mean()

    def items(self, targets: Tensor) -> None:
        """None: see `_task.Task`."""

    def _nats(self, outputs: Tensor, targets: Tensor) -> Tensor:
        lengths = (targets != IGNORED).sum(1)
        frames = self._real(outputs).sum(1)
        scores = F.log_softmax(outputs.float(), dim=-1).transpose(0, 1)  # (frames, batch, vocabulary)
        nats = F.ctc_loss(scores, targets.clamp(min=0), frames, lengths, self.blank, reduction="none", zero_infinity=True)
        return nats / lengths.clamp(min=1)

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Mean over frames."""
        real = self._real(teacher)
        return divergence(outputs[real], teacher[real], temperature)

    def _real(self, outputs: Tensor) -> Tensor:
        """Which frames are not of padding: (batch, frames)."""
        return outputs[..., self.blank] < _SURE / 2

    def outputs(self, run: Run, inputs: Batch) -> Any:
        """One pass."""
        return run(inputs)

    def score(self, run: Run, inputs: Batch, targets: Tensor) -> tuple[list[float], list[list[int]]]:
        """Nats per token, and transcripts."""
        outputs = torch.from_numpy(run(inputs))
        return self._nats(outputs, targets.cpu()).tolist(), self._read(outputs)

    def answer(self, run: Run, inputs: Batch) -> list[list[int]]:
        """The likeliest token of each frame, without repetitions and blanks."""
        return self._read(torch.from_numpy(run(inputs)))

    def _read(self, outputs: Tensor) -> list[list[int]]:
        return [[token for token, _ in groupby(row) if token != self.blank] for row in cast("list[list[int]]", outputs.argmax(-1).tolist())]
