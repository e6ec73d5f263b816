"""Names of classes that lie beside data whose labels are numbers or codes, as they are shown where it is clear which name is whose."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from lc_ray.data.files import File
from lc_ray.data.folders import content_of

_LISTS = ("classes.txt", "class_names.txt", "labels.txt")  # a name on each line, which may begin with its number or code
_SETTINGS = ("data.yaml", "dataset.yaml", "README.md")  # YOLO's, and the head of a page of the Hugging Face hub
_BETWEEN = re.compile(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])|[\u200b-\u200f\ufeff]")  # what joins letters, or is not seen
_MARKS = re.compile(r"[|,;]")  # between labels that were joined
_SHOWN = 3  # groups of labels that are alike
_CODE = re.compile(r"\d+|n\d{8}")  # a number, or WordNet's
_CODED = re.compile(rf"({_CODE.pattern})(?:\s*[:,=]\s*|\s+)(.*\S.*)")


def candidates(found: Sequence[File], target: str | None) -> dict[str, list[Any]]:
    """Lists of names, and names by number or code, that files beside the data, or in the folder above, have of the target's classes; by file.

    Args:
        found: the data's files.
        target: the column of the labels.
    """
    own = [file.path.rstrip("/") if file.kind == "folder" else str(file.folder) for file in found]
    folders = dict.fromkeys(place for folder in own for place in (folder, folder.rpartition("/")[0]) if place)
    places = [f"{folder}/{name}" for folder in folders for name in (*_LISTS, *_SETTINGS)]
    return {place: known for place in places if (known := list(_read(place, target)))}


def names(candidates: dict[str, list[Any]], labels: Sequence[str]) -> dict[str, str]:
    """A name for each label; none where labels are words, or no file has all of them, or files differ.

    A list whose names have no numbers counts from 0 if there is a label 0, or from 1 if there is one that is as high as it is long.

    Args:
        candidates: what the function above gave.
        labels: those of the training rows.
    """
    found: list[dict[str, str]] = []
    for known in itertools.chain(*candidates.values()) if all(map(_CODE.fullmatch, labels)) else ():
        if isinstance(known, list):
            first = 0 if "0" in labels else 1 if str(len(known)) in labels else len(known)
            known = dict(enumerate(known, first))
        known = {str(key): str(name).strip() for key, name in known.items()}
        named = {label: known[label] for label in labels if known.get(label)}
        if len(named) == len({*named.values()} - {*labels}) == len(labels) and named not in found:
            found.append(named)
    return found[0] if len(found) == 1 else {}


def alike(labels: Sequence[str]) -> list[str]:
    """What is to be known, in sentences, of labels that differ in case, or in blanks and hyphens between letters alone, or are made of others."""
    groups, known = dict[str, list[str]](), {*labels}
    for label in labels:
        groups.setdefault(_BETWEEN.sub("", label.casefold()), []).append(label)
    same = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    parts = {label: [part.strip() for part in _MARKS.split(label)] for label in labels}
    several = [repr(label) for label, found in parts.items() if len({*found}) > 1 and known.issuperset(found)]
    told = [f"labels that are written nearly alike are several labels: {_few(same)}; write them alike if they are one"] if same else []
    if several:
        told.append(f"labels that are made of others are labels of their own: {_few(several)}; for several a row there is 'multilabel'")
    return told


def _few(found: list[str]) -> str:
    return "; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN:,} others" if len(found) > _SHOWN else "")


def _read(place: str, target: str | None) -> Iterator[Any]:
    try:
        content = content_of(place)
    except OSError:
        return
    if content is None:
        return
    text = content.decode("utf-8-sig", "replace")
    if place.endswith(".txt"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        coded = [_CODED.fullmatch(line) for line in lines]
        yield {match[1]: match[2] for match in coded if match} if all(coded) else lines
        return
    try:
        found = yaml.safe_load(text.split("---")[1] if place.endswith(".md") else text)
        if not place.endswith(".md"):
            yield from [found["names"]] if isinstance(found.get("names"), list | dict) else []
            return
        infos = found["dataset_info"]
        for info in infos if isinstance(infos, list) else [infos]:
            yield from (known for feature in info["features"] if feature["name"] == target for known in _labelled(feature))
    except (yaml.YAMLError, AttributeError, IndexError, KeyError, TypeError):  # it is about something else
        return


def _labelled(feature: Any) -> Iterator[Any]:
    """Names of classes in a column's feature, or in what its cells are made of."""
    if isinstance(feature, dict):
        yield from [feature["class_label"]["names"]] if "class_label" in feature else []
    for part in feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list) else ():
        yield from _labelled(part)
