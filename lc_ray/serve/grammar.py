"""Answers that must fit a JSON schema: which tokens may come next.

llguidance computes that in Rust while tokens are drawn, in tens of microseconds, with nothing to compile beforehand, and needs no other package.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

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
_PATTERNS = 8  # of one text: whether any fits all is found out in a time that each more makes four times as long
_LEVELS = 250  # of parts within each other: at some thousand the stack ends, and the process with it
_BY_NAME = ("properties", "patternProperties", "dependentSchemas")  # keywords with schemas by names of the author's choice
_NO_SCHEMAS = ("$defs", "definitions", "const", "enum", "default", "examples")  # those of definitions count where they are referred to


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
        _Measured(schema).check()
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


class _Measured:
    """How much a schema asks of llguidance, which has no limits of its own on the time and the stack that these take.

    Args:
        schema: in which references are looked for.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self._known: dict[str, tuple[int, int]] = {}  # by reference
        text = json.dumps({keyword: value for keyword, value in schema.items() if keyword != "$id"})
        self._parted = '"$id"' in text  # into parts in which references are looked for
        self._whole = text.count('"pattern"') + text.count('"format"'), text.count("{")

    def check(self) -> None:
        """Raise DataError if it is too much."""
        with contextlib.suppress(RecursionError):
            patterns, levels = self.of(self.schema)
            if patterns > _PATTERNS:
                raise DataError(f"the schema can't be used: a text would have to fit more than {_PATTERNS} patterns at once")
            if levels <= _LEVELS:
                return
        raise DataError(f"the schema can't be used: it is nested more than {_LEVELS} deep, through its references")

    def of(self, part: Any) -> tuple[int, int]:
        """The most patterns that one text within a part has to fit, and how deep it is nested.

        What stands beside each other is for the same text, as is all of `allOf`.
        """
        if not isinstance(part, dict):
            return 0, 0
        found = [self._within(keyword, value) for keyword, value in part.items() if keyword not in _NO_SCHEMAS]
        return sum(patterns for patterns, _ in found), 1 + max((levels for _, levels in found), default=0)

    def _within(self, keyword: str, value: Any) -> tuple[int, int]:
        if keyword in ("pattern", "format"):
            return 1, 0
        if keyword == "$ref":
            return self._referred(str(value))
        parts: Iterable[Any] = value if isinstance(value, list) else value.values() if keyword in _BY_NAME and isinstance(value, dict) else [value]
        patterns, levels = zip((0, 0), *map(self.of, parts), strict=True)
        return sum(patterns) if keyword == "allOf" else max(patterns), max(levels)

    def _referred(self, reference: str) -> tuple[int, int]:
        if self._parted or not f"{reference}/".startswith("#/"):
            return self._whole  # any part may be meant, and all of them after each other
        if reference not in self._known:
            self._known[reference] = 0, 0  # within itself it is about another text
            found: Any = self.schema
            for name in reference.removeprefix("#").split("/")[1:]:
                name = unquote(name).replace("~1", "/").replace("~0", "~")
                found = found.get(name) if isinstance(found, dict) else _item(found, name)
            self._known[reference] = self.of(found)
        return self._known[reference]


def _item(found: Any, name: str) -> Any:
    """What a reference calls by its number in a list."""
    return found[int(name)] if isinstance(found, list) and name.isdecimal() and len(name) < 9 and int(name) < len(found) else None
