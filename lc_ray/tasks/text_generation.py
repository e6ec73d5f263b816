"""Text generation: a causal language model learns to complete prompts, to answer in chats, or to go on with texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from lc_ray.errors import DataError
from lc_ray.modalities import _conversation, chat
from lc_ray.modalities._padding import padded
from lc_ray.section import Section
from lc_ray.tasks import _language, _task
from lc_ray.tasks._causal import Model as Model
from lc_ray.tasks._decoder import Decoder, Whole
from lc_ray.tasks._language import IGNORED
from lc_ray.tasks._sampling import Sampler, Sampling
from lc_ray.tasks._task import Batch, Run


class Task(_language.Task):
    """What is learned: the target, if there is one, after the input as its prompt; else, of conversations, what the assistant says; else
    all tokens. Only that counts in the loss and the metrics; and the token that ends a text is learned with it.

    Args:
        labelled: whether rows have a target.
        packing, max_new_tokens, temperature: see `Options`.
    """

    TYPE = pa.string()
    STEPWISE = True

    class Options(Section):
        """Fields of the task section."""

        packing: bool = Field(False, description="several short rows of a training batch share a sequence, without seeing one another")
        max_new_tokens: int = Field(64, ge=1, le=1024, description="longest answer, in tokens, where a request says no other")
        temperature: float = Field(0.0, ge=0, le=5, description="of the distribution answers are drawn from; 0 takes the likeliest token")

    def __init__(self, labelled: bool, packing: bool = False, max_new_tokens: int = 64, temperature: float = 0.0) -> None:
        self.LABELLED, self.packing, self.max_new_tokens, self.temperature = labelled, packing, max_new_tokens, temperature

    @staticmethod
    def clean(value: Any) -> str:
        """A target cell as the completion, which may be one message of the assistant.

        Raises:
            DataError: missing, not text or not UTF-8.
        """
        found = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict) and found[0].get("role") == "assistant":
            value = None if found[0].get("tool_calls") else found[0].get("content")
        return _language.written(value, "completion")

    @classmethod
    def reader(cls, options: Any, columns: dict[str, Any]) -> Any:
        """The options; texts are cut at their beginning from now on, as `bind` has it.

        Raises:
            SpecError: see `fit`.
        """
        _language.single(columns).keep_end()
        return options

    @staticmethod
    def check(target: str | None, values: dict[str, Any]) -> None:
        """Whether there is something to learn.

        Raises:
            DataError: the assistant says nothing in a conversation without a completion.
        """
        for messages in values.values():
            if target is None and isinstance(messages, list) and not any(map(_conversation.learned, messages)):
                raise DataError("the assistant says nothing in the conversation that is to be learned")

    @classmethod
    def fit(cls, targets: Iterable[str | None], options: Any, columns: dict[str, Any]) -> Self:
        """Of one text column.

        Raises:
            SpecError: other inputs.
        """
        _language.single(columns)
        return cls(next(iter(targets), None) is not None, **options.model_dump())

    def bind(self, columns: dict[str, Any]) -> Self:
        """Have the one column's texts cut at their beginning: a prompt's end is what is answered."""
        _language.single(columns).keep_end()
        return super().bind(columns)

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
        return [] if target is None else self.tokenizer(target, add_special_tokens=False)["input_ids"] + self.end[:1]

    @property
    def end(self) -> list[int]:
        """Tokens that end an answer; the first one ends what is learned, if there is one."""
        return cast("list[int]", self.modality.end)

    def collate(self, encoded: list[list[int]]) -> Tensor:
        """Token ids (batch, longest), padded."""
        return _language.pad(torch.tensor(ids, dtype=torch.int64) for ids in encoded)

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
        prompt, ends = ids[mask > 0], torch.tensor(self.end[:1], dtype=ids.dtype)
        if self.LABELLED:
            completion = target[target != IGNORED]
            prompt = prompt[-(self.max_length - min(len(completion), self.max_length // 2)) :]
            ids = torch.cat([prompt, completion])[: self.max_length]
            return ids, torch.arange(len(ids)) >= len(prompt)
        if isinstance(self.modality, chat.Modality):
            return prompt, mask[mask > 0] == _conversation.SAID
        ids = torch.cat([prompt, ends])[: self.max_length]  # what fills it may go on in the next row
        return ids, torch.ones(len(ids), dtype=torch.bool)

    def _batch(self, tokens: list[Tensor], masks: list[Tensor]) -> Batch:
        """Sequences of one length."""
        rows = torch.full((len(tokens), padded(max(map(len, tokens)))), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(rows)
        for row, (ids, numbers) in enumerate(zip(tokens, masks, strict=True)):
            rows[row, : len(ids)], mask[row, : len(ids)] = ids, numbers
        return {f"{self.column}.input_ids": rows, f"{self.column}.attention_mask": mask}

    def answer(self, run: Run, inputs: Batch) -> list[list[int]]:
        """Tokens that follow each row's prompt. What is drawn depends on the row alone, so it has the same answer in any batch."""
        decoder = self.decoder(run)
        prompts = [decoder.begin(ids) for ids in self.prompts(inputs)]
        first: dict[int, Tensor] = {}
        while unread := [i for i in range(len(prompts)) if i not in first]:
            found = zip(unread, decoder.read([prompts[i] for i in unread]), strict=True)
            first |= {i: logits[-1] for i, logits in found if logits is not None}
        for prompt in prompts:
            decoder.join(prompt)
        samplers = [Sampler(Sampling(self.temperature, seed=0), 0, None) for _ in prompts]
        answers = [[sampler.draw(first[i]).id] for i, sampler in enumerate(samplers)]
        running = list(range(len(answers)))  # as the decoder has them: the last takes the place of one that leaves
        while running:
            for place in reversed(range(len(running))):
                if answers[running[place]][-1] in self.end or len(answers[running[place]]) == self.max_new_tokens:
                    decoder.leave(place)
                    running[place] = running[-1]
                    running.pop()
            if running:
                for i, logits in zip(running, decoder.step([answers[i][-1] for i in running]), strict=True):
                    answers[i].append(samplers[i].draw(logits).id)
        return answers

    def decoder(self, run: Run) -> Decoder:
        """What goes on with sequences: the engine's own, if it keeps keys and values between tokens."""
        own = getattr(run, "decoder", None)
        return cast(Decoder, own()) if own else Whole(lambda sequences, tokens: self._next(run, sequences, tokens))

    def _next(self, run: Run, sequences: list[list[int]], tokens: int) -> Tensor:
        """See `Whole`."""
        whole = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
        asked = torch.stack([torch.arange(len(ids) - tokens, len(ids)) for ids in sequences])
        return torch.from_numpy(run(self._batch(whole, [torch.ones_like(ids) for ids in whole]) | {f"{self.column}.asked": asked}))

    def prompts(self, inputs: Batch) -> list[list[int]]:
        """Tokens of each row that its answer follows."""
        rows = zip(inputs[f"{self.column}.input_ids"], inputs[f"{self.column}.attention_mask"], strict=True)
        return [self._prompt(ids[mask > 0], mask[mask > 0]).tolist() for ids, mask in rows]

    def _prompt(self, ids: Tensor, mask: Tensor) -> Tensor:
        """A row's tokens without the assistant's last turn: a conversation may be given with the answer it had."""
        heard = (mask == 1).nonzero()
        return ids[: int(heard[-1]) + 1] if len(heard) else ids

    def decode(self, output: list[int], parts: dict[str, Any]) -> dict[str, Any]:
        """Token ids → the text."""
        return {"text": self.tokenizer.decode(output, skip_special_tokens=True)}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        return _task.fields(text=_task.TEXT)


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
