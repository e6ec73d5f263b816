"""Speech recognition: recordings and their transcripts, by wav2vec2 and HuBERT (CTC) or Whisper (sequence to sequence).

Which of the two a base model is shows in its features: raw samples, or a log-mel spectrogram.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import jiwer
import torch
from pydantic import Field
from torch import Tensor

from lc_ray.errors import DataError, SpecError
from lc_ray.modalities import _text, speech
from lc_ray.section import Section
from lc_ray.spec import InputSpec, ModelSpec, module_name
from lc_ray.tasks import _ctc, _language, _seq2seq, _task

_ASIDE = re.compile(r"[<\[][^>\]]*[>\]]|\([^)]+\)")  # what is no speech, such as "[laughs]"


class Task(_task.Task):
    """Transcripts. The one input column's modality is `speech`.

    Args:
        max_new_tokens, language: see `Options`.
    """

    objective = "word_accuracy"
    STEPWISE = True
    COLUMNS: ClassVar[dict[str, str]] = {"audio": "speech"}

    class Options(Section):
        """Fields of the task section."""

        max_new_tokens: int = Field(128, ge=1, le=1024, description="longest transcript of a Whisper, in tokens")
        language: str | None = Field(None, description="language of the recordings, for a multilingual Whisper: for example english")

    def __init__(self, max_new_tokens: int = 128, language: str | None = None) -> None:
        self.max_new_tokens, self.language = max_new_tokens, language

    @staticmethod
    def clean(value: Any) -> str:
        """A target cell as the transcript.

        Raises:
            DataError: missing, not text or not UTF-8.
        """
        return _language.written(value, "transcript")

    @classmethod
    def reader(cls, options: Any, columns: dict[str, Any]) -> Self:
        """A task that knows how long a transcript may be.

        Raises:
            SpecError, ModelError: see `fit`.
        """
        return cls._of(options, columns)

    @classmethod
    def read(cls, value: Any, folder: Path | str | None, options: Any) -> str:
        """See `clean`; a transcript that a Whisper could not say to its end is refused, since its recording can't be cut with it.

        Raises:
            DataError: as `clean`; or longer than `max_new_tokens`.
        """
        transcript = cls.clean(value)
        if (most := options.reading.longest) and len(options.reading.encode(transcript)) > most:
            raise DataError(f"the transcript has more than task.max_new_tokens ({most}) tokens")
        return transcript

    @classmethod
    def fit(cls, targets: Iterable[str], options: Any, columns: dict[str, Any]) -> Self:
        """Of one column of recordings.

        Raises:
            SpecError: other inputs.
            DataError: the model's vocabulary has no letter of the transcripts.
        """
        task = cls._of(options, columns)
        if not any(_plain(task.reading.text(task.reading.encode(target))) for target in targets):
            raise DataError("the base model's vocabulary has no letter of any transcript", fix="use a model of the transcripts' language")
        return task

    @classmethod
    def _of(cls, options: Any, columns: dict[str, Any]) -> Self:
        if len(columns) != 1 or not all(isinstance(modality, speech.Modality) for modality in columns.values()):
            raise SpecError("speech recognition takes one column, of modality `speech`", "data.inputs")
        return cls(**options.model_dump()).bind(columns)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {"max_new_tokens": self.max_new_tokens, "language": self.language}

    def bind(self, columns: dict[str, Any]) -> Self:
        """Take the tokenizer of the one column."""
        ((column, modality),) = columns.items()
        kind = _seq2seq.Reading if modality.whole else _ctc.Reading
        self.reading: Any = kind(module_name(column), modality, self.max_new_tokens, self.language)
        return self

    def encode(self, target: str) -> tuple[str, list[int]]:
        """The transcript as it is to be heard, letters that the vocabulary lacks among it, and its token ids."""
        return self._reference(target), self.reading.encode(target)

    def _reference(self, transcript: str) -> str:
        return _plain(self.reading.spoken(transcript))

    def collate(self, encoded: list[tuple[str, list[int]]]) -> Tensor:
        """Token ids (batch, longest), padded."""
        return _language.pad(torch.tensor(ids, dtype=torch.int64) for _, ids in encoded)

    def teach(self, inputs: _task.Batch, targets: Tensor, random: torch.Generator, training: bool) -> tuple[_task.Batch, Tensor]:
        """What the decoder has heard itself say so far, if there is one, and what it is to say next."""
        return self.reading.teach(inputs, targets)  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """CTC (Graves et al. 2006), or cross-entropy of the next token: nats per token, mean over the batch."""
        return self.reading.loss(outputs, targets)  # type: ignore[no-any-return]

    def items(self, targets: Tensor) -> Tensor | None:
        """Tokens, of a decoder."""
        return self.reading.items(targets)  # type: ignore[no-any-return]

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Kullback-Leibler divergence from the teacher's softened tokens, mean over frames or positions."""
        return self.reading.distill(outputs, teacher, targets, temperature)  # type: ignore[no-any-return]

    def outputs(self, run: _task.Run, inputs: _task.Batch) -> Any:
        """One pass of the model over a batch that was taught."""
        return self.reading.outputs(run, inputs)

    def score(self, run: _task.Run, inputs: _task.Batch, targets: Tensor) -> list[tuple[float, list[int]]]:
        """Of each row: its loss in nats per token, and the tokens of its transcript."""
        nats, said = self.reading.score(run, inputs, targets)
        return list(zip(nats, said, strict=True))

    def answer(self, run: _task.Run, inputs: _task.Batch) -> list[tuple[float, list[int]]]:
        """Tokens of each row's transcript, beside a loss that is not known."""
        return [(float("nan"), ids) for ids in self.reading.answer(run, inputs)]

    def metrics(self, scores: list[Any], encoded: list[tuple[str, list[int]]]) -> dict[str, float]:
        """Word and character error rates over all rows, 1 - WER, and the mean loss in nats per token. Case and punctuation do not count.

        Each letter of Chinese, Japanese, Thai and others is a word, as these put no blanks between: a sentence would be right or wrong as a whole.
        What is heard in a recording in which nothing is said are words, and characters, too many.
        """
        references, heard = [reference for reference, _ in encoded], [_plain(self.reading.text(said)) for _, said in scores]
        wer, cer = jiwer.wer([*map(_apart, references)], [*map(_apart, heard)]), jiwer.cer(references, heard)
        return {"word_accuracy": 1 - wer, "wer": wer, "cer": cer, "loss": sum(nats for nats, _ in scores) / len(scores)}

    def decode(self, output: tuple[float, list[int]], parts: _task.Parts) -> dict[str, Any]:
        """Token ids → the transcript."""
        return {"text": self.reading.text(output[1])}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        return _task.fields(text=_task.TEXT)

    def mistake(self, answer: dict[str, Any], target: str) -> float | None:
        """The word error rate, at most 1."""
        return min(1.0, jiwer.wer(_apart(self._reference(target)), _apart(_plain(answer["text"])))) or None


class Model:
    """Of the base model's kind."""

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Task) -> Any:
        """With pretrained weights from a folder or hub id, or random ones of that shape.

        Raises:
            ModelError: the source has no such model, or one that writes shorter transcripts than the job asks for.
        """
        (given,) = inputs
        return task.reading.MODEL.pretrained(given, sources[given.column], task.reading)

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Task) -> Any:
        """With weights yet to be loaded, from `config`."""
        kind = _seq2seq.Model if config["model"]["model_type"] == "whisper" else _ctc.Model
        return kind.rebuild(config)


def _apart(plain: str) -> str:
    """Words with blanks between them."""
    return " ".join(_text.WORD.findall(plain))


def _plain(text: str) -> str:
    """Text in which case and punctuation do not count. As Whisper's, but marks stay: in Hindi, Thai and others they are the vowels."""
    plain = _text.dotted(unicodedata.normalize("NFKC", _ASIDE.sub("", text.lower())).lower())
    return " ".join("".join(" " if unicodedata.category(c).startswith(("P", "S")) else c for c in plain).split())
