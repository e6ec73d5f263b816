"""Text: tokenised with the base model's tokenizer, encoded by any Hugging Face encoder or decoder."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import _hub, _text
from lc_ray.modalities._padding import padded
from lc_ray.spec import InputSpec

_NEAR = 1e-3  # of the standard deviation of hidden states
_TOGETHER = 2**20  # characters
_NOWHERE = "\uffff"  # in no vocabulary: no character


class Modality:
    """One text column.

    Args:
        spec: the column and its longest sequence in tokens.
        source: folder or hub id that has the tokenizer.

    Attributes:
        cut: whether longer texts are cut, or refused.

    Raises:
        ModelError: the source has no tokenizer.
    """

    cut = True
    TYPE = pa.string()
    SCHEMA: ClassVar[dict[str, Any]] = {"type": "string", "minLength": 1}
    example = "warm up"

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        self.spec = spec
        self.tokenizer = _hub.tokenizer(str(source))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> str:
        """A cell as text; a file's may be a number. Bytes are decoded as UTF-8, with `errors` as `data.encoding_errors`. Of several columns, named
        with a bar between, the texts follow one another, with what the tokenizer separates texts by, or on a line each.

        Raises:
            DataError: null, empty, not text, not UTF-8, or half of a surrogate pair, which JSON can write and no tokenizer can read; too long or
                without a letter that the tokenizer knows, if not cut.
        """
        if isinstance(value, dict) and _text.BAR in self.spec.column and (value := _text.together(value)):
            between = f" {self.tokenizer.sep_token} " if self.tokenizer.sep_token else "\n"
            value = between.join(Modality.decode(self, part, errors, folder) for part in value.values() if not _text.absent(part))
        if _text.missing(value):
            raise DataError("null")
        if folder is not None:  # a request's fits its schema
            value = _text.written(value)
        if not isinstance(value, str | bytes):
            raise DataError(f"not text but {type(value).__name__}")
        text = _text.unicode(value, errors)
        if not text.strip():
            raise DataError("empty text")
        if not self.cut and (wrong := self._wrong(text)):
            raise DataError(wrong)
        return text

    @property
    def end(self) -> list[int]:
        """Tokens that end a text: the tokenizer's, if it has one."""
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def keep_whole(self) -> None:
        """From now on refuse texts that are longer, as what belongs to them can't be cut with them, and those that have no letter for the model."""
        self.cut, letters = False, (token for token in self.tokenizer.get_vocab() if len(token) == 1 and token.isalpha())
        self.example = next((text for text in (self.example, "a", *letters) if not self._wrong(text)), self.example)

    def keep_end(self) -> None:
        """From now on cut longer texts at their beginning: what follows them is what is asked for."""
        self.tokenizer.truncation_side = "left"

    def near(self, text: str) -> str:
        """A text without what will be cut of it anyway, if it is very long."""
        last = self.tokenizer.truncation_side == "left"
        return _text.enough(text, self.spec.max_length, lambda part: self._uncut(part, verbose=False)["input_ids"], last)

    def _wrong(self, text: str) -> str | None:
        ids = self._uncut(self.near(text))["input_ids"]
        if len(ids) > self.spec.max_length:
            return f"longer than {self.spec.max_length} tokens"
        return "the base model's vocabulary has no letter of the text" if self._nothing.issuperset(ids) else None

    @functools.cached_property
    def _nothing(self) -> frozenset[int]:
        """Tokens of a text that has no letter for the model."""
        return frozenset(self._uncut(_NOWHERE)["input_ids"])

    @functools.cached_property
    def _uncut(self) -> Any:
        """A tokenizer that never cuts. Another one: whether one cuts is a setting of its own, which threads would change for each other."""
        return copy.deepcopy(self.tokenizer)

    @functools.cached_property
    def _from_start(self) -> Any:
        """A tokenizer that keeps the beginning, whichever end `keep_end` has the other keep."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.truncation_side = "right"
        return tokenizer

    def prepare(self, values: list[str | None]) -> dict[str, list[Any]]:
        """Each text, and its token ids, cut at `max_length`, not padded."""
        ids = self.tokenizer([self.near(value or "") for value in values], truncation=True, max_length=self.spec.max_length)["input_ids"]
        return {"text": values, "input_ids": list(ids)}

    def windows(self, texts: list[str]) -> tuple[list[int], dict[str, list[Any]]]:
        """As `prepare`, but of a longer text as many rows as it fills, each of the tokens that follow the last one's.

        Returns:
            The number of the text that each row is of, and the rows.
        """
        whole = {"truncation": True, "max_length": self.spec.max_length, "return_overflowing_tokens": True, "return_offsets_mapping": True}
        numbers, parts, ids = list[int](), list[str](), list[list[int]]()
        for some in _few(texts):
            found = self._from_start([texts[number] for number in some], **whole)
            for place, offsets, tokens in zip(found["overflow_to_sample_mapping"], found["offset_mapping"], found["input_ids"], strict=True):
                text, spans = texts[some[place]], [span for span in offsets if span[1]]  # special tokens have (0, 0)
                numbers.append(some[place])
                parts.append(text[spans[0][0] : spans[-1][1]] if spans else text)
                ids.append(tokens)
        return numbers, {"text": parts, "input_ids": ids}

    def show(self, parts: dict[str, Any]) -> Any:
        """The text."""
        return parts["text"]

    def measure(self, parts: dict[str, Any]) -> dict[str, float | str]:
        """Its length."""
        return {"tokens": float(len(parts["input_ids"]))}

    def augment(self, tensors: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Texts are left as they are."""
        return tensors

    def sizes(self, columns: dict[str, list[Any]]) -> list[int]:
        """Tokens per row."""
        return [len(ids) for ids in columns["input_ids"]]

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, both (batch, longest), padded to a multiple of 8, and at least 8."""
        rows = columns["input_ids"]
        longest = padded(max(1, *(len(ids) for ids in rows)))
        tokens = np.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(tokens)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
        return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))


def _few(texts: list[str]) -> Iterator[list[int]]:
    """Numbers of texts that are tokenised together: where each of their tokens is takes a hundred times its size."""
    ends = np.cumsum([len(text) for text in texts]) // _TOGETHER
    return (np.flatnonzero(ends == end).tolist() for end in np.unique(ends))


def need_positions(model: Any, tokens: int, source: str) -> None:
    """Raise ModelError where a model has no positions for so many tokens."""
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None]
    before = max((table.padding_idx + 1 for table in tables), default=0)  # RoBERTa counts from behind the padding's number
    known = getattr(model.config, "max_position_embeddings", None) or 0
    if 0 < known < tokens + before:  # XLNet says -1 of no limit
        raise ModelError(f"the model reads {known - before} tokens; this job may give it {tokens}", source, "lower data.inputs.max_length")


def know_tokens(model: Any, source: str) -> None:
    """Give a model embeddings of the tokens that only its tokenizer knows, such as a padding token that was added to it alone."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:  # CANINE reads characters
        return
    if isinstance(table, nn.Embedding) and (tokens := 1 + max(_hub.tokenizer(source).get_vocab().values())) > table.num_embeddings:
        model.resize_token_embeddings(tokens, mean_resizing=False)


class Encoder(nn.Module):
    """A Hugging Face text model without its head; of an encoder with a decoder, such as T5, the encoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if hasattr(model, "encoder") and hasattr(model, "decoder"):
            model = cast(nn.Module, model.encoder)
        self.model = _hub.headless(model, "pooler")  # positions are pooled by their mask, whatever the encoder
        # No decoder goes on from here: keys and values that it kept would cost memory, and neither pruning nor int8 can follow them.
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str) -> Self:
        """With pretrained weights from a folder or hub id, or random ones of that shape.

        Raises:
            ModelError: the source has no such model, only weights in pickle, or fewer positions than a batch may have; or it is no text model.
        """
        with _hub.loading("model", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if getattr(config, "attention_type", None) == "block_sparse":
                config.attention_type = "original_full"  # as BigBird would read all texts from the first short one on
            model = _hub.model(AutoModel, config, source, spec.weights, config=config)
        if not hasattr(model.config, "hidden_size"):
            raise ModelError(f"this model does not encode texts alone: {model.config.model_type}", source, "use a text model such as BERT")
        need_positions(model, padded(spec.max_length), source)
        know_tokens(model, source)
        encoder = cls(model).eval()
        # Longformer fills each batch up to whole windows by its length, which int8 would keep from the first one.
        if hasattr(encoder.model.config, "attention_window") or not encoder._ignores_padding(spec.max_length):
            cast(Any, encoder.model.config).padded_to = padded(spec.max_length)
            if not encoder._ignores_padding(spec.max_length):
                fix = "set data.inputs.max_length to the length that it was made for, or use another model"
                raise ModelError(f"this model does not read texts that are padded to {padded(spec.max_length)} tokens", source, fix)
        return encoder.train()

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(AutoModel.from_config(AutoConfig.for_model(**config), trust_remote_code=False))

    @property
    def config(self) -> dict[str, Any]:
        """What `rebuild` needs, as JSON."""
        return cast("dict[str, Any]", cast(PretrainedConfig, self.model.config).to_dict())

    @property
    def width(self) -> int:
        """Length of a hidden vector; OPT's may be projected to that of its embeddings."""
        config = cast(Any, self.model.config)
        return int(getattr(config, "word_embed_proj_dim", config.hidden_size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns hidden (batch, positions, width) and mask (batch, positions).

        Where padding changes what a model makes of a text, as it mixes or convolves all positions, all batches are padded alike.
        """
        ids, mask, length = input_ids, attention_mask, input_ids.shape[1]
        config = cast(Any, self.model.config)
        if to := getattr(config, "padded_to", 0):
            more = torch.zeros(ids.shape[0], to, dtype=ids.dtype, device=ids.device)
            mask = torch.cat([mask, more.to(mask.dtype)], 1)[:, :to]
            ids = torch.cat([ids, more], 1)[:, :to].masked_fill(mask == 0, getattr(config, "pad_token_id", None) or 0)
        hidden = self.model(input_ids=ids, attention_mask=mask, **self.options).last_hidden_state
        return hidden[:, :length], attention_mask

    def _ignores_padding(self, most: int) -> bool:
        """Whether a text of few tokens is the same in batches of 8 and of 16, if there are such."""
        found = []
        try:
            for length in {8, min(16, padded(most))}:
                mask = (torch.arange(length) < 5)[None].long()
                with torch.no_grad():
                    found.append(Encoder.forward(self, (torch.arange(length)[None] + 2) * mask, mask)[0][:, :5])
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        return bool((found[0] - found[-1]).abs().max() <= _NEAR * found[0].std())
