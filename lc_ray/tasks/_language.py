"""What language modelling tasks share: tokens are predicted at some positions, and judged by their cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig

from lc_ray.errors import DataError, SpecError
from lc_ray.modalities import _hub, _text, text
from lc_ray.modalities._padding import padded
from lc_ray.spec import InputSpec, ModelSpec, module_name
from lc_ray.tasks import _task
from lc_ray.tasks._task import Batch, ColumnModel, Run

IGNORED = -100  # targets of padding, as PyTorch's cross-entropy has it
_PIECES = 8
_MOST = 700.0  # nats; the perplexity of more is no float
_ASKED: ContextVar[Tensor | None] = ContextVar("asked", default=None)


class Task(_task.Task):
    """Tokens of one text column.

    The model is given `asked` (rows, asked), positions; its outputs (rows, asked, vocabulary) are compared with the targets (rows, asked).
    """

    objective = "token_accuracy"
    LABELLED = False
    DECODES_SCORES = False

    @classmethod
    def divides(cls, target: str | None, columns: dict[str, Any]) -> bool:
        """Texts without a target, if their tokenizer tells where each token is from."""
        modality = single(columns)
        return target is None and type(modality) is text.Modality and bool(modality.tokenizer.is_fast)

    def bind(self, columns: dict[str, Any]) -> Self:
        """Take the tokenizer and the longest sequence of the one column."""
        ((column, modality),) = columns.items()
        self.column, self.modality = module_name(column), modality
        self.tokenizer, self.max_length = modality.tokenizer, int(modality.spec.max_length)
        return self

    @property
    def positions(self) -> int:
        """The longest sequence that the model is ever given, in tokens."""
        return padded(self.max_length)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of outputs (rows, asked, vocabulary) against targets (rows, asked)."""
        return cross_entropy(outputs, targets)

    def items(self, targets: Tensor) -> Tensor:
        """Tokens."""
        return (targets != IGNORED).sum()

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Kullback-Leibler divergence from the teacher's softened tokens, mean over the positions asked."""
        real = targets != IGNORED
        return _task.divergence(outputs[real], teacher[real], temperature)

    def score(self, run: Run, inputs: Batch, targets: Tensor) -> list[tuple[float, int, int]]:
        """Of each row: the sum of its tokens' cross-entropy, how many are predicted right, and how many there are.

        Rows are run in pieces, since outputs are as wide as the vocabulary; always in as many, because with ZeRO-3 all workers must
        call the model alike.
        """
        found: list[tuple[float, int, int]] = []
        for rows in np.array_split(np.arange(len(targets)), _PIECES):
            piece = torch.from_numpy(rows if len(rows) else np.zeros(1, np.int64))
            outputs = torch.from_numpy(run({name: tensor[piece.to(tensor.device)] for name, tensor in inputs.items()}))
            wanted = targets.cpu()[piece]
            nats = F.cross_entropy(outputs.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED).sum(1)
            right, real = (outputs.argmax(-1) == wanted).sum(1), (wanted != IGNORED).sum(1)
            found += list(zip(nats.tolist(), right.tolist(), real.tolist(), strict=True))[: len(rows)]
        return found

    def metrics(self, scores: list[Any], encoded: list[Any]) -> dict[str, float]:
        """Over all tokens of all rows: accuracy of the likeliest token, mean cross-entropy in nats, and its exponential.

        Raises:
            DataError: no row has a token to learn.
        """
        nats, right, tokens = (sum(column) for column in zip(*scores, strict=True))
        if not tokens:
            raise DataError("no token of any row is to be learned", fix="a conversation must end with the assistant; a text has 2 tokens or more")
        return {"token_accuracy": right / tokens, "loss": nats / tokens, "perplexity": math.exp(min(nats / tokens, _MOST))}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of outputs (rows, asked, vocabulary) against targets (rows, asked)."""
    real = targets != IGNORED
    return F.cross_entropy(outputs[real].float(), targets[real], reduction="sum") / real.sum().clamp(min=1)


def written(value: Any, what: str) -> str:
    """A target cell as text, numbers as they are written.

    Raises:
        DataError: missing, not text or not UTF-8.
    """
    if isinstance(value, str | bytes):
        try:
            value = _text.unicode(value)
        except DataError as error:
            raise DataError(f"the {what} is {error.what}") from None
    if _text.absent(value):
        raise DataError(f"the {what} is missing")
    if not isinstance(value := _text.written(value), str):
        raise DataError(f"the {what} is not text but {type(value).__name__}")
    return value


def single(columns: dict[str, Any]) -> Any:
    """The modality of the one text column.

    Raises:
        SpecError: several columns, or one that is not text.
    """
    if len(columns) != 1 or not isinstance(modality := next(iter(columns.values())), text.Modality):
        raise SpecError("this task reads one column of text; leave one in data.inputs", "data.inputs")
    return modality


def ask(asked: Iterable[Tensor], wanted: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Positions and target tokens of each row, padded to (rows, asked); at least one position is asked."""
    return pad(asked, 0), pad(wanted)


def pad(rows: Iterable[Tensor], value: int = IGNORED) -> Tensor:
    """Whole numbers of each row, padded to (rows, longest), at least one."""
    return pad_sequence([*rows, torch.zeros(1, dtype=torch.int64)], batch_first=True, padding_value=value)[:-1]


class Model(ColumnModel):
    """A Hugging Face model with the head it was pretrained with, which is applied only where the batch asks.

    Attributes:
        AUTO: the class of transformers that loads it.

    Args:
        model: with a head over the vocabulary.
        column: whose tensors it takes.
    """

    AUTO: ClassVar[Any]

    def __init__(self, model: Any, column: str) -> None:
        super().__init__(model, column)
        head = model.get_output_embeddings()
        if _only_asked not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(_only_asked)
        self.keep = [model.get_input_embeddings(), *(part for part in model.children() if part is not model.base_model)]

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Any) -> Self:
        """With pretrained weights from a folder or hub id, or random ones of that shape.

        Raises:
            ModelError: the source has no such model, only weights in pickle, or fewer positions than the job needs.
        """
        source = sources[inputs[0].column]
        with _hub.loading("language model", source):
            model = _hub.model(cls.AUTO, AutoConfig.from_pretrained(source, trust_remote_code=False), source, inputs[0].weights)
        text.need_positions(model, task.positions, source)
        text.know_tokens(model, source)
        return cls(model, module_name(inputs[0].column))

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Any) -> Self:
        """With weights yet to be loaded, from `config`."""
        model = cls.AUTO.from_config(AutoConfig.for_model(**config["model"]), trust_remote_code=False)
        return cls(model, config["column"])

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the tokens at the positions asked, (rows, asked, vocabulary).

        Args:
            batch: `input_ids` and `attention_mask` (rows, positions), and `asked` (rows, asked), without which all positions are.
        """
        own = _task.named(batch, self.column)
        with only(own.get("asked")):
            logits = cast(Tensor, self.model(**self.arguments(own)).logits)
            return _at(logits, _ASKED.get())  # which are left of a head that does not call its layer, as MobileBERT's

    def arguments(self, tensors: Batch) -> dict[str, Any]:
        """What the Hugging Face model is called with."""
        raise NotImplementedError


@contextmanager
def only(asked: Tensor | None) -> Iterator[None]:
    """Have models give logits for the positions asked (rows, asked) only; None asks all."""
    before = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(before)


def _only_asked(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    """Hidden states (rows, positions, width) on their way into the vocabulary's layer, by far the widest: those at the positions asked."""
    (hidden,), asked = arguments, _ASKED.get()
    _ASKED.set(None)  # until `only` ends
    return (_at(hidden, asked),)


def _at(vectors: Tensor, asked: Tensor | None) -> Tensor:
    """Of (rows, positions, width) those at the positions asked."""
    return vectors if asked is None else vectors.gather(1, asked.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))
