"""Text: tokenised with the base model's tokenizer, encoded by any Hugging Face encoder or decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

from lc_ray.errors import DataError
from lc_ray.modalities import _hub, _text
from lc_ray.spec import InputSpec


class Modality:
    """One text column.

    Args:
        spec: the column and its longest sequence in tokens.
        source: folder or hub id that has the tokenizer.

    Raises:
        ModelError: the source has no tokenizer.
    """

    TYPE = pa.string()
    SCHEMA: ClassVar[dict[str, Any]] = {"type": "string", "minLength": 1}
    example = "warm up"

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        self.spec = spec
        with _hub.loading("tokenizer", str(source)):
            self.tokenizer = AutoTokenizer.from_pretrained(str(source))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> str:
        """A cell as text. Bytes are decoded as UTF-8, with `errors` "strict" or "replace".

        Raises:
            DataError: null, empty, not text, not UTF-8, or half of a surrogate pair, which JSON can write and no tokenizer can read.
        """
        if value is None or (isinstance(value, float) and np.isnan(value)):
            raise DataError("null")
        if not isinstance(value, str | bytes):
            raise DataError(f"not text but {type(value).__name__}")
        text = _text.unicode(value, errors)
        if not text.strip():
            raise DataError("empty text")
        return text

    def prepare(self, values: list[str | None]) -> dict[str, list[Any]]:
        """Each text, and its token ids, cut at `max_length`, not padded."""
        ids = self.tokenizer([value or "" for value in values], truncation=True, max_length=self.spec.max_length)["input_ids"]
        return {"text": values, "input_ids": list(ids)}

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
        """`input_ids` and `attention_mask`, both (batch, longest), padded to a multiple of 8."""
        rows = columns["input_ids"]
        longest = -(-max(len(ids) for ids in rows) // 8) * 8
        tokens = np.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(tokens)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
        return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))


class Encoder(nn.Module):
    """A Hugging Face text model without its head.

    Raises:
        ModelError: the source has no such model, or only weights in pickle.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            setattr(model, "pooler", None)  # noqa: B010 positions are pooled by their mask, whatever the encoder; an unused layer would break the gradient's all-reduce
        self.model = model

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str) -> Self:
        """With pretrained weights from a folder or hub id, or random ones of that shape."""
        with _hub.loading("model", source):
            if spec.weights == "random":
                return cls(AutoModel.from_config(AutoConfig.from_pretrained(source)))
            return cls(AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True))

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded, from `config`."""
        kept = {k: v for k, v in config.items() if k != "model_type"}
        return cls(AutoModel.from_config(AutoConfig.for_model(config["model_type"], **kept)))

    @property
    def config(self) -> dict[str, Any]:
        """What `rebuild` needs, as JSON."""
        return cast("dict[str, Any]", cast(PretrainedConfig, self.model.config).to_dict())

    @property
    def width(self) -> int:
        """Length of a hidden vector."""
        return int(cast(Any, self.model.config).hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns hidden (batch, positions, width) and mask (batch, positions)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden, attention_mask
