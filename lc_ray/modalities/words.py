"""Words: a list of them, or a text; encoded as text is, one position per word, that of its first token.

A word of a text is what blanks or punctuation part. In Chinese, Japanese, Thai and others, which have no blanks between words, each letter is one: a
sentence could have but one tag.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import _text, text
from lc_ray.spec import InputSpec

_SPACE = "Ġ"  # as byte-level tokenizers write it


class Modality(text.Modality):
    """One column of words. See `text.Modality`.

    Raises:
        ModelError: the tokenizer is not one of the `tokenizers` package.
    """

    TYPE = pa.list_(pa.string())
    SCHEMA: ClassVar[dict[str, Any]] = {
        "description": "a text, or its words",
        "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}],
    }
    example = "warm up"

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        super().__init__(spec, source)
        if not self.tokenizer.is_fast:
            kind = type(self.tokenizer).__name__
            raise ModelError(f"this tokenizer does not tell of which word a token is: {kind}", str(source), "use a model that has a tokenizer.json")
        bytewise = "".join(self.tokenizer.tokenize(" a")).startswith(_SPACE)
        self._before = " " if bytewise else ""  # of each word, or such a tokenizer reads all of them as one

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> Any:
        """A cell as words, each with what is behind it: together they are the text, see `_text.pieces`. A text may be the JSON of a list.

        Raises:
            DataError: neither a text nor a list of texts, or no word in it.
        """
        value = self.listed(value)
        if isinstance(value, list):
            found = _text.joined([super(Modality, self).decode(word, errors, folder) for word in value])
        else:
            # Of a book that is asked about no more words are told apart than are kept; of one that is learned each has a tag.
            found = _text.pieces(super().decode(value, errors, folder), None if folder is not None else self._most)
        if not found:
            raise DataError("no words")
        return found

    @property
    def _most(self) -> int:
        """Words: those behind have no start, and to read a book's takes seconds."""
        return _text.LONG * self.spec.max_length

    @staticmethod
    def listed(value: Any) -> Any:
        """A cell that is a list of words, or its JSON, as one; else as it is."""
        with contextlib.suppress(DataError):  # a text may well begin with a bracket
            found = _text.listed(value)
            return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else value
        return value

    def prepare(self, values: list[Any]) -> dict[str, list[Any]]:
        """The words, their token ids, and where in them each word starts; words past `max_length` tokens have no start.

        A word of which the tokenizer leaves nothing, such as a zero-width space, has that of the word before it.
        """
        spaced = [self._spaced((value or [])[: self._most]) or [""] for value in values]
        coded = self.tokenizer(spaced, is_split_into_words=True, truncation=True, max_length=self.spec.max_length)
        starts: list[list[int]] = []
        for row in range(len(values)):
            first: dict[int, int] = {}
            for position, owner in enumerate(coded.word_ids(row)):
                if owner is not None:
                    first.setdefault(owner, position)
            starts.append([])
            for word in range(max(first, default=-1) + 1):
                starts[-1].append(first.get(word, starts[-1][-1] if word else 0))
        return {"words": values, "input_ids": list(coded["input_ids"]), "starts": starts}

    def _spaced(self, pieces: list[str]) -> list[str]:
        """Words as the tokenizer is to read them: a bytewise one with the blanks that are between them."""
        blanks = (not before or before[-1].isspace() for before in ["", *pieces])
        return [self._before * blank + self.near(_text.bare(piece)) for piece, blank in zip(pieces, blanks, strict=False)]

    def show(self, parts: dict[str, Any]) -> Any:
        """The text."""
        return None if parts["words"] is None else "".join(parts["words"])

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """As for text, and `starts` (batch, most words), -1 where a row has no such word."""
        rows = columns["starts"]
        starts = np.full((len(rows), max(1, *(len(s) for s in rows))), -1, dtype=np.int64)
        for i, positions in enumerate(rows):
            starts[i, : len(positions)] = positions
        return {**super().collate(columns), "starts": torch.from_numpy(starts)}


class Encoder(text.Encoder):
    """A text encoder, read at the first token of each word."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns hidden (batch, words, width) and mask (batch, words)."""
        hidden, _ = super().forward(input_ids, attention_mask)
        index = starts.clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index), (starts >= 0).to(attention_mask.dtype)
