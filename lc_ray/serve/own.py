"""Our own engine of language models: rows join and leave the running batch between any two tokens."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from torch import Tensor

from lc_ray.errors import DataError
from lc_ray.predictor import Predictor
from lc_ray.serve.generation import Answer, Ask, Generator, Job, Piece, Prompt
from lc_ray.serving import ServeSpec
from lc_ray.tasks._decoder import Decoder
from lc_ray.tasks._sampling import Sampler, Token, told

_KEPT = 4  # of the positions that answers may hold, one in so many is for those that ended


class _Row(Answer):
    """A running answer of ours."""

    def __init__(self, prompt: Prompt, number: int, tokenizer: Any, end: list[int]) -> None:
        super().__init__(prompt, number, tokenizer, end)
        self.sampler, self.last = Sampler(prompt.ask.sampling, number, prompt.ask.logprobs), 0

    def take(self, logits: Tensor) -> Piece | None:
        """The next token, and what is to be sent of it."""
        token = self.sampler.draw(logits, self.matcher.allowed(len(logits)) if self.matcher else None)
        self.last = token.id
        return self.add(token)


class OwnGenerator(Generator):
    """Runs requests on one thread, with the model's decoder.

    Prompts are read in parts, short ones together, so that running answers never wait for more than one part. What a prompt shares with a
    request before of the same key, as a conversation does with its turn before, is not read again.

    Args:
        predictor, spec: see `Generator`.
    """

    def __init__(self, predictor: Predictor, spec: ServeSpec) -> None:
        super().__init__(predictor, spec)
        self._room = max(self.positions, spec.batch.tokens)
        self._decoder: Decoder = self.task.decoder(predictor.engine)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._rows: list[_Row] = []  # as the decoder has them; only the thread touches them
        self._reading: list[Prompt] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """See `Generator`."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """See `Generator`."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """See `Generator`."""
        return len(self._rows)

    def submit(self, job: Job) -> None:
        """See `Generator`."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """Its rows are left at the next token."""
        job.cancelled = True

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
                prompt = self._waiting[0].prompts.pop(0)
                self._reading.append(prompt)
                prompt.job.begun = prompt.job.begun or time.monotonic()
                if not prompt.job.prompts:
                    self._waiting.popleft()
                self._keep()

    def _fits(self, ask: Ask) -> bool:
        """Whether there is room for a prompt's answers beside those that run or will."""
        rows, positions = self._needed(ask)
        return not self._held() or (rows <= self.spec.batch.max and positions <= self._room)

    def _needed(self, *more: Ask) -> tuple[int, int]:
        """Rows and positions of the answers that run or will, and of more; all are as long in the cache as the longest."""
        rows = len(self._rows) + sum(ask.n for ask in (*(prompt.ask for prompt in self._reading), *more))
        asks = (*(one.ask for one in self._held()), *more)
        return rows, rows * max((len(ask.ids) + ask.tokens for ask in asks), default=0)

    def _keep(self) -> None:
        """Give answers that ended the room that those which run or will leave."""
        self._decoder.keep(max(0, min(self._room // _KEPT, self._room - self._needed()[1])))

    def _held(self) -> list[_Row | Prompt]:
        """Answers that run, and prompts whose answers will."""
        return [*self._rows, *self._reading]

    def _read(self) -> None:
        """Parts of prompts; after the last part of one, its answers begin."""
        if not self._reading:
            return
        for prompt in self._reading:
            if prompt.state is None:
                prompt.state = self._decoder.begin(prompt.ask.ids, prompt.job.key, prompt.ask.prompt_logprobs)
                prompt.job.cached += prompt.state.done
        read = zip(self._reading, self._decoder.read([prompt.state for prompt in self._reading]), strict=True)
        left: list[Prompt] = []
        fresh: list[tuple[_Row, Tensor]] = []
        for prompt, logits in read:
            if logits is not None and prompt.ask.prompt_logprobs:
                _tell(prompt, logits)
            if logits is None or prompt.state.done < len(prompt.ask.ids):
                left.append(prompt)
            else:
                fresh += [(self._begun(prompt, number), logits[-1]) for number in range(prompt.ask.n)]
        self._reading = left
        for row, _ in fresh:
            self._send(row, row.begin())
        self._take([(row, logits) for row, logits in fresh if row.ask.tokens])

    def _begun(self, prompt: Prompt, number: int) -> _Row:
        """An answer to a prompt that is read."""
        self._decoder.join(prompt.state)
        self._rows.append(_Row(prompt, number, self.tokenizer, self.end))
        return self._rows[-1]

    def _step(self) -> None:
        """A token for each row."""
        if self._rows:
            rows = list(self._rows)
            self._take(list(zip(rows, self._decoder.step([row.last for row in rows]), strict=True)))

    def _take(self, rows: list[tuple[_Row, Tensor]]) -> None:
        for row, logits in rows:
            try:
                piece = row.take(logits)
            except DataError as error:
                row.job.send(error)
                row.job.cancelled = True
                continue
            self._send(row, piece)

    def _send(self, row: _Row, piece: Piece | None) -> None:
        """Send what there is to be sent of a row, which leaves with its last piece."""
        if row.send(piece):
            self._leave(self._rows.index(row))

    def _leave(self, place: int) -> None:
        last = self._rows.pop()
        if place < len(self._rows):
            self._rows[place] = last
        self._keep()
        self._decoder.leave(place)


def _tell(prompt: Prompt, logits: Tensor) -> None:
    """Take what the model gave the prompt's tokens that follow those of a part; logits (tokens, vocabulary) after that."""
    ids = prompt.ask.ids
    prompt.told = prompt.told or [Token(ids[0])]  # which nothing is before
    following = ids[len(prompt.told) : len(prompt.told) + len(logits)]
    prompt.told += told(following, logits[: len(following)], prompt.ask.logprobs or 0)
