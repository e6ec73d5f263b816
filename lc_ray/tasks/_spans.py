"""Entities as spans of a text's characters, as annotation tools write them, and as a tag for each of its words."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from lc_ray.errors import DataError
from lc_ray.modalities import _text

Span = tuple[int, int, str]  # first character, the one after its last, type
_STARTS, _ENDS = ("start", "start_offset", "start_char", "begin"), ("end", "end_offset", "end_char", "stop")
_LABELS = ("label", "labels", "entity_group", "entity", "type", "tag")


def spans(value: Any) -> list[Span] | None:
    """The spans that a cell lists, each as `[start, end, label]` or an object of these, as Doccano, spaCy, Prodigy and Label Studio have them.

    Returns:
        None where it lists something else, or nothing.

    Raises:
        DataError: a span without its end or label.
    """
    if isinstance(value, dict):
        value = value.get("entities", value.get("spans"))
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(one, dict) and isinstance(one.get("result"), list) for one in value):  # of several annotators, the first
        value = value[0]["result"]
    if all(isinstance(one, list | tuple) and len(one) == 3 and all(isinstance(place, int) for place in one[:2]) for one in value):
        return [(start, end, str(label)) for start, end, label in value]
    return [_span(one) for one in value] if all(isinstance(one, dict) for one in value) else None


def _span(one: dict[str, Any]) -> Span:
    inner = one["value"] if isinstance(one.get("value"), dict) else one
    start, end, label = (next((inner[name] for name in names if name in inner), None) for names in (_STARTS, _ENDS, _LABELS))
    label = label[0] if isinstance(label, list) and label else label
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(label, str):
        raise DataError("a span without start, end and label")
    return start, end, label


def tags(found: list[Span], text: str) -> list[str]:
    """A tag for each word of a text, as `words` splits it: of the longest span that touches it.

    Raises:
        DataError: a span has no character of the text's words.
    """
    words = [word.span() for word in _text.words(text)]
    made = ["O"] * len(words)
    for start, end, label in sorted(found, key=lambda span: (span[0] - span[1], span)):
        inside = [place for place, (first, last) in enumerate(words) if first < end and start < last]
        if not inside or not 0 <= start < end <= len(text):
            raise DataError(f"no word between the characters {start} and {end} of {len(text)}")
        if all(made[place] == "O" for place in inside):
            for place in inside:
                made[place] = f"{'B' if place == inside[0] else 'I'}-{label}"
    return made


def spread(tags: list[str], text: str) -> list[str]:
    """Tags of what blanks part in a text, for each word of it, as `words` splits it; as they are where they are not as many.

    An entity goes on in a word's further parts, and ends with the last of them.
    """
    places = [part.span() for part in _text.APART.finditer(text)]
    if len(places) != len(tags):
        return tags
    made: list[str] = []
    words = [word.start() for word in _text.words(text)]
    for tag, (first, last) in zip(tags, places, strict=True):
        made += _divided(tag, bisect_left(words, last) - bisect_left(words, first))
    return made


def _divided(tag: str, parts: int) -> list[str]:
    prefix, dash, name = tag.partition("-")
    if parts < 2 or not dash or prefix not in ("B", "I", "E", "L", "S", "U"):
        return [tag] * parts
    end = {"S": "E", "U": "L"}.get(prefix, prefix if prefix in "EL" else "I")
    begin = "B" if prefix in "BSU" else "I"
    return [f"{begin}-{name}", *[f"I-{name}"] * (parts - 2), f"{end}-{name}"]
