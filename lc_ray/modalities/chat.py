"""Chat: a conversation, written out by the tokenizer's chat template; what the assistant says is marked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import _conversation, _template, _text, text
from lc_ray.modalities._conversation import KNOWN, SAID
from lc_ray.spec import InputSpec

_MESSAGES = 256
_WORD = "Ycleped"  # that no template writes by itself
_ENOUGH, _LONGEST = 8, 64  # characters; of a token


class Modality(text.Modality):
    """One column of conversations. See `text.Modality`.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    TYPE = _conversation.TYPE
    SCHEMA: ClassVar[dict[str, Any]] = {
        "description": "messages, or what the user says",
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "array",
                "minItems": 1,
                "maxItems": _MESSAGES,
                "items": {
                    "type": "object",
                    "properties": {"role": {"enum": list(_conversation.ROLES)}, "content": {"type": "string", "minLength": 1}},
                    "required": ["role", "content"],
                },
            },
        ],
    }
    example: Any = [{"role": "user", "content": "warm up"}]  # noqa: RUF012

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        super().__init__(spec, source)
        if not self.tokenizer.chat_template:
            fix = "use a model that was made to chat, or give a prompt and its completion: modality text, and data.target"
            raise ModelError("the tokenizer has no chat template", str(source), fix)
        self.keep_end()

    @functools.cached_property
    def end(self) -> list[int]:  # type: ignore[override]
        """Tokens that end an answer: that with which the template ends a turn, and the tokenizer's, if there are such."""
        with contextlib.suppress(*_template.REFUSED):
            whole = self._written([*self.example, {"role": "assistant", "content": _WORD}])
            after, known = self.tokenizer(whole.rpartition(_WORD)[2], add_special_tokens=False)["input_ids"], self.tokenizer.added_tokens_decoder
            return list(dict.fromkeys([*[token for token in after if token in known and known[token].special][:1], *super().end]))
        return super().end

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> Any:
        """A cell, or those of columns that are one, as clean messages: see `_conversation`.

        Raises:
            DataError: no conversation, or one that the template refuses or leaves a part out of.
        """
        cells = value if isinstance(value, dict) and _text.BAR in self.spec.column else {"": value}
        messages = _conversation.clean(cells, functools.partial(super().decode, errors=errors))
        if not 0 < len(messages) <= _MESSAGES:
            raise DataError(f"a conversation has 1 to {_MESSAGES} messages, not {len(messages)}")
        if all(message["role"] == "assistant" for message in messages):
            raise DataError("nobody but the assistant speaks in the conversation")
        there = {"calls": "tool_calls", "answers of tools": "tool", "tools": "tools"}
        if lost := next((what for what, name in there.items() if what in self._lost and any(name in (m["role"], *m) for m in messages)), None):
            raise DataError(f"the model's chat template leaves out the {lost} of the conversation; use a model that was made to call tools")
        try:
            self._written(*_conversation.unpacked(messages)[:2])
        except _template.REFUSED as error:
            opening = next((message for message in messages if message["role"] != "system"), messages[0])
            if opening["role"] == "assistant":  # which many templates refuse
                return self.decode([message for message in messages if message is not opening])
            what = "conversation with tools" if any("tools" in m or "tool_calls" in m for m in messages) else "conversation"
            raise DataError(f"the model's chat template refuses the {what}: {error}") from None
        return messages

    @functools.cached_property
    def _lost(self) -> list[str]:
        """Which parts of conversations with tools the template leaves out, without a word."""
        asked, called, told = "Yclept", "yclepid12", "ycleping"  # Mistral's template wants 9 characters
        call = {"role": "assistant", "content": "", "tool_calls": [_template.call(asked, {}, called)]}
        answer = {"role": "tool", "name": asked, "tool_call_id": called, "content": told}
        found = []
        with contextlib.suppress(*_template.REFUSED):
            whole = self._written([*self.example, call, answer, {"role": "assistant", "content": _WORD}])
            found = [what for what, part in (("calls", asked), ("answers of tools", told)) if part not in whole]
            found += ["tools"] if asked not in self._written(self.example, [_template.tool(asked)]) else []
        return found

    def _written(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The conversation as the model reads it, up to where the assistant is to speak if it has not yet."""
        return _template.write(self.tokenizer, messages, tools, asked=messages[-1]["role"] != "assistant")

    def prepare(self, values: list[Any]) -> dict[str, list[Any]]:
        """The messages as JSON, their token ids, and `mask`: `SAID` for the assistant's that are to be learned, `KNOWN` for its others, 1 for all
        else. Long conversations lose their beginning.
        """
        # Arrow gives all messages the keys that any has.
        values = [messages and [{name: v for name, v in message.items() if v is not None} for message in messages] for messages in values]
        coded = [self._coded(messages) if messages else ([], []) for messages in values]
        longest = self.spec.max_length
        messages = [json.dumps(messages) for messages in values]
        return {"messages": messages, "input_ids": [ids[-longest:] for ids, _ in coded], "mask": [mask[-longest:] for _, mask in coded]}

    def _coded(self, clean: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
        """Token ids and mask. Each turn of the assistant is tokenised by itself, as what it says after a prompt will be."""
        messages, tools, learned = _conversation.unpacked(clean)
        whole, done, pieces = self._written(messages, tools), 0, []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = self._turn(whole, messages[: i + 1], tools)
                if done <= start < end:
                    pieces += [(whole[done:start], 1), (whole[start:end], SAID if learned[i] else KNOWN)]
                    done = end
        pieces += [(whole[done:], 1)] if whole[done:] else []
        coded = self.tokenizer([self.near(piece) for piece, _ in pieces], add_special_tokens=False)["input_ids"]
        if pieces and learned[-1] and pieces[-1][1] == SAID and not {*coded[-1]} & {*self.end}:  # the template ends turns with no token
            coded[-1] += self.end[:1]
        mask = [mark for ids, (_, kind) in zip(coded, pieces, strict=True) for mark in self._marked(ids, kind)]
        return [token for ids in coded for token in ids], mask

    def _marked(self, ids: list[int], kind: int) -> list[int]:
        """The mask of a piece. What follows the tokens that end a turn, such as a line break, is the template's: no answer has it."""
        said = len(ids)
        if kind == SAID and not {*self.end}.isdisjoint(ids):
            said = max(place for place, token in enumerate(ids, 1) if token in self.end or token in self._special)
        return [kind] * said + [KNOWN] * (len(ids) - said)

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(token for token, known in self.tokenizer.added_tokens_decoder.items() if known.special)

    def _turn(self, whole: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> tuple[int, int]:
        """Where in the whole conversation what the last of these messages says begins and ends; nowhere if the template shortens it there.

        Templates of models that think write thoughts, though there are none, in some turns, and begin one where the assistant is to speak.
        """
        heard, last = messages[:-1], messages[-1]
        try:
            after = self._written(messages, tools)
            before = self._written(heard, tools) if heard else ""
            start = self._alike(before, whole)
            if start < len(before) and start < self._alike(before, _template.write(self.tokenizer, heard, tools, asked=False)):
                return 0, 0
        except _template.REFUSED:  # the assistant could not be asked so
            return 0, 0
        said = after[start:]
        said = said[max(0, said.find(whole[start : start + _ENOUGH])) :]
        said = said[: self._alike(said, whole[start : start + len(said)])]
        known = [name for name in ("content", *_conversation.THOUGHTS) if name in last and name in str(self.tokenizer.chat_template)]
        told = [*(last[name].strip() for name in known), *(call["function"]["name"] for call in last.get("tool_calls", ()))]
        return (start, start + len(said)) if after.startswith(before[:start]) and all(part in said for part in told) else (0, 0)

    def _alike(self, one: str, other: str) -> int:
        """With how many characters both texts begin, up to the first of the template's tokens that is not in both."""
        if other.startswith(one):
            return len(one)
        most = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
        cut = [m.start() for text in (one, other) for m in self._marks.finditer(text, max(0, most - _LONGEST)) if m.start() < most < m.end()]
        return min([most, *cut])

    @functools.cached_property
    def _marks(self) -> re.Pattern[str]:
        """Tokens that are written out, which no text has by itself."""
        known = sorted((str(token) for token in self.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def show(self, parts: dict[str, Any]) -> Any:
        """The messages."""
        return json.loads(parts["messages"])

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """As for text; `attention_mask` is the mask of `prepare`."""
        tensors = super().collate(columns)
        for row, mask in enumerate(columns["mask"]):
            tensors["attention_mask"][row, : len(mask)] = torch.tensor(mask)
        return tensors


class Encoder(text.Encoder):
    """A text encoder that reads the whole conversation."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns hidden (batch, positions, width) and mask (batch, positions)."""
        return super().forward(input_ids, attention_mask.clamp(max=1))
