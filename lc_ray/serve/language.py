"""Rows answered by a language model: as its predictor answers them, unless the request's parameters say otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from pydantic import Field

from lc_ray.models.batches import collate, prepare
from lc_ray.predictor import Rows
from lc_ray.serve.fields import Generation, parse
from lc_ray.serve.generation import Ask, Generator
from lc_ray.serve.http import HttpError
from lc_ray.tasks._sampling import Sampling


class Parameters(Generation):
    """What a request may say of all its answers."""

    max_new_tokens: int | None = Field(None, ge=1)  # as the job file calls it


async def answers(
    generator: Generator, rows: list[dict[str, Any]], parameters: Any, seen: Callable[[Rows, list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Answers to clean rows, in their order.

    Args:
        generator: of the model.
        rows: clean values by column.
        parameters: of the request.
        seen: is given the prepared rows with their answers.

    Raises:
        HttpError: 400, a parameter that can't be used.
        DataError: rows can't be used.
        QueueFull: too many requests wait.
        TimeoutError: the answers took too long.
    """
    wanted = parse(Parameters, parameters or {}, "parameters.")
    if not rows:
        return []
    prepared, prompts = await asyncio.to_thread(_prepared, generator, rows)
    asks = _asks(generator, prompts, wanted)
    texts = [""] * len(rows)
    async with aclosing(generator.run(asks, time.monotonic() + generator.spec.timeout)) as pieces:
        async for piece in pieces:
            texts[piece.number] += piece.text
    found = [{"text": text} for text in texts]
    seen(prepared, found)
    return found


def _prepared(generator: Generator, rows: list[dict[str, Any]]) -> tuple[Rows, list[list[int]]]:
    """Prepared rows, and their prompts."""
    columns = generator.predictor.columns
    prepared = prepare({name: [row[name] for row in rows] for name in columns}, columns)
    return prepared, generator.task.prompts(collate(prepared, columns))


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
