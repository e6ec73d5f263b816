"""Text generation: a causal language model learns to complete prompts, to answer in chats, or to go on with texts."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import chat
from lc_ray.spec import InputSpec, ModelSpec, Section
from lc_ray.tasks import _language
from lc_ray.tasks._language import IGNORED
from lc_ray.tasks._task import Batch, Run


class Task(_language.Task):
    """What is learned: the target, if there is one, after the input as its prompt; else, of conversations, what the assistant says; else
    all tokens. Only that counts in the loss and the metrics; and the token that ends a text is learned with it.

    Args:
        labelled: whether rows have a target.
        packing, max_new_tokens, temperature: see `Options`.
    """

    TYPE = pa.string()

    class Options(Section):
        """Fields of the task section."""

        packing: bool = Field(False, description="several short rows of a training batch share a sequence, without seeing one another")
        max_new_tokens: int = Field(64, ge=1, le=1024, description="longest answer, in tokens")
        temperature: float = Field(0.0, ge=0, le=5, description="of the distribution answers are drawn from; 0 takes the likeliest token")

    def __init__(self, labelled: bool, packing: bool = False, max_new_tokens: int = 64, temperature: float = 0.0) -> None:
        self.LABELLED, self.packing, self.max_new_tokens, self.temperature = labelled, packing, max_new_tokens, temperature

    @staticmethod
    def clean(value: Any) -> str:
        """A target cell as the completion.

        Raises:
            DataError: missing, not text or not UTF-8.
        """
        return _language.written(value, "completion")

    @staticmethod
    def check(target: str | None, values: dict[str, Any]) -> None:
        """Whether there is something to learn.

        Raises:
            DataError: the assistant says nothing in a conversation without a completion.
        """
        for messages in values.values():
            if target is None and isinstance(messages, list) and all(message["role"] != "assistant" for message in messages):
                raise DataError("the assistant says nothing in the conversation")

    @classmethod
    def fit(cls, targets: Iterable[str | None], options: Any, columns: dict[str, Any]) -> Self:
        """Of one text column.

        Raises:
            SpecError: other inputs.
        """
        _language.single(columns)
        return cls(next(iter(targets), None) is not None, **options.model_dump())

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        options = {"packing": self.packing, "max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return {"labelled": self.LABELLED, **options}

    @property
    def positions(self) -> int:
        """The longest sequence that the model is ever given, in tokens."""
        return self.max_length + self.max_new_tokens

    def encode(self, target: str | None) -> list[int]:
        """Token ids of the completion and of the text's end."""
        return [] if target is None else self.tokenizer(target, add_special_tokens=False)["input_ids"] + self._end

    @property
    def _end(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def collate(self, encoded: list[list[int]]) -> Tensor:
        """Token ids (batch, longest), padded."""
        return pad_sequence([torch.tensor(ids, dtype=torch.int64) for ids in encoded], batch_first=True, padding_value=IGNORED)

    def teach(self, inputs: Batch, targets: Tensor, random: torch.Generator, training: bool) -> tuple[Batch, Tensor]:
        """Whole sequences, packed if asked for, and the tokens that follow the positions asked.

        In `attention_mask`, rows of a sequence are numbered from 1; 0 is padding.
        """
        rows = [self._row(*row) for row in zip(inputs[f"{self.column}.input_ids"], inputs[f"{self.column}.attention_mask"], targets, strict=True)]
        lengths = [len(ids) for ids, _ in rows]
        sequences = pack(lengths, self.max_length) if training and self.packing else [[i] for i in range(len(rows))]
        places: list[Tensor] = []
        wanted: list[Tensor] = []
        for members in sequences:
            starts = np.cumsum([0, *(lengths[i] for i in members)])
            places.append(torch.cat([start + rows[i][1][1:].nonzero()[:, 0] for start, i in zip(starts[:-1], members, strict=True)]))
            wanted.append(torch.cat([rows[i][0][1:][rows[i][1][1:]] for i in members]))
        tokens = [torch.cat([rows[i][0] for i in members]) for members in sequences]
        numbers = [torch.repeat_interleave(torch.tensor([lengths[i] for i in members])) + 1 for members in sequences]
        asked, wanted_tokens = _language.ask(places, wanted)
        return self._batch(tokens, numbers) | {f"{self.column}.asked": asked}, wanted_tokens

    def _row(self, ids: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A row's tokens, and which of them are learned. Where a prompt leaves no room, it loses its beginning to half of the length."""
        prompt, ends = ids[mask > 0], torch.tensor(self._end, dtype=ids.dtype)
        if self.LABELLED:
            completion = target[target != IGNORED]
            prompt = prompt[-(self.max_length - min(len(completion), self.max_length // 2)) :]
            ids = torch.cat([prompt, completion])[: self.max_length]
            return ids, torch.arange(len(ids)) >= len(prompt)
        if isinstance(self.modality, chat.Modality):
            return prompt, mask[mask > 0] == chat.SAID
        ids = torch.cat([prompt, ends])[: self.max_length]
        return ids, torch.ones(len(ids), dtype=torch.bool)

    def _batch(self, tokens: list[Tensor], masks: list[Tensor]) -> Batch:
        """Sequences padded to a multiple of 8."""
        padded = torch.full((len(tokens), -(-max(map(len, tokens)) // 8) * 8), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(padded)
        for row, (ids, numbers) in enumerate(zip(tokens, masks, strict=True)):
            padded[row, : len(ids)], mask[row, : len(ids)] = ids, numbers
        return {f"{self.column}.input_ids": padded, f"{self.column}.attention_mask": mask}

    def answer(self, run: Run, inputs: Batch) -> list[list[int]]:
        """Tokens that follow each row's prompt. The whole sequence is run for each of them: engines keep no state between calls.

        What is drawn depends on the row alone, so it has the same answer in any batch.
        """
        rows = zip(inputs[f"{self.column}.input_ids"], inputs[f"{self.column}.attention_mask"], strict=True)
        prompts = [self._prompt(ids[mask > 0], mask[mask > 0]) for ids, mask in rows]
        randoms = [torch.Generator().manual_seed(0) for _ in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))
        while waiting:
            tokens = [torch.cat([prompts[i], torch.tensor(answers[i], dtype=torch.int64)]) for i in waiting]
            last = torch.tensor([[len(ids) - 1] for ids in tokens])
            outputs = run(self._batch(tokens, [torch.ones_like(ids) for ids in tokens]) | {f"{self.column}.asked": last})
            for i, logits in zip(waiting, outputs[:, 0], strict=True):
                answers[i].append(self._choose(logits, randoms[i]))
            waiting = [i for i in waiting if answers[i][-1:] != self._end and len(answers[i]) < self.max_new_tokens]
        return answers

    def _prompt(self, ids: Tensor, mask: Tensor) -> Tensor:
        """A row's tokens without the assistant's last turn: a conversation may be given with the answer it had."""
        heard = (mask != chat.SAID).nonzero()
        return ids[: int(heard[-1]) + 1] if len(heard) else ids

    def _choose(self, logits: NDArray[np.float32], random: torch.Generator) -> int:
        if not self.temperature:
            return int(logits.argmax())
        return int(torch.multinomial(torch.from_numpy(logits).div(self.temperature).softmax(-1), 1, generator=random))

    def decode(self, output: list[int], parts: dict[str, Any]) -> dict[str, Any]:
        """Token ids → the text."""
        return {"text": self.tokenizer.decode(output, skip_special_tokens=True)}


def pack(lengths: list[int], room: int) -> list[list[int]]:
    """Rows by sequence: each row, the longest first, goes into the first sequence that has room for it (first-fit decreasing)."""
    sequences: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((s for s, space in enumerate(left) if space >= lengths[i]), len(left))
        if place == len(left):
            sequences.append([])
            left.append(room)
        sequences[place].append(i)
        left[place] -= lengths[i]
    return sequences


class Model(_language.Model):
    """A causal language model. See `_language.Model`."""

    AUTO = AutoModelForCausalLM

    def __init__(self, model: nn.Module, column: str) -> None:
        super().__init__(model, column)
        if "position_ids" not in inspect.signature(model.forward).parameters:
            fix = "use one of the GPT-2, Llama or Qwen families"
            raise ModelError("this model does not take the positions of its tokens", type(model).__name__, fix)

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Any) -> Self:
        """See `_language.Model`."""
        found = super().pretrained(spec, inputs, sources, task)
        window = getattr(found.model.config, "sliding_window", None)
        if window and window < task.positions and getattr(found.model.config, "use_sliding_window", True):
            raise ModelError(f"the model looks back {window} tokens; this job may give it {task.positions}", fix="lower data.inputs.max_length")
        return found

    def arguments(self, tensors: Batch) -> dict[str, Any]:
        """A token sees those before it with the same number in the mask, and its position is how many they are."""
        numbers = tensors["attention_mask"]
        index = torch.arange(numbers.shape[1], device=numbers.device)
        seen = (numbers[:, :, None] == numbers[:, None, :]) & (index[:, None] >= index)  # (rows, positions, positions)
        return {"input_ids": tensors["input_ids"], "attention_mask": seen[:, None], "position_ids": seen.sum(-1) - 1, "use_cache": False}
