"""Answers that must fit a JSON schema: which tokens may come next.

llguidance computes that in Rust while tokens are drawn, in tens of microseconds, with nothing to compile beforehand, and needs no other package.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor

from lc_ray.errors import DataError

_GUIDANCE: Any = {
    # A small model that may write any whitespace between values writes nothing else.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,  # `oneOf` of kinds that may be alike is taken as `anyOf`
}


class Grammars:
    """Makes matchers for one model's tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        end: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, end: list[int]) -> None:
        self.tokenizer, self.end = tokenizer, end
        self._tokens: LLTokenizer | None = None
        self._lock = threading.Lock()

    def matcher(self, schema: dict[str, Any], lenient: bool = False) -> Matcher:
        """Of one answer. The first one takes a second, as the vocabulary is read.

        Args:
            schema: JSON schema.
            lenient: whether what can't be kept to in it is left out, rather than refused.

        Raises:
            DataError: no JSON schema, one that can't be kept to, or a tokenizer whose tokens have no text of their own.
        """
        with self._lock:
            if self._tokens is None:
                try:
                    self._tokens = from_tokenizer(self.tokenizer, eos_token=self.end or None)
                except (ValueError, AttributeError, TypeError) as error:
                    raise DataError(f"answers of this model can't be constrained: {error}") from None
        try:
            written = json.dumps({"x-guidance": _GUIDANCE | {"lenient": lenient}} | schema)
            made = LLMatcher(self._tokens, LLMatcher.grammar_from_json_schema(written), log_level=0)
        except ValueError as error:
            raise DataError(f"the schema can't be used: {error}") from None
        if made.is_error():
            raise DataError(f"the schema can't be used: {made.get_error()}")
        return Matcher(made, self._tokens.vocab_size, written)


class Matcher:
    """Follows one answer.

    Args:
        matcher: llguidance's.
        vocabulary: how many tokens it knows.
        schema: that it keeps to, as JSON which llguidance reads.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int, schema: str) -> None:
        self.schema = schema
        self._matcher, self._bits, self._vocabulary = matcher, allocate_token_bitmask(1, vocabulary), vocabulary

    def copy(self) -> Matcher:
        """For another answer to the same request."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, self.schema)

    def allowed(self, vocabulary: int) -> Tensor:
        """Whether a token may come next, (vocabulary,); the model may have more outputs than there are tokens.

        Raises:
            DataError: the schema can't be kept to, which shows only now.
        """
        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        known = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little")[: self._vocabulary].astype(bool)
        found = torch.zeros(vocabulary, dtype=torch.bool)
        found[: min(len(known), vocabulary)] = torch.from_numpy(known)[:vocabulary]
        return found

    def take(self, token: int) -> bool:
        """Follow a token. Whether nothing can come after it.

        Raises:
            DataError: the schema can't be kept to, which shows only now.
        """
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            told = self._matcher.get_error().partition("\n<state>")[0]  # of the parser, which is long
            raise DataError(f"the schema can't be kept to: {told}")
