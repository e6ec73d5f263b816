"""Answers of a causal language model, token by token, whichever engine makes them: own.py or vllm.py."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lc_ray.predictor import Predictor
from lc_ray.serve import record
from lc_ray.serve.batching import QueueFull
from lc_ray.serve.grammar import Grammars, Matcher
from lc_ray.serve.spelling import Spelling
from lc_ray.serving import ServeSpec
from lc_ray.tasks._sampling import Sampling, Token


@dataclass(frozen=True)
class Ask:
    """What a request wants of one prompt.

    Args:
        ids: tokens of the prompt.
        tokens: most tokens of an answer; 0 only reads the prompt.
        sampling: how they are drawn.
        n: how many answers.
        stop: strings that end an answer, and are not in it.
        logprobs: how many of the likeliest tokens are told; None tells no probabilities.
        prompt_logprobs: whether the prompt's tokens are told with theirs, too.
        matcher: of the grammar that answers must fit.
        continues: whether answers go on from the prompt: their text may begin with a space, and the token that ends one is told. Else they are
            texts of their own.
    """

    ids: list[int]
    tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    matcher: Matcher | None = None
    continues: bool = False


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Args:
        number: of the answer, counted over all prompts of the request.
        text: new text.
        tokens: new tokens, of which some text may be held back until the next piece.
        finish: "stop" or "length" in an answer's last piece.
        prompt: tokens of the prompt, in an answer's first piece, if they are asked for.
        drawn: how many tokens were drawn since the piece before, with that which ended the answer, whether or not it is among `tokens`.
    """

    number: int
    text: str
    tokens: tuple[Token, ...]
    finish: str | None = None
    prompt: tuple[Token, ...] = ()
    drawn: int = 0


class Job:
    """A request, its prompts that wait, and where its pieces go.

    Attributes:
        arrived, begun: when it came, and when the first of its prompts was begun, on the monotonic clock; `begun` is 0 before.
        key: name of the API key.
        cached: tokens of its prompts that need not be read, since requests before began with them.
    """

    def __init__(self, asks: Sequence[Ask]) -> None:
        first = accumulate((ask.n for ask in asks), initial=0)
        self.prompts = [Prompt(self, ask, number) for ask, number in zip(asks, first, strict=False)]
        self.cancelled, self.cached, self.key = False, 0, record.current().key
        self.arrived, self.begun = time.monotonic(), 0.0
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def send(self, piece: Piece | Exception) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


@dataclass(eq=False, slots=True)
class Prompt:
    """One of a request's prompts, the number of its first answer, how far the decoder is with it, and its tokens that are to be told."""

    job: Job
    ask: Ask
    first: int
    state: Any = None
    told: list[Token] = field(default_factory=list)


class Answer:
    """One answer, from its tokens as they are drawn.

    Args:
        prompt: that it answers.
        number: of the answer among those to the prompt.
        tokenizer: of the model.
        end: tokens that end an answer.
    """

    def __init__(self, prompt: Prompt, number: int, tokenizer: Any, end: list[int]) -> None:
        self.prompt, self.job, self.ask, self.number, self.end = prompt, prompt.job, prompt.ask, prompt.first + number, end
        self.matcher = prompt.ask.matcher.copy() if prompt.ask.matcher else None
        self.spelling = Spelling(tokenizer, prompt.ask.stop, prompt.ask.ids if prompt.ask.continues else ())
        self.tokens, self._counted = 0, 0
        self._held: list[Token] = []

    def begin(self) -> Piece | None:
        """What is to be sent before the first token, once the prompt is read."""
        finish = None if self.ask.tokens else "length"
        return Piece(self.number, "", (), finish, tuple(self.prompt.told)) if self.prompt.told or finish else None

    def send(self, piece: Piece | None) -> bool:
        """Send what there is to be sent. Whether it was the last."""
        if piece:
            self.job.send(piece)
        return piece is not None and piece.finish is not None

    def add(self, token: Token) -> Piece | None:
        """Take the next token; what is to be sent of it.

        Raises:
            DataError: the grammar can't be kept to.
        """
        self.tokens += 1
        complete = self.matcher.take(token.id) if self.matcher else False
        if token.id not in self.end:
            self.spelling.add(token.id)
        if token.id not in self.end or self.ask.continues:
            self._held.append(token)
        over = token.id in self.end or self.spelling.stopped or complete
        finish = "stop" if over else "length" if self.tokens == self.ask.tokens else None
        text = self.spelling.take(whole=finish is not None)
        finish = "stop" if self.spelling.stopped else finish  # a last half of a character may complete a stop string
        if not text and finish is None:
            return None
        tokens, self._held = tuple(self._held), []
        drawn, self._counted = self.tokens - self._counted, self.tokens
        return Piece(self.number, text, tokens, finish, drawn=drawn)


class Generator(ABC):
    """Answers requests to a language model. Its threads and processes end when it is closed.

    Args:
        predictor: the model.
        spec: limits; `batch.max` answers run at a time.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        task = predictor.task
        self.predictor, self.task, self.spec = predictor, task, spec
        # A copy: rows of other protocols are cut to the length that the task says, which is a setting of its tokenizer, in another thread.
        self.tokenizer, self.end = copy.deepcopy(task.tokenizer), task.end
        self.grammars = Grammars(self.tokenizer, self.end)
        architecture = predictor.artifact.manifest.architecture["config"]["model"]
        self.positions = int(architecture.get("max_position_embeddings") or task.positions)
        self.vocabulary = int(architecture["vocab_size"])

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether answers can be made."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Requests that none of it has begun."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Answers that are being made."""

    @abstractmethod
    def close(self) -> None:
        """End it, whatever runs."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Begin a request, now or once there is room."""

    @abstractmethod
    def drop(self, job: Job) -> None:
        """Nobody waits for a request any more, which may be answered already."""

    async def run(self, asks: Sequence[Ask], deadline: float) -> AsyncGenerator[Piece, None]:
        """Pieces of a request's answers until all are finished. Closing it, or cancelling its task, drops the rest at the next token.

        Args:
            asks: what is wanted of each prompt; one or more.
            deadline: the latest moment of the last piece, on the monotonic clock.

        Raises:
            QueueFull: too many requests wait.
            TimeoutError: the answers took too long.
            DataError: the grammar of one can't be kept to.
        """
        if self.waiting >= self.spec.queue:
            raise QueueFull
        job, seen = Job(asks), record.current()
        self.submit(job)
        left = sum(ask.n for ask in asks)
        seen.tokens_in += sum(len(ask.ids) for ask in asks)
        try:
            while left:
                async with asyncio.timeout(deadline - time.monotonic()):  # wait_for would pass over being cancelled just as a piece comes
                    piece = await job.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                if seen.first_token is None:
                    seen.first_token = time.monotonic() - seen.began
                seen.tokens_out += piece.drawn
                left -= piece.finish is not None
                yield piece
        finally:
            self.drop(job)
            seen.tokens_cached += job.cached
            now = time.monotonic()
            begun = job.begun or now
            seen.spans += [("queue", job.arrived, begun), ("infer", begun, now)]


def suits(predictor: Predictor) -> bool:
    """Whether a model is a causal language model."""
    return bool(predictor.artifact.manifest.task["kind"] == "text_generation")
