"""Answers of a causal language model, token by token: rows join and leave the running batch between any two tokens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch import Tensor

from lc_ray.predictor import Predictor
from lc_ray.serve import record
from lc_ray.serve.batching import QueueFull
from lc_ray.serve.grammar import Grammars, Matcher
from lc_ray.serve.spelling import Spelling
from lc_ray.spec import ServeSpec
from lc_ray.tasks import text_generation
from lc_ray.tasks._decoder import Decoder
from lc_ray.tasks._sampling import Sampler, Sampling, Token


@dataclass(frozen=True)
class Ask:
    """What a request wants of one prompt.

    Args:
        ids: tokens of the prompt.
        tokens: most tokens of an answer.
        sampling: how they are drawn.
        n: how many answers.
        stop: strings that end an answer, and are not in it.
        logprobs: how many of the likeliest tokens are told; None tells no probabilities.
        matcher: of the grammar that answers must fit.
    """

    ids: list[int]
    tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    matcher: Matcher | None = None


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Args:
        number: of the answer, counted over all prompts of the request.
        text: new text.
        tokens: new tokens, of which some text may be held back until the next piece.
        finish: "stop" or "length" in an answer's last piece.
    """

    number: int
    text: str
    tokens: tuple[Token, ...]
    finish: str | None = None


class _Job:
    """A request, its prompts that wait, and where its pieces go."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        first = accumulate((ask.n for ask in asks), initial=0)
        self.prompts = deque(_Prompt(self, ask, number) for ask, number in zip(asks, first, strict=False))
        self.cancelled = False
        self.arrived, self.begun = time.monotonic(), 0.0
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def send(self, piece: Piece | Exception) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


@dataclass(eq=False, slots=True)
class _Prompt:
    """One of a request's prompts, the number of its first answer, and how far the decoder is with it."""

    job: _Job
    ask: Ask
    first: int
    state: Any = None


@dataclass(eq=False, slots=True)
class _Row:
    """A running answer."""

    job: _Job
    ask: Ask
    number: int
    sampler: Sampler
    spelling: Spelling
    matcher: Matcher | None
    tokens: int = 0
    last: int = 0
    held: list[Token] = field(default_factory=list)

    def take(self, logits: Tensor, end: list[int]) -> Piece | None:
        """The next token, and what is to be sent of it."""
        token = self.sampler.draw(logits, self.matcher.allowed(len(logits)) if self.matcher else None)
        self.last, self.tokens = token.id, self.tokens + 1
        complete = self.matcher.take(token.id) if self.matcher else False
        if token.id not in end:
            self.spelling.add(token.id)
            self.held.append(token)
        over = token.id in end or self.spelling.stopped or complete
        finish = "stop" if over else "length" if self.tokens == self.ask.tokens else None
        text = self.spelling.take(whole=finish is not None)
        finish = "stop" if self.spelling.stopped else finish  # a last half of a character may complete a stop string
        if not text and finish is None:
            return None
        tokens, self.held = tuple(self.held), []
        return Piece(self.number, text, tokens, finish)


class Generator:
    """Runs requests to a language model on one thread.

    Prompts are read in parts, short ones together, so that running answers never wait for more than one part.

    Args:
        predictor: the model.
        spec: limits; `batch.max` answers run at a time.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        task = predictor.task
        self.predictor, self.task, self.spec = predictor, task, spec
        self.tokenizer, self.end = task.tokenizer, task.end
        self.grammars = Grammars(self.tokenizer, self.end)
        architecture = predictor.artifact.manifest.architecture["config"]["model"]
        self.positions = int(architecture.get("max_position_embeddings") or task.positions)
        self.vocabulary = int(architecture["vocab_size"])
        self._decoder: Decoder = task.decoder(predictor.engine)
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._rows: list[_Row] = []  # as the decoder has them; only the thread touches them
        self._reading: list[_Prompt] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether answers can be made."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that none of it has begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are being made."""
        return len(self._rows)

    async def run(self, asks: Sequence[Ask], deadline: float) -> AsyncGenerator[Piece, None]:
        """Pieces of a request's answers until all are finished. Closing it, or cancelling its task, drops the rest at the next token.

        Args:
            asks: what is wanted of each prompt; one or more.
            deadline: the latest moment of the last piece, on the monotonic clock.

        Raises:
            QueueFull: too many requests wait.
            TimeoutError: the answers took too long.
        """
        job, seen = _Job(asks), record.current()
        with self._changed:
            if len(self._waiting) >= self.spec.queue:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()
        left = sum(ask.n for ask in asks)
        seen.tokens_in += sum(len(ask.ids) for ask in asks)
        try:
            while left:
                piece = await asyncio.wait_for(job.pieces.get(), deadline - time.monotonic())
                if isinstance(piece, Exception):
                    raise piece
                if seen.first_token is None:
                    seen.first_token = time.monotonic() - seen.began
                seen.tokens_out += len(piece.tokens)
                left -= piece.finish is not None
                yield piece
        finally:
            job.cancelled, now = True, time.monotonic()
            begun = job.begun or now
            seen.spans += [("queue", job.arrived, begun), ("infer", begun, now)]

    def close(self) -> None:
        """End the thread at the next token."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while self._wait():
            try:
                self._drop()
                self._read()
                self._step()
            except Exception as error:  # of the engine: those that ran have lost their state
                for job in {id(one.job): one.job for one in self._held()}.values():
                    job.send(error)
                self._rows, self._reading, self._decoder = [], [], self.task.decoder(self.predictor.engine)

    def _wait(self) -> bool:
        """Until there is something to run; False if there never will be."""
        with self._changed:
            while not (self._closed or self._rows or self._reading or self._waiting):
                self._changed.wait()
            return not self._closed

    def _drop(self) -> None:
        """Leave rows and requests that nobody waits for."""
        for place in reversed(range(len(self._rows))):
            if self._rows[place].job.cancelled:
                self._leave(place)
        self._reading = [prompt for prompt in self._reading if not prompt.job.cancelled]
        with self._changed:
            if any(job.cancelled for job in self._waiting):
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
            while self._waiting and self._fits(self._waiting[0].prompts[0].ask):
                prompt = self._waiting[0].prompts.popleft()
                self._reading.append(prompt)
                prompt.job.begun = prompt.job.begun or time.monotonic()
                if not prompt.job.prompts:
                    self._waiting.popleft()

    def _fits(self, ask: Ask) -> bool:
        """Whether there is room for a prompt's answers beside those that run or will, which are all as long in the cache as the longest."""
        held = self._held()
        if not held:
            return True
        rows = len(self._rows) + sum(prompt.ask.n for prompt in self._reading) + ask.n
        longest = max(len(one.ids) + one.tokens for one in (ask, *(other.ask for other in held)))
        return rows <= self.spec.batch.max and rows * longest <= max(self.positions, self.spec.batch.tokens)

    def _held(self) -> list[_Row | _Prompt]:
        """Answers that run, and prompts whose answers will."""
        return [*self._rows, *self._reading]

    def _read(self) -> None:
        """Parts of prompts; after the last part of one, its answers begin."""
        if not self._reading:
            return
        for prompt in self._reading:
            prompt.state = prompt.state or self._decoder.begin(prompt.ask.ids)
        read = list(zip(self._reading, self._decoder.read([prompt.state for prompt in self._reading]), strict=True))
        fresh = [(self._begun(prompt, number), logits) for prompt, logits in read if logits is not None for number in range(prompt.ask.n)]
        self._reading = [prompt for prompt, logits in read if logits is None]
        self._take(fresh)

    def _begun(self, prompt: _Prompt, number: int) -> _Row:
        """An answer to a prompt that is read."""
        ask = prompt.ask
        matcher = ask.matcher.copy() if ask.matcher else None
        sampler, spelling = Sampler(ask.sampling, number, ask.logprobs), Spelling(self.tokenizer, ask.stop)
        self._decoder.join(prompt.state)
        self._rows.append(_Row(prompt.job, ask, prompt.first + number, sampler, spelling, matcher))
        return self._rows[-1]

    def _step(self) -> None:
        """A token for each row."""
        if self._rows:
            rows = list(self._rows)
            self._take(list(zip(rows, self._decoder.step([row.last for row in rows]), strict=True)))

    def _take(self, rows: list[tuple[_Row, Tensor]]) -> None:
        for row, logits in rows:
            piece = row.take(logits, self.end)
            if piece:
                row.job.send(piece)
                if piece.finish:
                    self._leave(self._rows.index(row))

    def _leave(self, place: int) -> None:
        self._decoder.leave(place)
        last = self._rows.pop()
        if place < len(self._rows):
            self._rows[place] = last


def suits(predictor: Predictor) -> bool:
    """Whether a model is a causal language model."""
    return isinstance(predictor.task, text_generation.Task)
