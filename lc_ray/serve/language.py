"""Rows answered by a language model: as its predictor answers them, unless the request's parameters say otherwise."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

from pydantic import Field

from lc_ray.models.batches import collate, prepare
from lc_ray.serve.fields import Generation, parse
from lc_ray.serve.generation import Ask, Generator
from lc_ray.serve.http import HttpError
from lc_ray.tasks._sampling import Sampling


class Parameters(Generation):
    """What a request may say of all its answers."""

    max_new_tokens: int | None = Field(None, ge=1)  # as the job file calls it


async def answers(generator: Generator, rows: list[dict[str, Any]], parameters: Any) -> list[dict[str, Any]]:
    """Answers to clean rows, in their order.

    Raises:
        HttpError: 400, a parameter that can't be used.
        DataError: rows can't be used.
        QueueFull: too many requests wait.
        TimeoutError: the answers took too long.
    """
    wanted = parse(Parameters, parameters or {}, "parameters.")
    if not rows:
        return []
    asks = _asks(generator, await asyncio.to_thread(_prompts, generator, rows), wanted)
    texts = [""] * len(rows)
    async with aclosing(generator.run(asks, time.monotonic() + generator.spec.timeout)) as pieces:
        async for piece in pieces:
            texts[piece.number] += piece.text
    return [{"text": text} for text in texts]


def _prompts(generator: Generator, rows: list[dict[str, Any]]) -> list[list[int]]:
    columns = generator.predictor.columns
    prompts: list[list[int]] = generator.task.prompts(collate(prepare({name: [row[name] for row in rows] for name in columns}, columns), columns))
    return prompts


def _asks(generator: Generator, prompts: list[list[int]], wanted: Parameters) -> list[Ask]:
    """What is drawn depends on the seed and the row alone, so that a row has the same answer each time and in any company."""
    task, most, longest = generator.task, generator.positions, max(map(len, prompts))
    tokens = wanted.max_new_tokens or wanted.max_tokens or task.max_new_tokens
    if longest + tokens > most:
        where = "parameters.max_new_tokens" if wanted.max_new_tokens else "parameters.max_tokens"
        raise HttpError(400, "invalid_value", f"the model reads {most} tokens; the longest prompt has {longest}", where)
    temperature = task.temperature if wanted.temperature is None else wanted.temperature
    sampling = Sampling(temperature, wanted.top_p or 1.0, wanted.seed or 0)
    return [Ask(ids, tokens, sampling, stop=wanted.stops()) for ids in prompts]
