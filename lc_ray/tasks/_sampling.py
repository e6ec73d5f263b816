"""The next token of one answer: drawn from what the model says, as the request wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEAST = -9999.0  # logarithm of a probability of 0, which JSON can't write
_STRIDE = 0x9E3779B97F4A7C15  # between the seeds of answers to one request: far from the seeds that others give
_LIKELY = 256  # tokens that are looked at first for the nucleus; mostly they are all of it


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: the likeliest tokens that have this probability together are drawn from (Holtzman et al. 2020, arXiv:1904.09751).
        seed: of all that is drawn; a new one for each answer if not given.
        frequency, presence: what a token loses for each time it was said, and for having been said.
        bias: added to tokens' logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    frequency: float = 0.0
    presence: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)

    def seed_of(self, number: int) -> int | None:
        """The seed of one of the answers to a request, below 2^64; None draws anew."""
        return None if self.seed is None else (self.seed + number * _STRIDE) % 2**64


@dataclass(frozen=True)
class Token:
    """A token that was drawn, or one of a prompt.

    Args:
        id: its number.
        logprob: logarithm of the probability that the model itself gave it; None if not asked for, and of a prompt's first.
        likeliest: the likeliest tokens and theirs.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


def told(tokens: Sequence[int], logits: Tensor, likeliest: int) -> list[Token]:
    """Tokens with their probabilities, and those of the likeliest.

    Args:
        tokens: any number of them.
        logits: of the model in the place of each, (tokens, vocabulary).
        likeliest: how many of them are told.
    """
    whole, top = logits.logsumexp(-1, keepdim=True), logits.topk(likeliest)
    own = logits.gather(1, torch.tensor(tokens, dtype=torch.int64)[:, None])
    logprobs, others = ((found - whole).clamp(min=LEAST).tolist() for found in (own, top.values))
    rows = zip(tokens, logprobs, top.indices.tolist(), others, strict=True)
    return [Token(one, logprob, tuple(zip(ids, values, strict=True))) for one, (logprob,), ids, values in rows]


class Sampler:
    """Draws one answer's tokens.

    Args:
        sampling: see `Sampling`.
        number: of the answer among those to the same request.
        logprobs: how many of the likeliest tokens are told; None tells no probabilities.
    """

    def __init__(self, sampling: Sampling, number: int, logprobs: int | None) -> None:
        self.sampling, self.logprobs = sampling, logprobs
        self.random = torch.Generator()
        seed = sampling.seed_of(number)
        self.random.seed() if seed is None else self.random.manual_seed(seed)
        self.said: dict[int, int] = {}

    def draw(self, logits: Tensor, allowed: Tensor | None = None) -> Token:
        """A token.

        Args:
            logits: of the model, (vocabulary,).
            allowed: whether a token may be drawn, (vocabulary,).
        """
        token = self._choose(self._changed(logits) if allowed is None else self._changed(logits).masked_fill(~allowed, -math.inf))
        self.said[token] = self.said.get(token, 0) + 1
        if self.logprobs is None:
            return Token(token)
        return told([token], logits[None], self.logprobs)[0]

    def _changed(self, logits: Tensor) -> Tensor:
        how = self.sampling
        changes: dict[int, float] = dict(how.bias)
        if how.frequency or how.presence:
            for token, times in self.said.items():
                changes[token] = changes.get(token, 0.0) - how.frequency * times - how.presence
        if not changes:
            return logits
        return logits.index_add(0, torch.tensor(list(changes)), torch.tensor(list(changes.values()), dtype=logits.dtype))

    def _choose(self, logits: Tensor) -> int:
        """One number is drawn per token, so that the numbers an answer gets depend on nothing but its seed."""
        if not self.sampling.temperature:
            return int(logits.argmax())
        scaled = (logits - logits.max()).double().div(self.sampling.temperature)  # which may be 0 as a float
        probabilities, tokens = scaled.softmax(-1), None
        if self.sampling.top_p < 1:
            probabilities, tokens = _nucleus(probabilities, self.sampling.top_p)
        summed = probabilities.cumsum(-1)
        drawn = torch.rand(1, generator=self.random, dtype=torch.float64) * summed[-1]
        place = torch.searchsorted(summed, drawn, right=True).clamp(max=len(summed) - 1).item()
        return int(place if tokens is None else tokens[int(place)])


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, in order, up to the one with which they have `top_p`: their probabilities and numbers."""
    for most in (_LIKELY, len(probabilities)):
        found: Any = probabilities.topk(min(most, len(probabilities)))
        before = found.values.cumsum(-1) - found.values
        kept = int((before < top_p).sum())
        if kept < len(found.values) or kept == len(probabilities):
            break
    return found.values[: max(kept, 1)], found.indices[: max(kept, 1)]
