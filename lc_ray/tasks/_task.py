"""What all tasks share, and what a task file may override."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from lc_ray.errors import SpecError
from lc_ray.section import Section, problems
from lc_ray.spec import TaskSpec

Batch = dict[str, Tensor]  # tensors named `column.tensor`
Run = Callable[[Batch], NDArray[np.float32]]  # a model's forward on any engine
Parts = dict[str, dict[str, Any]]  # one row's prepared parts by column

PROBABILITY: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
TEXT: dict[str, Any] = {"type": "string"}


def named(batch: Batch, column: str) -> Batch:
    """A batch of one column's tensors, named without it."""
    return {name.removeprefix(f"{column}."): tensor for name, tensor in batch.items()}


def fields(**schemas: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of an object that has all of these."""
    return {"type": "object", "properties": schemas, "required": list(schemas)}


def divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of logits (rows, classes) from a teacher's, softened alike, a mean (Hinton et al. 2015, arXiv:1503.02531)."""
    student, parent = (F.log_softmax(x.float() / temperature, dim=-1) for x in (outputs, teacher))
    return F.kl_div(student, parent, log_target=True, reduction="sum") / max(1, len(outputs)) * temperature**2


class Task:
    """Base of all tasks. What is not overridden suits a task whose target is one row's label.

    Attributes:
        TYPE: Arrow type of a clean target.
        objective: the metric that is maximised.
        POSITIONS: whether every position of the only input column is labelled, not the row.
        LABELLED: whether rows need a target; of a fitted task, whether they have one.
        DECODES_SCORES: whether what `score` gives can be decoded, so that mistakes can be shown.
        STEPWISE: whether an answer may take several passes of the model, whose cost is measured as that of one.
        STRATIFIES: whether the same fraction of each target can be held out: other rows have it too.
        COLUMNS: modalities of its input columns, by those that such columns have for other tasks.
        Options: fields of the job's task section beside `kind`.
    """

    TYPE: ClassVar[pa.DataType] = pa.string()
    objective: ClassVar[str] = ""
    POSITIONS: ClassVar[bool] = False
    LABELLED: bool = True
    DECODES_SCORES: ClassVar[bool] = True
    STEPWISE: ClassVar[bool] = False
    STRATIFIES: ClassVar[bool] = False
    COLUMNS: ClassVar[dict[str, str]] = {}
    Options: ClassVar[type[Section]] = Section

    @classmethod
    def options(cls, spec: TaskSpec) -> Any:
        """The job's task section as this task's options.

        Raises:
            SpecError: an unknown field, or a value that does not fit.
        """
        try:
            return cls.Options.model_validate(spec.model_extra or {})
        except ValidationError as error:
            raise SpecError(problems(error, cls.Options, "task."), f"task '{spec.kind}'") from None

    @classmethod
    def divides(cls, target: str | None, columns: dict[str, Any]) -> bool:
        """Whether texts that are longer than a row may be are several rows: all of their tokens are learned.

        Args:
            target: the column that holds it, if there is one.
            columns: a `Modality` per column.
        """
        return False

    @staticmethod
    def clean(value: Any) -> Any:
        """A raw target cell as a clean one of `TYPE`. DataError says why not."""
        return value

    @classmethod
    def reader(cls, options: Any, columns: dict[str, Any]) -> Any:
        """What `read` is to go by: the job's options, or a task that took from the input columns' modalities what they leave open."""
        return options

    @classmethod
    def read(cls, value: Any, folder: Path | str | None, options: Any) -> Any:
        """As `clean`, for a target that may be a file's name and is prepared as the options say.

        Args:
            value: a raw target cell.
            folder: the data file's, in which a path is looked for.
            options: what `reader` gave, or a fitted task, whose attributes have the options' names.
        """
        return cls.clean(value)

    @staticmethod
    def placed(value: Any, others: list[Any]) -> Any:
        """A raw target cell as `read` takes it, where that depends on the raw cells of the inputs."""
        return value

    @staticmethod
    def check(target: Any, values: dict[str, Any]) -> None:
        """Whether a clean target fits the row's clean values by column. DataError says why not."""

    @classmethod
    def fit(cls, targets: Iterable[Any], options: Any, columns: dict[str, Any]) -> Self:
        """From the training rows' clean targets, the options, and the input columns' modalities."""
        return cls()

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return {}

    def bind(self, columns: dict[str, Any]) -> Self:
        """Take what is needed of the input columns' modalities, such as a tokenizer, before targets are encoded or answers decoded."""
        return self

    def named(self, find: Callable[[list[str]], dict[str, str]]) -> Self:
        """With names for labels that are numbers or codes, where `find` gives one for each of those it is given."""
        return self

    def encode(self, target: Any) -> Any:
        """A clean target as a number or numbers. DataError says why not."""
        return target

    def collate(self, encoded: list[Any]) -> Any:
        """Encoded targets of a batch as a tensor, or a dict of tensors."""
        return torch.zeros(len(encoded))

    def teach(self, inputs: Batch, targets: Any, random: torch.Generator, training: bool) -> tuple[Batch, Any]:
        """What the model is given and judged by, where that is more than the inputs and their targets: masks, noise, an answer's beginning."""
        return inputs, targets

    def head(self, width: int) -> nn.Module:
        """The layer after the fused encoders: (batch, width) → (batch, ...)."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Mean over the batch: its rows, or their `items`."""
        raise NotImplementedError

    def items(self, targets: Any) -> Tensor | None:
        """How many items of the rows, such as tokens, `loss` and `distill` are means over; None where it is the rows themselves."""
        return None

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Any, temperature: float) -> Tensor:
        """Mean distance from the teacher's outputs."""
        raise NotImplementedError

    def outputs(self, run: Run, inputs: Batch) -> NDArray[np.float32]:
        """One pass of the model over a batch that was taught."""
        return run(inputs)

    def score(self, run: Run, inputs: Batch, targets: Any) -> list[Any]:
        """What `metrics` needs of each row of a batch that was taught. Calls the model as often on every worker: with ZeRO-3 all take part."""
        return self.answer(run, inputs)

    def answer(self, run: Run, inputs: Batch) -> list[Any]:
        """What `decode` needs of each row of a batch."""
        return list(run(inputs))

    def metrics(self, scores: list[Any], encoded: list[Any]) -> dict[str, float]:
        """{name: value} over all rows, from what `score` gave and the encoded targets, an item per row each."""
        raise NotImplementedError

    def decode(self, output: Any, parts: Parts) -> dict[str, Any]:
        """One row's output, and its prepared parts by column, as a JSON answer, the gist of it first."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON Schema of what `decode` gives; see `fields`."""
        raise NotImplementedError

    def mistake(self, answer: dict[str, Any], target: Any) -> float | None:
        """None if a clean target is met, else how sure of its error the answer is, in [0, 1]."""
        return None


class ColumnModel(nn.Module):
    """A model of transformers that takes the tensors of one column.

    Args:
        model: of transformers.
        column: name of its tensors.
    """

    def __init__(self, model: Any, column: str) -> None:
        super().__init__()
        self.model, self.column = model, column

    @property
    def config(self) -> dict[str, Any]:
        """What `rebuild` needs, as JSON."""
        return {"column": self.column, "model": self.model.config.to_dict()}
