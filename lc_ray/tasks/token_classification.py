"""Token classification, such as named entities or parts of speech: a tag per word, scored by whole entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import accumulate
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_ray.errors import DataError, SpecError
from lc_ray.modalities import _text, words
from lc_ray.tasks import _labels, _spans, _task, classification
from lc_ray.tasks._language import IGNORED, pad
from lc_ray.tasks._task import Batch, Run

OUTSIDE = "O"
_PREFIXES, _BEGINS, _ENDS = set("BIESLU"), set("BSU"), set("ESLU")


class Task(_labels.Task):
    """A tag for each word of the one input column, whose modality is `words`.

    Args:
        labels: the tags; "O" is outside of any entity, "B-x" begins an entity of type x, "I-x" goes on with it. See `entities` for others.
        weights: of each tag in the loss, if they differ.
    """

    TYPE = pa.list_(pa.string())
    objective = "f1"
    COLUMNS: ClassVar[dict[str, str]] = {"text": "words"}
    POSITIONS = True

    @staticmethod
    def clean(value: Any) -> list[str]:
        """A list of tags, or its JSON, or tags separated by spaces. Of spans, without their text, those that they may have.

        Raises:
            DataError: missing, or something else.
        """
        value = _text.listed(value, ("[", "{"))
        if (found := _spans.spans(value)) is not None:
            return [OUTSIDE, *(f"B-{label}" for _, _, label in found)]
        if isinstance(value, bytes):
            value = _text.unicode(value)
        if isinstance(value, str):
            value = value.split()
        if not isinstance(value, list) or not value:
            raise DataError("tags missing" if not value or value != value else f"not a list of tags but {type(value).__name__}")
        return [classification.Task.clean(tag) for tag in value]

    @staticmethod
    def placed(value: Any, others: list[Any]) -> Any:
        """Spans of a text's characters, or tags of what blanks part in it, as a tag for each of its words; an empty list of spans has none.

        Raises:
            DataError: a span is outside of the text, or there is none.
        """
        value, text = _text.listed(value, ("[", "{")), words.Modality.listed(others[0])
        found = [] if value in ([], {"entities": []}) else _spans.spans(value)
        text = _text.unicode(text, "replace") if isinstance(text, bytes) else text
        if found and not isinstance(text, str):
            raise DataError("spans of characters for a list of words; give the text")
        if not isinstance(text, str):
            return value
        if found is not None:
            return _spans.tags(found, text)
        with suppress(DataError):  # of which `clean` tells
            return _spans.spread(Task.clean(value), text)
        return value

    @staticmethod
    def check(target: list[str], values: dict[str, Any]) -> None:
        """Whether there are as many tags as words.

        Raises:
            DataError: there are more or fewer.
            SpecError: the input is not one column of words.
        """
        match list(values.values()):
            case [list(words)] if all(isinstance(word, str) for word in words):
                if len(words) != len(target):
                    raise DataError(f"{len(target)} tags for {len(words)} words")
            case _:
                raise SpecError("data.inputs: token classification takes one column, of modality `words`", "task 'token_classification'")

    @classmethod
    def fit(cls, targets: Iterable[list[str]], options: Any, columns: dict[str, Any]) -> Self:
        """Tags of the training rows, sorted; an entity type's "I-" is there whenever its "B-" is.

        Raises:
            DataError: fewer than two of them, or numbers, of which nobody says which one is outside of entities.
        """
        counts = Counter(tag for target in targets for tag in target)
        if counts and all(tag.isdigit() for tag in counts):
            fix = "write names, such as B-person and O; Hugging Face datasets have them as Parquet or saved to disk, not as JSON or CSV"
            raise DataError(f"tags are numbers without names ({', '.join(sorted(counts)[:5])})", fix=fix)
        labels = sorted(counts.keys() | {f"I-{tag[2:]}" for tag in counts if tag.startswith("B-")} | {OUTSIDE})
        if len(counts) < 2:
            raise DataError(f"token classification needs at least 2 tags; the training rows have {sorted(counts)}", fix="check `data.target`")
        rare = [max(1, counts[label]) ** -0.5 for label in labels]
        mean = sum(weight * counts[label] for weight, label in zip(rare, labels, strict=True)) / counts.total()
        return cls(labels, [weight / mean for weight in rare] if options.class_weights == "balanced" else None)

    def encode(self, target: list[str]) -> list[int]:
        """Index of each tag.

        Raises:
            DataError: a tag never seen in training.
        """
        return [self.index(tag) for tag in target]

    def collate(self, encoded: list[list[int]]) -> Tensor:
        """Tag indices (batch, words), padded."""
        return pad(map(torch.tensor, encoded))

    def teach(self, inputs: Batch, targets: Tensor, random: torch.Generator, training: bool) -> tuple[Batch, Tensor]:
        """Words that were cut off with the text's end do not count, however long the batch's others are."""
        behind = torch.arange(targets.shape[1]) >= _read(inputs)[:, None]
        return inputs, targets.masked_fill(behind, IGNORED)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the words that `teach` left."""
        words = min(outputs.shape[1], targets.shape[1])
        real = targets[:, :words] != IGNORED
        return self.cross_entropy(outputs[:, :words][real], targets[:, :words][real])

    def items(self, targets: Tensor) -> Tensor:
        """Words."""
        return (targets != IGNORED).sum()

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Kullback-Leibler divergence from the teacher's softened tags, mean over the words."""
        words = min(outputs.shape[1], targets.shape[1])
        real = targets[:, :words] != IGNORED
        return _task.divergence(outputs[:, :words][real], teacher[:, :words][real], temperature)

    def answer(self, run: Run, inputs: Batch) -> list[NDArray[np.float32]]:
        """Logits of each row's own words: (words, tags). Behind them the model says something of a batch's longer rows alone."""
        return [output[:words] for output, words in zip(run(inputs), _read(inputs).tolist(), strict=True)]

    def metrics(self, scores: list[NDArray[np.float32]], encoded: list[list[int]]) -> dict[str, float]:
        """Precision, recall and F1 of whole entities (CoNLL-2000's definition, as seqeval's), and accuracy of the words.

        Args:
            scores: logits of each row, (words, tags); a word that was cut off counts as outside.
            encoded: each row's tag indices.
        """
        right = found = there = 0
        same = words = 0
        for output, target in zip(scores, encoded, strict=True):
            truth = [self.labels[i] for i in target]
            guess = self._tags(output, len(target))
            a, b = set(entities(truth)), set(entities(guess))
            right, found, there = right + len(a & b), found + len(b), there + len(a)
            same, words = same + sum(x == y for x, y in zip(truth, guess, strict=True)), words + len(truth)
        precision, recall = right / max(1, found), right / max(1, there)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        return {"f1": f1, "precision": precision, "recall": recall, "word_accuracy": same / max(1, words)}

    def _tags(self, output: NDArray[np.float32], words: int) -> list[str]:
        tags = [self.labels[i] for i in np.asarray(output)[:words].argmax(-1)]
        return tags + [OUTSIDE] * (words - len(tags))

    def decode(self, output: NDArray[np.float32], parts: dict[str, Any]) -> dict[str, Any]:
        """Logits (words, tags) → the entities: type, text, its first character and the one after its last, and score; and each word with its tag."""
        (column,) = parts.values()
        pieces = column["words"] or []
        tags = self._tags(output, len(pieces))
        probability = torch.from_numpy(np.asarray(output)).double().softmax(-1).amax(-1).numpy()
        places, found = list(accumulate(map(len, pieces), initial=0)), []
        for kind, first, last in entities(tags):
            whole = "".join(pieces[first:last])
            text = _text.bare(whole)
            start = places[first] + whole.index(text)
            score = float(probability[first:last].mean())
            found.append({"type": kind, "text": text, "start": start, "end": start + len(text), "score": score})
        return {"entities": found, "words": [_text.bare(piece) for piece in pieces], "tags": tags}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        told = "character (Unicode code point) of the text, or of the list's words with blanks between them, but none within Chinese or Japanese"
        start, end = ({"type": "integer", "minimum": 0, "description": f"{which} {told}"} for which in ("first", "behind the last"))
        entity = _task.fields(type=_task.TEXT, text=_task.TEXT, start=start, end=end, score=_task.PROBABILITY)
        texts = {"type": "array", "items": _task.TEXT}
        return _task.fields(entities={"type": "array", "items": entity}, words=texts, tags=texts)

    def mistake(self, answer: dict[str, Any], target: list[str]) -> float | None:
        """Mean score of the entities that are wrong; 0 if some are only missing."""
        truth, found = set(entities(target)), entities(answer["tags"])
        wrong = [told["score"] for told, entity in zip(answer["entities"], found, strict=True) if entity not in truth]
        if wrong:
            return float(np.mean(wrong))
        return None if len(found) == len(truth) else 0.0


def _read(inputs: Batch) -> Tensor:
    """How many words of each row are read, at least one: a mean over none would be no number."""
    (starts,) = (tensor for name, tensor in inputs.items() if name.endswith(".starts"))
    return (starts >= 0).sum(1).clamp(min=1)


def entities(tags: list[str]) -> list[tuple[str, int, int]]:
    """(type, first word, the one after its last) of each entity. An "I-" that goes on with nothing begins an entity, as in CoNLL-2000.

    IOB1 is read so too. Of BIOES and BILOU, "S-" and "U-" are entities of one word, "E-" and "L-" end one. Tags without these, such as
    parts of speech, are types: the same one goes on with the word before.
    """
    found: list[tuple[str, int, int]] = []
    kind, start = "", 0
    for i, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, name = tag.partition("-")
        if prefix not in _PREFIXES or not name:
            prefix, name = "I", "" if tag == OUTSIDE else tag
        if kind and (prefix in _BEGINS or name != kind):
            found.append((kind, start, i))
            kind = ""
        if not kind and name:
            kind, start = name, i
        if kind and prefix in _ENDS:
            found.append((kind, start, i + 1))
            kind = ""
    return found
