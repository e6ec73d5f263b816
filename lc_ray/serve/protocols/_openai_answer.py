"""Answers in OpenAI's form, from the pieces as they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lc_ray.serve import record
from lc_ray.serve.generation import Ask, Piece
from lc_ray.serve.protocols import _openai_tools as tools
from lc_ray.serve.spelling import PART
from lc_ray.tasks._sampling import Token


@dataclass
class _Choice:
    """One answer so far."""

    text: str = ""
    given: int = 0  # characters that were streamed
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    begun: bool = False


class Answers:
    """The answers to one request.

    Attributes:
        PREFIX: of the request's id.
        WHOLE, CHUNK: what answers and their chunks are called.

    Args:
        model: its name.
        version: of the model.
        tokenizer: of the model.
    """

    PREFIX: ClassVar[str]
    WHOLE: ClassVar[str]
    CHUNK: ClassVar[str]

    def __init__(self, model: str, version: str, tokenizer: Any) -> None:
        self.model, self.version, self.tokenizer = model, version, tokenizer

    def begin(self, identity: str, created: int, asks: list[Ask]) -> None:
        """What is asked, by prompt."""
        self.head = {"id": identity, "created": created, "model": self.model, "system_fingerprint": self.version}
        self.prompt_tokens, self.probable = sum(len(ask.ids) for ask in asks), asks[0].logprobs is not None
        self.choices = [_Choice() for ask in asks for _ in range(ask.n)]
        if self.probable:
            self._other = self.tokenizer("x", add_special_tokens=False)["input_ids"][-1:]
            self._beginning = str(self.tokenizer.decode(self._other))

    def take(self, piece: Piece) -> _Choice:
        """Add a piece to its answer."""
        choice = self.choices[piece.number]
        choice.text += piece.text
        choice.tokens += piece.tokens
        choice.finish = piece.finish
        return choice

    def whole(self) -> dict[str, Any]:
        """All of them."""
        found = [self.choice(number, choice) for number, choice in enumerate(self.choices)]
        return {**self.head, "object": self.WHOLE, "choices": found, "usage": self.usage()}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """What is streamed once a piece is there."""
        choice = self.take(piece)
        return [{**self.head, "object": self.CHUNK, "choices": [one]} for one in self.parts(piece, choice)]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream, if it is asked for."""
        return {**self.head, "object": self.CHUNK, "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens of prompts and answers."""
        said, cached = sum(len(choice.tokens) for choice in self.choices), record.current().tokens_cached
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": said, "total_tokens": self.prompt_tokens + said}
        return tokens | {"prompt_tokens_details": {"cached_tokens": cached}}

    def choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        """A whole answer."""
        raise NotImplementedError

    def parts(self, piece: Piece, choice: _Choice) -> list[dict[str, Any]]:
        """What is streamed of an answer."""
        raise NotImplementedError

    def written(self, token: int) -> str:
        """A token as text, as it is written after another: the first of a text may lose the space that it begins with."""
        text = str(self.tokenizer.decode([*self._other, token]))
        return text[len(self._beginning) :] if text.startswith(self._beginning) else str(self.tokenizer.decode([token]))


class Completion(Answers):
    """How prompts go on."""

    PREFIX, WHOLE, CHUNK = "cmpl", "text_completion", "text_completion"

    def choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        """See `Answers`."""
        return {"index": number, "text": choice.text, "logprobs": self._logprobs(choice.tokens, 0), "finish_reason": choice.finish}

    def parts(self, piece: Piece, choice: _Choice) -> list[dict[str, Any]]:
        """See `Answers`."""
        logprobs = self._logprobs(piece.tokens, len(choice.text) - len(piece.text))
        return [{"index": piece.number, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}]

    def _logprobs(self, tokens: Any, offset: int) -> dict[str, Any] | None:
        if not self.probable:
            return None
        texts = [self.written(token.id) for token in tokens]
        offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
        likeliest = [{self.written(other): logprob for other, logprob in token.likeliest} for token in tokens]
        return {"tokens": texts, "token_logprobs": [token.logprob for token in tokens], "top_logprobs": likeliest, "text_offset": offsets}


class Chat(Answers):
    """What the assistant says, or the tools it calls.

    Args:
        model, version, tokenizer: see `Answers`.
        names: of tools that it may call.
        forced: whether it must call one.
        most: calls that are told; all, if not given.
    """

    PREFIX, WHOLE, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, version: str, tokenizer: Any, names: list[str], forced: bool, most: int | None = None) -> None:
        super().__init__(model, version, tokenizer)
        self.names, self.forced, self.most = names, forced, most

    def choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        """See `Answers`."""
        text, called = self._read(choice.text) if self.names else (choice.text, [])
        message = {"role": "assistant", "content": text.lstrip() or None if called else text} | ({"tool_calls": called} if called else {})
        finish = "tool_calls" if called else choice.finish
        return {"index": number, "message": message, "logprobs": self._logprobs(choice.tokens), "finish_reason": finish}

    def parts(self, piece: Piece, choice: _Choice) -> list[dict[str, Any]]:
        """See `Answers`. What may be a call is held back until the answer is whole."""
        found = [] if choice.begun else [self._part(piece.number, {"role": "assistant", "content": ""})]
        choice.begun = True
        text = choice.text
        called: list[dict[str, Any]] = []
        if self.names and piece.finish is None:
            text = "" if self.forced else text[: tools.certain(text)]
        elif self.names:
            rest, called = self._read(text)
            text = text[: choice.given] if called and not rest else rest if called else text
        logprobs = self._logprobs(piece.tokens)
        if len(text) > choice.given or (logprobs and piece.tokens):
            found.append(self._part(piece.number, {"content": text[choice.given :]}, logprobs))
            choice.given = max(choice.given, len(text))
        for index, call in enumerate(called):
            found.append(self._part(piece.number, {"tool_calls": [{"index": index, **call}]}))
        if piece.finish:
            found.append(self._part(piece.number, {}, finish="tool_calls" if called else piece.finish))
        return found

    def _read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """What a whole answer says, and the calls of it that are told."""
        rest, called = tools.calls(text, self.names)
        return rest, called[: self.most]

    @staticmethod
    def _part(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self.probable:
            return None
        return {"content": [self._token(t.id, t.logprob) | {"top_logprobs": [self._token(*one) for one in t.likeliest]} for t in tokens]}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.written(token)
        return {"token": text, "logprob": logprob, "bytes": None if PART in text else list(text.encode())}
