"""Answers of a causal language model, token by token: rows join and leave the running batch between any two tokens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lc_ray.predictor import Predictor
from lc_ray.serve import record
from lc_ray.serve.batching import QueueFull
from lc_ray.serve.grammar import Grammars, Matcher
from lc_ray.serve.sampling import Sampler, Sampling, Token
from lc_ray.serve.spelling import Spelling
from lc_ray.spec import ServeSpec
from lc_ray.tasks import text_generation
from lc_ray.tasks._decoder import Decoder


@dataclass(frozen=True)
class Ask:
    """What a request wants.

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
        number: of the answer.
        text: new text.
        tokens: new tokens, of which some text may be held back until the next piece.
        finish: "stop" or "length" in an answer's last piece.
    """

    number: int
    text: str
    tokens: tuple[Token, ...]
    finish: str | None = None


class _Job:
    """A request, and where its pieces go."""

    def __init__(self, ask: Ask) -> None:
        self.ask, self.cancelled = ask, False
        self.arrived, self.begun = time.monotonic(), 0.0
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.prompt: Any = None

    def send(self, piece: Piece | Exception) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


@dataclass(eq=False, slots=True)
class _Row:
    """A running answer."""

    job: _Job
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
        finish = "stop" if over else "length" if self.tokens == self.job.ask.tokens else None
        text = self.spelling.take(whole=finish is not None)
        finish = "stop" if self.spelling.stopped else finish  # a last half of a character may complete a stop string
        if not text and finish is None:
            return None
        tokens, self.held = tuple(self.held), []
        return Piece(self.number, text, tokens, finish)


class Generator:
    """Runs requests to a language model on one thread.

    Prompts are read one at a time and in parts, so that running answers never wait for more than one part.

    Args:
        predictor: the model.
        spec: limits; `batch.max` answers run at a time.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        task = predictor.task
        self.task, self.modality, self.spec = task, task.modality, spec
        self.tokenizer, self.end = task.tokenizer, task.end
        self.grammars = Grammars(self.tokenizer, self.end)
        architecture = predictor.artifact.manifest.architecture["config"]["model"]
        self.positions = int(architecture.get("max_position_embeddings") or task.positions)
        self.vocabulary = int(architecture["vocab_size"])
        self._engine = predictor.engine
        self._decoder: Decoder = task.decoder(predictor.engine)
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._rows: list[_Row] = []  # as the decoder has them; only the thread touches them
        self._reading: _Job | None = None
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

    async def run(self, ask: Ask, deadline: float) -> AsyncGenerator[Piece, None]:
        """Pieces of a request's answers until all are finished. Closing it, or cancelling its task, drops the rest at the next token.

        Args:
            ask: what is wanted.
            deadline: the latest moment of the last piece, on the monotonic clock.

        Raises:
            QueueFull: too many requests wait.
            TimeoutError: the answers took too long.
        """
        job, seen = _Job(ask), record.current()
        with self._changed:
            if len(self._waiting) >= self.spec.queue:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()
        left = ask.n
        seen.tokens_in += len(ask.ids)
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
                for job in {id(job): job for job in [*(row.job for row in self._rows), self._reading] if job}.values():
                    job.send(error)
                self._rows, self._reading, self._decoder = [], None, self.task.decoder(self._engine)

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
        if self._reading and self._reading.cancelled:
            self._reading = None
        with self._changed:
            if any(job.cancelled for job in self._waiting):
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
            if self._reading is None and self._waiting and self._fits(self._waiting[0].ask):
                self._reading = self._waiting.popleft()
                self._reading.begun = time.monotonic()

    def _fits(self, ask: Ask) -> bool:
        """Whether there is room for a request's answers beside those that run, which are all as long in the cache as the longest."""
        if not self._rows:
            return True
        asks = [ask, *(row.job.ask for row in self._rows)]
        rows, longest = len(self._rows) + ask.n, max(len(one.ids) + one.tokens for one in asks)
        return rows <= self.spec.batch.max and rows * longest <= max(self.positions, self.spec.batch.tokens)

    def _read(self) -> None:
        """The next part of the prompt that is being read; after the last part, its answers begin."""
        job = self._reading
        if job is None:
            return
        if job.prompt is None:
            job.prompt = self._decoder.begin(job.ask.ids)
        logits = self._decoder.read(job.prompt)
        if logits is None:
            return
        self._reading = None
        fresh = []
        for number in range(job.ask.n):
            ask = job.ask
            matcher = ask.matcher.copy() if ask.matcher else None
            row = _Row(job, number, Sampler(ask.sampling, number, ask.logprobs), Spelling(self.tokenizer, ask.stop), matcher)
            self._decoder.join(job.prompt)
            self._rows.append(row)
            fresh.append((row, logits))
        job.prompt = None
        self._take(fresh)

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
