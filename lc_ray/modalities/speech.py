"""Speech: audio that is to be transcribed, with the tokenizer of what is said."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from lc_ray.modalities import _hub, audio
from lc_ray.spec import InputSpec


class Modality(audio.Modality):
    """One column of recordings. See `audio.Modality`; but longer ones are refused, since their transcripts can't be cut.

    Attributes:
        tokenizer: of transcripts.

    Raises:
        ModelError: the source has no feature extractor, or no tokenizer.
    """

    CUT = False

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        super().__init__(spec, source)
        self.tokenizer = _hub.tokenizer(str(source))
        try:
            self.generation = GenerationConfig.from_pretrained(str(source))
        except OSError:
            self.generation = GenerationConfig()

    @property
    def suppressed(self) -> list[int]:
        """Tokens that are never part of a transcript."""
        return self._known(self.generation.suppress_tokens)

    @property
    def never_first(self) -> list[int]:
        """Tokens with which no transcript begins."""
        return self._known(self.generation.begin_suppress_tokens)

    def _known(self, tokens: list[int] | None) -> list[int]:
        return [token for token in tokens or [] if token < len(self.tokenizer)]

    def save(self, folder: Path) -> None:
        """Write the files of the feature extractor, the tokenizer and of what is suppressed."""
        super().save(folder)
        self.tokenizer.save_pretrained(str(folder))
        self.generation.save_pretrained(str(folder))


class Encoder(audio.Encoder):
    """See `audio.Encoder`."""
