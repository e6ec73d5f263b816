"""Text to speech: SpeechT5, which says a text as a spectrogram, or VITS, which says it as sound. See `_speecht5` and `_vits`.

One voice is learned: that of the recordings. Which of the two it is shows in the base model's configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from lc_ray.errors import DataError
from lc_ray.modalities import _media, audio
from lc_ray.section import Section
from lc_ray.spec import InputSpec, ModelSpec, module_name
from lc_ray.tasks import _language, _speecht5, _task, _vits
from lc_ray.tasks._task import Batch, Run
from lc_ray.units import Seconds

_SILENT = 0.04  # seconds; less is no speech


class Task(_task.Task):
    """Recordings of texts. The one input column is the text; the target is the recording.

    Args:
        seconds, reduction_factor: see `Options`.
        sound: of a base model that says sound, see `_vits.sound`; None for SpeechT5.
    """

    TYPE = pa.binary()
    objective = "r2"
    STEPWISE = True
    DECODES_SCORES = False

    class Options(Section):
        """Fields of the task section."""

        seconds: Seconds = Field(15.0, gt=0, le=60, description="longest recording, and longest answer")
        reduction_factor: int = Field(2, ge=1, le=8, description="frames that SpeechT5 says at a time; that of the base model")

    def __init__(self, seconds: float = 15.0, reduction_factor: int = 2, sound: dict[str, Any] | None = None) -> None:
        self.seconds, self.reduction_factor, self.sound = seconds, reduction_factor, sound
        self.saying: Any = _vits.Saying(seconds, **sound) if sound else _speecht5.Saying(seconds, reduction_factor)

    @classmethod
    def reader(cls, options: Any, columns: dict[str, Any]) -> Self:
        """A task that knows what the base model is to be taught with.

        Raises:
            SpecError, ModelError: see `fit` and `bind`.
        """
        return cls.fit((), options, columns).bind(columns)

    @classmethod
    def read(cls, value: Any, folder: Path | str | None, options: Any) -> bytes:
        """A recording's bytes, path or URI as the base model is taught with it: a spectrogram for SpeechT5, samples for VITS.

        Raises:
            DataError: see `audio.samples_of`; or longer than `seconds`, or too short to be speech.
        """
        rate = options.saying.rate
        samples = audio.samples_of(_media.fetch(value, folder), rate, options.seconds + 1)
        if len(samples) > options.seconds * rate:
            raise DataError(f"the recording is longer than {options.seconds:g} s", fix="raise task.seconds, or cut it")
        if len(samples) < _SILENT * rate:
            raise DataError("the recording is too short to be speech")
        return options.saying.kept(samples)  # type: ignore[no-any-return]

    @classmethod
    def fit(cls, targets: Iterable[bytes], options: Any, columns: dict[str, Any]) -> Self:
        """Of one text column, whose base model says what it needs to know.

        Raises:
            SpecError: other inputs.
        """
        return cls(**options.model_dump(), sound=_vits.sound(_language.single(columns).tokenizer.name_or_path))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {"seconds": self.seconds, "reduction_factor": self.reduction_factor} | ({"sound": self.sound} if self.sound else {})

    def bind(self, columns: dict[str, Any]) -> Self:
        """Take the name and the longest text of the one column, which is to refuse longer ones: their recordings are not cut.

        Raises:
            ModelError: its tokenizer needs a package that is not installed.
        """
        ((column, modality),) = columns.items()
        self.longest = int(modality.spec.max_length)
        self.saying.bind(module_name(column), modality.tokenizer)
        modality.keep_whole()
        return self

    def encode(self, target: bytes) -> NDArray[Any]:
        """See `_speecht5` and `_vits`, as for all that follow."""
        return self.saying.encode(target)  # type: ignore[no-any-return]

    def collate(self, encoded: list[NDArray[Any]]) -> dict[str, Tensor]:
        """What the model is judged by."""
        return self.saying.collate(encoded)  # type: ignore[no-any-return]

    def teach(self, inputs: Batch, targets: dict[str, Tensor], random: Any, training: bool) -> tuple[Batch, dict[str, Tensor]]:
        """What the model needs of a recording to go along with it."""
        return self.saying.teach(inputs, targets, random, training)  # type: ignore[no-any-return]

    def loss(self, outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Distance of the spectrograms, and what more the kind of model needs."""
        return self.saying.loss(outputs, targets)  # type: ignore[no-any-return]

    def items(self, targets: dict[str, Tensor]) -> Tensor | None:
        """Frames, of SpeechT5."""
        return self.saying.items(targets)  # type: ignore[no-any-return]

    def distill(self, outputs: Tensor, teacher: Tensor, targets: dict[str, Tensor], temperature: float) -> Tensor:
        """Distance from the teacher's spectrograms, and from what more it says."""
        return self.saying.distill(outputs, teacher, targets)  # type: ignore[no-any-return]

    def outputs(self, run: Run, inputs: Batch) -> NDArray[np.float32]:
        """One pass, stage by stage."""
        return self.saying.outputs(run, inputs)  # type: ignore[no-any-return]

    def score(self, run: Run, inputs: Batch, targets: dict[str, Tensor]) -> list[tuple[float, ...]]:
        """Of each row's log-mel spectrogram: the sums of errors, of their squares, of the numbers, of their squares, and how many there are."""
        rows = []
        for guess, mel in self.saying.compared(run, inputs, targets):  # both (frames, bins), in powers of ten
            error, truth = (guess - mel).double(), mel.double()
            rows.append((*(float(x.sum()) for x in (error.abs(), error**2, truth, truth**2)), float(truth.numel())))
        return rows

    def metrics(self, scores: list[Any], encoded: list[Any]) -> dict[str, float]:
        """R² of the log-mel spectrogram, and its mean absolute error in powers of ten.

        The model follows the recording: SpeechT5 is given the frames before each, VITS how long each token is.
        """
        errors, squares, total, total_squares, count = (sum(column) for column in zip(*scores, strict=True))
        return {"r2": 1 - squares / max(total_squares - total**2 / count, 1e-12), "mel_l1": errors / count}

    def answer(self, run: Run, inputs: Batch) -> list[NDArray[np.float32]]:
        """What the model says to each row. The rest of the batch changes nothing."""
        return self.saying.answer(run, inputs)  # type: ignore[no-any-return]

    def decode(self, output: NDArray[np.float32], parts: _task.Parts) -> dict[str, Any]:
        """What was said as a data URI of WAV."""
        samples = self.saying.samples(np.asarray(output))
        loud = max(1.0, float(np.abs(samples).max(initial=0)))
        return {"audio": audio.wav(audio.pcm(samples / loud), self.saying.rate)}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        return _task.fields(audio={"type": "string", "contentMediaType": "audio/wav", "description": "a data URI"})


class Model:
    """Of the base model's kind."""

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Task) -> Any:
        """With pretrained weights from a folder or hub id, or random ones of that shape.

        Raises:
            ModelError: there is none, it does not speak, or it does not fit the job.
        """
        (given,) = inputs
        return (_vits.Model if task.sound else _speecht5.Model).pretrained(given, sources[given.column], task)

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Task) -> Any:
        """With weights yet to be loaded, from `config`."""
        return (_vits.Model if task.sound else _speecht5.Model).rebuild(config, task)
