"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805): an encoder goes on learning from unlabelled texts."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from lc_ray.errors import ModelError, SpecError
from lc_ray.tasks import _language, _task
from lc_ray.tasks._task import Batch, Run

_CHOSEN, _MASKED, _REPLACED = 0.15, 0.8, 0.1  # of the tokens; of those, by the mask token and by any other; the rest stay as they are
_CANDIDATES = 5


class Task(_language.Task):
    """The tokens that were hidden."""

    @staticmethod
    def clean(value: Any) -> Any:
        """There is no target.

        Raises:
            SpecError: always.
        """
        raise SpecError("data.target: masked language modelling learns from the texts alone", fix="leave it out")

    @classmethod
    def fit(cls, targets: Iterable[Any], options: Any, columns: dict[str, Any]) -> Self:
        """Of one text column.

        Raises:
            SpecError: other inputs.
            ModelError: the tokenizer has no mask token.
        """
        if _language.single(columns).tokenizer.mask_token_id is None:
            raise ModelError("the tokenizer has no mask token", fix="use an encoder such as BERT; a causal model learns by the task text_generation")
        return cls()

    def teach(self, inputs: Batch, targets: Any, random: torch.Generator, training: bool) -> tuple[Batch, Tensor]:
        """Hide tokens of each row, at least one; the same ones whenever a row is evaluated."""
        ids, mask = inputs[f"{self.column}.input_ids"].clone(), inputs[f"{self.column}.attention_mask"]
        usable = mask.bool() & ~torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        asked, wanted = [], []
        for row, there in zip(ids, usable, strict=True):
            source = random if training else torch.Generator().manual_seed(zlib.crc32(row[there].numpy().tobytes()))
            places = there.nonzero()[:, 0]
            chosen = places[torch.randperm(len(places), generator=source)[: max(1, round(_CHOSEN * len(places)))]].sort().values
            asked.append(chosen)
            wanted.append(row[chosen])
            draw = torch.rand(len(chosen), generator=source)
            other = torch.randint(len(self.tokenizer), (len(chosen),), generator=source)
            hidden = torch.where(draw < _MASKED, self.tokenizer.mask_token_id, torch.where(draw < _MASKED + _REPLACED, other, row[chosen]))
            row[chosen] = hidden
        places, tokens = _language.ask(asked, wanted)
        return inputs | {f"{self.column}.input_ids": ids, f"{self.column}.asked": places}, tokens

    def answer(self, run: Run, inputs: Batch) -> list[tuple[list[list[int]], list[list[float]]]]:
        """For each mask token of a row, the likeliest tokens and their probabilities."""
        found = [row.nonzero()[:, 0] for row in inputs[f"{self.column}.input_ids"] == self.tokenizer.mask_token_id]
        asked, _ = _language.ask(found, found)
        best = torch.from_numpy(run(inputs | {f"{self.column}.asked": asked})).softmax(-1).topk(_CANDIDATES, -1)
        rows = zip(best.indices, best.values, found, strict=True)
        return [(tokens[: len(places)].tolist(), sure[: len(places)].tolist()) for tokens, sure, places in rows]

    def decode(self, output: tuple[list[list[int]], list[list[float]]], parts: dict[str, Any]) -> dict[str, Any]:
        """The text with each mask token filled by the likeliest candidate, and the candidates for each."""
        (column,) = parts.values()
        masks = [
            {"candidates": [{"token": self.tokenizer.decode([token]).strip(), "probability": sure} for token, sure in zip(*one, strict=True)]}
            for one in zip(*output, strict=True)
        ]
        best = iter([mask["candidates"][0]["token"] for mask in masks])
        text = re.sub(re.escape(self.tokenizer.mask_token), lambda mask: next(best, mask[0]), column["text"] or "")
        return {"text": text, "masks": masks}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        candidates = {"type": "array", "items": _task.fields(token=_task.TEXT, probability=_task.PROBABILITY)}
        return _task.fields(text=_task.TEXT, masks={"type": "array", "items": _task.fields(candidates=candidates)})


class Model(_language.Model):
    """An encoder with its masked language modelling head; one that comes without gets a new one. See `_language.Model`."""

    AUTO = AutoModelForMaskedLM

    def arguments(self, tensors: Batch) -> dict[str, Any]:
        """Tokens and mask."""
        return {"input_ids": tensors["input_ids"], "attention_mask": tensors["attention_mask"]}
