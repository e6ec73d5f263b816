"""What schemas may ask of llguidance, which has no limit on the time that it takes to combine patterns, nor on the stack."""

import functools

import pytest
from tokens import byte_tokenizer

from lc_ray.errors import DataError
from lc_ray.serve.grammar import Grammars

COUNT = 11  # of patterns, some of a second; each more takes four times as long


@pytest.fixture(scope="module")
def grammars():
    return Grammars(byte_tokenizer(""), [1])


def pattern(i):
    return {"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"}


def nested(parts):
    """Each beside the choice of the next."""
    return {**parts[0], "anyOf": [nested(parts[1:])]} if parts else {"type": "string"}


MANY = [pattern(i) for i in range(5, 5 + COUNT)]
CHAIN = {str(i): {**part, "$ref": f"#/$defs/{i + 1}"} for i, part in enumerate(MANY)} | {str(COUNT): {"type": "string"}}
NAMED = {str(i): {**part, "$anchor": f"n{i}"} for i, part in enumerate(MANY)}
OWN = {"allOf": [{"$id": "https://example.com/own", "$ref": "#/$defs/x", "$defs": {"x": {"allOf": MANY}}}], "$defs": {"x": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": MANY},
        nested(MANY),
        {"$ref": "#/$defs/0", "$defs": CHAIN},
        {"allOf": [{"$ref": f"#n{i}"} for i in range(COUNT)], "$defs": NAMED},
        OWN,
        {"allOf": [{"properties": {"x": part}, "required": ["x"]} for part in MANY]},
        {"type": "array", "items": {"allOf": [{"allOf": MANY[:6]}, {"anyOf": [{"type": "integer"}, {"allOf": MANY[6:]}]}]}},
    ],
)
def test_a_text_may_not_have_to_fit_more_patterns_than_can_be_combined(grammars, schema):
    with pytest.raises(DataError, match="more than 8 patterns at once"):
        grammars.matcher(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {str(i): part for i, part in enumerate(MANY)}},
        {"anyOf": MANY},
        {"type": "object", "properties": {"pattern": {"type": "string"}, "allOf": {"allOf": [pattern(5), {"type": "string", "minLength": 20}]}}},
        {"$id": "https://example.com/tree", "type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "name": pattern(5)}},
        {"type": "array", "items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": pattern(5)}},
    ],
)
def test_texts_beside_each_other_may(grammars, schema):
    assert grammars.matcher(schema).allowed(260).any()


REFER = {
    "alone": lambda one: one,
    "choice": lambda one: {"anyOf": [{"type": "null"}, one]},
    "property": lambda one: {"type": "object", "properties": {"x": one}},
    "deep": lambda one: functools.reduce(lambda part, _: {"anyOf": [part, {"type": "null"}]}, range(40), one),
}


@pytest.mark.parametrize("kind", REFER)
@pytest.mark.parametrize("named", ["pointer", "anchor", "id"])
def test_a_chain_of_references_does_not_end_the_process(grammars, kind, named):
    """As it did: llguidance follows them by recursion, and its stack is not Python's."""

    def chain(length):
        refers = {"pointer": "#/$defs/", "anchor": "#n", "id": "https://example.com/"}[named]
        about = {"pointer": lambda i: {}, "anchor": lambda i: {"$anchor": f"n{i}"}, "id": lambda i: {"$id": f"https://example.com/{i}"}}[named]
        steps = {str(i): about(i) | REFER[kind]({"$ref": f"{refers}{i + 1}"}) for i in range(length)}
        return {"$ref": f"{refers}0", "$defs": steps | {str(length): about(length) | {"type": "string"}}}

    with pytest.raises(DataError, match="nested more than 250 deep"):
        grammars.matcher(chain(1000))
    assert grammars.matcher(chain(3)).allowed(260).any()
