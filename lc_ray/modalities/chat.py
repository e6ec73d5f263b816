"""Chat: a conversation, written out by the tokenizer's chat template; what the assistant says is marked."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jinja2 import TemplateError
from torch import Tensor

from lc_ray.errors import DataError, ModelError
from lc_ray.modalities import _text, text
from lc_ray.spec import InputSpec

_ROLES = ("system", "user", "assistant")
_ALIKE = {  # roles of ShareGPT and of Gemini, and OpenAI's newer one
    **{"human": "user", "developer": "system"},
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
_UNSAID = {"role": "system", "content": ""}
_MESSAGES = 256
_WORD = "Ycleped"  # that no template writes by itself
SAID = 2  # in the mask, where the assistant speaks


class Modality(text.Modality):
    """One column of conversations. See `text.Modality`.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
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
                    "properties": {"role": {"enum": list(_ROLES)}, "content": {"type": "string", "minLength": 1}},
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
        """Tokens that end an answer: the tokenizer's, if it has one, and that with which the template ends a turn."""
        with contextlib.suppress(TemplateError):
            whole = self._written([*self.example, {"role": "assistant", "content": _WORD}])
            after, known = self.tokenizer(whole.rpartition(_WORD)[2], add_special_tokens=False)["input_ids"], self.tokenizer.added_tokens_decoder
            return list(dict.fromkeys([*super().end, *[token for token in after if token in known and known[token].special][:1]]))
        return super().end

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> Any:
        """A cell as messages {"role", "content"}, or ShareGPT's {"from", "value"}: a list, the text that JSON or Python writes of it, or any
        other text, which is what the user says. Content may be OpenAI's parts, if all are text.

        Raises:
            DataError: something else, an unknown role, a message without text, or a conversation that the template refuses.
        """
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list):
            value = _listed(super().decode(value, errors))
        said = [(number, message) for number, message in enumerate(map(_plain, value)) if message is not _UNSAID]
        if not said or len(value) > _MESSAGES:
            raise DataError(f"a conversation has 1 to {_MESSAGES} messages, not {len(value) if said else 0}")
        messages = [self._message(number, message, errors) for number, message in said]
        if messages[0]["role"] == "assistant":
            raise DataError("the conversation begins with the assistant")
        try:
            self._written(messages)
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses the conversation: {error}") from None
        return messages

    def _message(self, number: int, message: Any, errors: str) -> dict[str, str]:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise DataError(f'message {number} is not {{"role": one of {", ".join(_ROLES)}, "content": ...}}')
        try:
            return {"role": message["role"], "content": super().decode(message.get("content"), errors)}
        except DataError as error:
            raise DataError(f"message {number}: {error.what}") from None

    def _written(self, messages: list[dict[str, str]]) -> str:
        """The conversation as the model reads it, up to where the assistant is to speak if it has not yet."""
        asked = messages[-1]["role"] != "assistant"
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked))

    def prepare(self, values: list[Any]) -> dict[str, list[Any]]:
        """The messages, their token ids, and `mask`, `SAID` for the assistant's, 1 for others. Long conversations lose their beginning."""
        coded = [self._coded(messages) if messages else ([], []) for messages in values]
        longest = self.spec.max_length
        return {"messages": values, "input_ids": [ids[-longest:] for ids, _ in coded], "mask": [mask[-longest:] for _, mask in coded]}

    def _coded(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids and mask. Each turn of the assistant is tokenised by itself, as what it says after a prompt will be."""
        whole, done, pieces = self._written(messages), 0, []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self._written(messages[:i]), self._written(messages[: i + 1])
                if whole.startswith(before) and whole.startswith(after):  # some templates shorten the turns before the last
                    pieces += [(whole[done : len(before)], 1), (whole[len(before) : len(after)], SAID)]
                    done = len(after)
        pieces += [(whole[done:], 1)] if whole[done:] else []
        coded = self.tokenizer([self.near(piece) for piece, _ in pieces], add_special_tokens=False)["input_ids"]
        mask = [kind for ids, (_, kind) in zip(coded, pieces, strict=True) for _ in ids]
        return [token for ids in coded for token in ids], mask

    def show(self, parts: dict[str, Any]) -> Any:
        """The messages."""
        return parts["messages"]

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """As for text; in `attention_mask`, `SAID` where the assistant speaks."""
        tensors = super().collate(columns)
        for row, mask in enumerate(columns["mask"]):
            tensors["attention_mask"][row, : len(mask)] = torch.tensor(mask)
        return tensors


def _plain(message: Any) -> Any:
    """A message with a role of ours, and its parts of text as one; a system that says nothing as `_UNSAID`."""
    if not isinstance(message, dict):
        return message
    shared = message.get("role") is None
    role, content = (message.get("from"), message.get("value")) if shared else (message["role"], message.get("content"))
    content = content.tolist() if isinstance(content, np.ndarray) else content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    role = _ALIKE.get(role, role) if isinstance(role, str) else role
    silent = content is None or (isinstance(content, str) and not content)
    return _UNSAID if silent and role == "system" else {"role": role, "content": content}


def _listed(text: str) -> list[Any]:
    """Messages that JSON or Python writes, or the one of what the user says, which may well begin with a bracket."""
    with contextlib.suppress(DataError):
        found = _text.listed(text)
        if isinstance(found, list) and all(isinstance(message, dict) for message in found):
            return found
    return [{"role": "user", "content": text}]


class Encoder(text.Encoder):
    """A text encoder that reads the whole conversation."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns hidden (batch, positions, width) and mask (batch, positions)."""
        return super().forward(input_ids, attention_mask.clamp(max=1))
