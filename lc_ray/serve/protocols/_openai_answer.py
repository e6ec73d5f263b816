"""Answers in OpenAI's form, from the pieces as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import Any, ClassVar

from lc_ray.serve import record
from lc_ray.serve.generation import Ask, Piece
from lc_ray.serve.protocols import _openai_tools as tools
from lc_ray.serve.spelling import PART, coded
from lc_ray.tasks._sampling import Token


@dataclass
class _Choice:
    """One answer so far. Its text begins with the prompt's, if that is repeated."""

    text: str = ""
    answer: int = 0  # where in it the answer begins
    given: int = 0  # characters that were streamed
    prompt: list[Token] = field(default_factory=list)  # its tokens, if they are told
    tokens: list[Token] = field(default_factory=list)
    drawn: int = 0  # tokens, with that which ended it
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
        logprobs: whether tokens are told with their probabilities.
    """

    PREFIX: ClassVar[str]
    WHOLE: ClassVar[str]
    CHUNK: ClassVar[str]

    def __init__(self, model: str, version: str, tokenizer: Any, logprobs: bool) -> None:
        self.model, self.version, self.tokenizer, self.probable = model, version, tokenizer, logprobs
        self._texts: dict[int, str] = {}

    def begin(self, identity: str, created: int, asks: list[Ask]) -> None:
        """What is asked, by prompt."""
        self.head = {"id": identity, "created": created, "model": self.model, "system_fingerprint": self.version}
        self.prompt_tokens = sum(len(ask.ids) for ask in asks)
        self.choices = [_Choice() for ask in asks for _ in range(ask.n)]
        if self.probable:
            self._other = self.tokenizer("x", add_special_tokens=False)["input_ids"][-1:]
            self._beginning = str(self.tokenizer.decode(self._other))

    def take(self, piece: Piece) -> _Choice:
        """Add a piece to its answer."""
        choice = self.choices[piece.number]
        choice.text += piece.text
        choice.prompt += piece.prompt
        choice.tokens += piece.tokens
        choice.drawn += piece.drawn
        choice.finish = piece.finish
        return choice

    def whole(self) -> dict[str, Any]:
        """All of them."""
        found = [self.choice(number, choice) for number, choice in enumerate(self.told())]
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
        said, cached = sum(choice.drawn for choice in self.choices), record.current().tokens_cached
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": said, "total_tokens": self.prompt_tokens + said}
        return tokens | {"prompt_tokens_details": {"cached_tokens": cached}}

    def logged(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of whole answers what logs have of them."""
        return choices

    def told(self) -> list[_Choice]:
        """Those of the answers that are told."""
        return self.choices

    def choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        """A whole answer."""
        raise NotImplementedError

    def parts(self, piece: Piece, choice: _Choice) -> list[dict[str, Any]]:
        """What is streamed of an answer."""
        raise NotImplementedError

    def written(self, token: int) -> str:
        """A token as text, as it is written after another: the first of a text may lose the space that it begins with."""
        if token not in self._texts:
            self._texts[token] = self._together([token])
        return self._texts[token]

    def _together(self, tokens: list[int]) -> str:
        text = str(self.tokenizer.decode([*self._other, *tokens]))
        own = text.startswith(self._beginning)
        return text[len(self._beginning) :] if own else str(self.tokenizer.decode(tokens))


class Completion(Answers):
    """How prompts go on.

    Args:
        model, version, tokenizer, logprobs: see `Answers`.
        n: how many answers to each prompt are told: the likeliest, if more are drawn.
        echo: text of each prompt, if answers are to begin with it.
    """

    PREFIX, WHOLE, CHUNK = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, version: str, tokenizer: Any, logprobs: bool, n: int = 1, echo: Sequence[str] = ()) -> None:
        super().__init__(model, version, tokenizer, logprobs)
        self.n, self.echo = n, echo

    def begin(self, identity: str, created: int, asks: list[Ask]) -> None:
        """See `Answers`."""
        super().begin(identity, created, asks)
        self.drawn = asks[0].n
        for number, choice in enumerate(self.choices if self.echo else ()):
            choice.text = self.echo[number // self.drawn]
            choice.answer = len(choice.text)

    def told(self) -> list[_Choice]:
        """See `Answers`."""
        if self.drawn == self.n:
            return self.choices
        prompts = [self.choices[first : first + self.drawn] for first in range(0, len(self.choices), self.drawn)]
        return [choice for drawn in prompts for choice in sorted(drawn, key=_likely, reverse=True)[: self.n]]

    def logged(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without the prompts that answers begin with, of which a log may be to have nothing."""
        bare = (replace(choice, text=choice.text[choice.answer :], answer=0, prompt=[]) for choice in self.told())
        return [self.choice(number, choice) for number, choice in enumerate(bare)] if self.echo else choices

    def choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        """See `Answers`."""
        logprobs = self._logprobs(choice.prompt, choice.tokens, choice.answer)
        return {"index": number, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish}

    def parts(self, piece: Piece, choice: _Choice) -> list[dict[str, Any]]:
        """See `Answers`."""
        text, choice.given = choice.text[choice.given :], len(choice.text)
        logprobs = self._logprobs(piece.prompt, piece.tokens, len(choice.text) - len(piece.text))
        return [{"index": piece.number, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}]

    def _logprobs(self, prompt: Sequence[Token], tokens: Sequence[Token], place: int) -> dict[str, Any] | None:
        """Of tokens of the prompt, and of the answer, whose first is at this place of the text."""
        if not self.probable:
            return None
        told = [*prompt, *tokens]
        texts = [self.written(token.id) for token in told]
        lengths: list[int] = []
        for part, run in groupby(zip(told, texts, strict=True), lambda pair: PART in pair[1]):
            of_run = list(run)
            if part:  # of a character, whose length all its tokens have together
                lengths += [0] * (len(of_run) - 1) + [len(self._together([token.id for token, _ in of_run]))]
            else:
                lengths += [len(text) for _, text in of_run]
        first = place - sum(lengths[: len(prompt)])  # before the text, where a tokenizer begins it with a token of its own
        offsets = [max(offset, 0) for offset in accumulate(lengths, initial=first)]
        logprobs = {"token_logprobs": [token.logprob for token in told], "top_logprobs": [self._likeliest(token) for token in told]}
        return {"tokens": texts, **logprobs, "text_offset": offsets[:-1]}

    def _likeliest(self, token: Token) -> dict[str, float] | None:
        """Probabilities by text, the token's own among them; of tokens with the same text that of the likeliest."""
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        for one, logprob in (*token.likeliest, (token.id, token.logprob)):
            found.setdefault(self.written(one), logprob)
        return found


def _likely(choice: _Choice) -> float:
    """Mean logarithm of the probabilities of an answer's tokens."""
    logprobs = [token.logprob or 0.0 for token in choice.tokens]
    return sum(logprobs) / max(len(logprobs), 1)


class Chat(Answers):
    """What the assistant says, or the tools it calls.

    Args:
        model, version, tokenizer, logprobs: see `Answers`.
        offered: parameters of the tools that it may call, by their names.
        forced: whether it must call one.
        most: calls that are told; all, if not given.
        older: whether a call is told as `function_call`, of which there is but one.
    """

    PREFIX, WHOLE, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        version: str,
        tokenizer: Any,
        logprobs: bool,
        offered: dict[str, dict[str, Any]],
        forced: bool,
        most: int | None = None,
        older: bool = False,
    ) -> None:
        super().__init__(model, version, tokenizer, logprobs)
        self.offered, self.forced, self.most, self.older = offered, forced, 1 if older else most, older
        self.reason = "function_call" if older else "tool_calls"  # an answer that calls ends for

    def choice(self, number: int, choice: _Choice) -> dict[str, Any]:
        """See `Answers`."""
        text, called = self._read(choice.text) if self.offered else (choice.text, [])
        message: dict[str, Any] = {"role": "assistant", "content": text.lstrip() or None if called else text, "refusal": None}
        if called:
            message |= {"function_call": called[0]["function"]} if self.older else {"tool_calls": called}
        finish = self.reason if called else choice.finish
        return {"index": number, "message": message, "logprobs": self._logprobs(choice.tokens), "finish_reason": finish}

    def parts(self, piece: Piece, choice: _Choice) -> list[dict[str, Any]]:
        """See `Answers`. What may be a call is held back until the answer is whole."""
        found = [] if choice.begun else [self._part(piece.number, {"role": "assistant", "content": ""})]
        choice.begun = True
        text = choice.text
        called: list[dict[str, Any]] = []
        if self.offered and piece.finish is None:
            text = "" if self.forced else text[: tools.certain(text)]
        elif self.offered:
            rest, called = self._read(text)
            text = text[: choice.given] if called and not rest else rest if called else text
        logprobs = self._logprobs(piece.tokens)
        if len(text) > choice.given or (logprobs and piece.tokens):
            found.append(self._part(piece.number, {"content": text[choice.given :]}, logprobs))
            choice.given = max(choice.given, len(text))
        for index, call in enumerate(called):
            delta = {"function_call": call["function"]} if self.older else {"tool_calls": [{"index": index, **call}]}
            found.append(self._part(piece.number, delta))
        if piece.finish:
            found.append(self._part(piece.number, {}, finish=self.reason if called else piece.finish))
        return found

    def _read(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """What a whole answer says, and the calls of it that are told."""
        rest, called = tools.calls(text, self.offered)
        return rest, called[: self.most]

    @staticmethod
    def _part(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if not self.probable:
            return None
        content = [self._token(t.id, t.logprob) | {"top_logprobs": [self._token(*one) for one in t.likeliest]} for t in tokens]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.written(token)
        return {"token": text, "logprob": logprob, "bytes": coded(self.tokenizer, token, text)}
