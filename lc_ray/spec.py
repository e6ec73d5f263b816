"""The job file: one frozen section per stage. What is not written takes the default shown here; what is unknown is an error."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lc_ray.errors import SpecError
from lc_ray.section import Base, Section, load, nearest, override, problems
from lc_ray.serving import ServeSpec
from lc_ray.units import Count, Fraction, Points, Seconds, fraction, share

_NEW = 5e-4  # learning rate where nothing is pretrained: with that of pretrained models little would be learned
_CHAT = 1024  # tokens of a conversation: a system's prompt and tools take hundreds
UNREAD, _OWN_ENCODERS = ("seed",), ("tabular",)  # modalities of columns that only requests have; that need no base model
_TAKEN = ("_chunk", "_column", "_error", "_file", "_order", "_place", "_reason", "_row", "_size", "_source", "_target", "_task", "_value")
_MINIMISED = ("loss", "error", "perplexity", "distance", "mae", "mse", "rmse", "l1", "wer", "cer")  # of metrics, better the smaller


class FusionSpec(Section):
    """How the encoded columns of a row become one vector."""

    kind: Literal["concat", "gated", "attention"] = Field(
        "concat",
        description="concat: pooled vectors side by side; gated: their weighted sum, the weights computed from them; "
        "attention: a transformer over the positions of all columns",
    )
    width: int = Field(256, ge=8, multiple_of=8, description="length of the fused vector")
    drop: Fraction = Field(0.0, description="modality dropout: how often each column of a training row is hidden; never all of them")


class ModelSpec(Section):
    """The pretrained model to start from, and what joins its encoders."""

    base: Base | None = Field(
        None,
        description="Hugging Face id, folder or its URI, package:NAME/path, or a torchvision model such as resnet50; for columns without their own",
    )
    weights: Base = Field("pretrained", description="pretrained, random, or a safetensors file for a torchvision model")
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="precision of the matrix products in training; weights stay fp32")
    freeze: tuple[str, ...] = Field((), description="parts of parameter names that are not trained, for example [embeddings]")
    dropout: Fraction = Field(0.1, description="dropout before the head")
    fusion: FusionSpec = FusionSpec()


class InputSpec(Section):
    """One input column; `meta.title` is one within another's cells, and `question|answer` are two as one text."""

    column: str
    modality: str = Field("text", description="a file in lc_ray/modalities")
    base: Base | None = Field(None, description="this column's base model; model.base if not given")
    weights: Base | None = Field(None, description="likewise; model.weights if not given")
    rate: float = Field(1.0, ge=0, description="factor on train.learning_rate for this column's encoder; 0 freezes it")
    optional: bool | None = Field(None, description="whether a row may lack it, and is then used without; yes if there are other inputs")
    path: str = Field("{}", description="image, audio: what a cell that holds a name becomes, for example images/{}.png; from the data file's folder")
    max_length: int = Field(
        128,
        ge=2,
        description="text: longest sequence in tokens, 1024 of chats if not given; longer ones are cut, prompts and chats at their start, or, "
        "without a target, several rows",
    )
    size: int = Field(224, ge=8, le=4096, description="image: side in pixels to which it is resized")
    seconds: Seconds = Field(10.0, description="audio: longest clip; longer ones are cut")
    augment: bool = Field(False, description="vary training rows: images are cropped and recoloured; audio is shifted, masked and noisy")

    @model_validator(mode="before")
    @classmethod
    def _chat(cls, given: Any) -> Any:
        return {"max_length": _CHAT} | given if isinstance(given, dict) and given.get("modality") == "chat" else given


class RejectSpec(Section):
    """What to do with rows that can't be used. They are kept in rejects/ with their reason."""

    limit: Fraction = Field(0.01, description="the run fails when more than this fraction of the rows is rejected")


class ReadSpec(Section):
    """How files of rows are read."""

    columns: tuple[str, ...] | None = Field(None, description="names of the columns, for files without a header: CSV, TSV, JSON lists of lists")
    encoding_errors: Literal["strict", "replace", "windows-1252"] = Field("strict", description="text that is not UTF-8: rejected, marked or read so")


class DataSpec(ReadSpec):
    """Labelled rows, where from, and how they are split."""

    train: str = Field(
        description="CSV, TSV, JSON Lines, Parquet, WebDataset tar, a saved Hugging Face dataset, or a folder of pictures, sounds or texts: "
        "a file, a folder, some of its files as folder/train-*, a URI (s3://, gs://, hdfs://) or package:NAME/path"
    )
    validation: str | int | float = Field("10%", description="another source, or a fraction or a number of rows to hold out")
    split: str | None = Field(None, description="a column; rows with equal values in it (a speaker, a patient, a picture) stay on one side")
    stratify: bool = Field(False, description="hold out the same fraction of every label")
    inputs: tuple[InputSpec, ...] = Field(min_length=1)
    target: str | None = Field(None, description="the column that holds the label; some tasks need none")
    rows: Count | None = Field(None, ge=1, description="use at most so many rows, chosen by a hash of their content")
    duplicates: Literal["keep", "drop"] = Field("keep", description="equal rows: keep all (on one side of the split) or the first")
    reject: RejectSpec = RejectSpec()

    @property
    def sources(self) -> dict[str, str]:
        """Of the training rows, and of the validation rows if these have one of their own."""
        return {"train": self.train} | ({"validation": self.validation} if isinstance(self.validation, str) else {})

    @model_validator(mode="after")
    def _distinct(self) -> DataSpec:
        columns = [i.column for i in self.inputs]
        if self.target in columns:
            raise ValueError(f"target: '{self.target}' is an input too")
        if taken := {*columns, self.target or "", self.split or ""}.intersection(_TAKEN):
            raise ValueError(f"a column can't be named {', '.join(sorted(taken))}, as rows have such cells beside the data's own: rename it")
        if self.split and self.stratify:
            raise ValueError("stratify: can't hold out the same fraction of every label and keep the rows of a split column together")
        alike = len({re.sub(r"\W", "_", c).rstrip("_") for c in columns}) < len(columns)
        if alike and len({module_name(c) for c in columns}) < len(columns):
            raise ValueError(f"inputs: columns must differ in letters, digits or _ (got {', '.join(columns)})")
        return self

    @field_validator("validation", mode="before")
    @classmethod
    def _number_or_source(cls, value: Any) -> Any:
        try:
            found = share(value)
        except ValueError:
            if not isinstance(value, str):
                raise
            return value
        if found <= 0 or (isinstance(found, float) and found >= 1):
            raise ValueError(f"expected a part of the rows, such as 10%, or a number of them, got {value!r}")
        return found


class TaskSpec(Section):
    """What the model is to learn. Further fields are the task's own: see `Options` in its file."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field("classification", description="a file in lc_ray/tasks")


class WorkersSpec(Section):
    """The processes that train one model together."""

    count: int = Field(1, ge=1)
    cpu: float | None = Field(None, gt=0, description="CPUs each, also its threads; not given: one on a cluster, a share of all of a machine alone")
    gpu: float = Field(0.0, ge=0, le=1, description="GPUs each: one, or of a process that trains alone a part, so that members share a GPU")
    max_failures: int = Field(2, ge=0, description="restarts of a segment, each from its last checkpoint; none where it would fail again")


class ZeroSpec(Section):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020)."""

    stage: Literal[0, 1, 2, 3] = Field(1, description="what is sharded over the workers: 1 optimizer states, 2 gradients too, 3 parameters too")
    offload: Literal["none", "cpu"] = Field("none", description="where optimizer states are kept while on GPUs")


class TrainSpec(Section):
    """Fine-tuning, cut into segments: each ends on disk, and a search decides between them."""

    epochs: float = Field(3.0, gt=0)
    batch_size: int = Field(32, ge=1, description="rows per step over all workers")
    accumulate: int = Field(1, ge=1, description="parts of a step's rows, computed one after the other for less memory")
    learning_rate: float = Field(5e-5, gt=0, description="peak; 5e-4 if not given and no column has a pretrained model")
    warmup: Fraction = Field(0.1, description="part of each phase (dense, pruned) in which the learning rate rises; then it falls linearly to 0")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, of weights but not of biases and normalisation")
    clip_norm: float = Field(1.0, gt=0, description="gradient norm above which gradients are scaled down")
    segments: int = Field(1, ge=1)
    checkpoint_every: Count = Field(500, description="steps between checkpoints inside a segment; 0 for none")
    workers: WorkersSpec = WorkersSpec()
    zero: ZeroSpec = ZeroSpec()

    @property
    def micro_batch(self) -> int:
        """Rows over all workers of one forward and backward pass."""
        return self.batch_size // self.accumulate


class RecoverSpec(Section):
    """Recovery after pruning, by distillation from the unpruned parent (Hinton et al. 2015)."""

    distill: Fraction = Field(0.5, description="weight of the parent's soft labels against the true ones; true for 0.5, false for none")
    temperature: float = Field(2.0, gt=0)

    @field_validator("distill", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: 0.5, False: 0.0}[value] if isinstance(value, bool) else value


class PruneSpec(Section):
    """Structured pruning between segments."""

    kind: str = Field("structured", description="a file in lc_ray/prune")
    parameters: Fraction = Field(0.5, description="fraction of the prunable layers' parameters to remove; of each layer an eighth stays")
    start: Fraction = Field(0.5, gt=0, lt=1, description="part of training after which pruning starts")
    end: Fraction | None = Field(None, description="part of training at which all is removed; the start if not given")
    calibration: Count = Field(256, description="training rows from which importance is estimated, over all workers")
    recover: RecoverSpec = RecoverSpec()

    @model_validator(mode="after")
    def _order(self) -> PruneSpec:
        if self.end is not None and self.end < self.start:
            raise ValueError("end comes before start")
        if self.parameters > 0.95:
            raise ValueError("parameters: more than 95% can't be removed")
        return self


class SearchSpec(Section):
    """Population-based training (Jaderberg et al. 2017)."""

    kind: Literal["pbt"] = Field("pbt", description="population-based training")
    population: int = Field(4, ge=2)
    genes: dict[str, dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]] = Field(
        description="field of train or prune, or model.dropout → its range: {log_uniform: [low, high]}, {uniform: [low, high]} or {choice: [a, b]}"
    )
    quantile: float = Field(0.25, gt=0, le=0.5, description="part of the population replaced by copies of the best after each segment, at least one")
    objective: str | None = Field(None, description="validation metric to maximise; the task's own if not given")

    @field_validator("objective")
    @classmethod
    def _grows(cls, objective: str | None) -> str | None:
        if objective and minimised(objective):
            raise ValueError(f"'{objective}' is better the smaller it is, and a search looks for the largest: leave it out for the task's own metric")
        return objective

    @field_validator("genes")
    @classmethod
    def _known(cls, genes: dict[str, dict[str, tuple[Any, ...]]]) -> dict[str, dict[str, tuple[Any, ...]]]:
        if not genes:
            raise ValueError("no genes: name at least one field to search, for example train.learning_rate")
        for path, draw in genes.items():
            if len(draw) != 1 or next(iter(draw)) not in ("uniform", "log_uniform", "choice"):
                raise ValueError(f"{path}: expected one of uniform, log_uniform, choice; got {', '.join(draw) or 'nothing'}")
            how, values = next(iter(draw.items()))
            if how != "choice":
                low, high = (fraction(v) for v in values) if len(values) == 2 else (1.0, 0.0)
                if not low < high < float("inf") or (how == "log_uniform" and low <= 0):
                    raise ValueError(f"{path}: {how} needs [low, high] with low < high" + (" and low > 0" if how == "log_uniform" else ""))
        return genes


class QuantizeSpec(Section):
    """Post-training quantization of the winner."""

    kind: str = Field("int8", description="a file in lc_ray/quantize")
    calibration: Count = Field(256, ge=1, description="training rows from which ranges of activations are taken")


class EvaluateSpec(Section):
    """How models are compared."""

    rows: Count = Field(2000, ge=1, description="held-out rows, at most, on which every model is measured; of a search, others than it chose by")
    rounds: int = Field(5, ge=1, description="interleaved rounds of timing; the median is reported")


class AcceptSpec(Section):
    """The gate: what the finished model must be, beside the dense fine-tuned one."""

    max_drop: Points = Field(0.01, description="largest loss of the task's own metric")
    min_speedup: float = Field(1.5, ge=0, description="least throughput at the serving batch, as a multiple; of one pass, where answers take many")


class JobSpec(Section):
    """One job: data and a pretrained model in, a small and fast model out."""

    name: str = Field("job", max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of the run and the model: letters, digits, . _ -")
    seed: int = Field(0, ge=0, lt=2**32)
    storage: str = Field("runs", description="folder that all nodes mount, or a bucket (s3://, gs://, hdfs://); the run is kept in storage/name")
    model: ModelSpec
    data: DataSpec
    task: TaskSpec = TaskSpec()
    train: TrainSpec = TrainSpec()
    prune: PruneSpec | None = None
    search: SearchSpec | None = None
    quantize: QuantizeSpec | None = None
    evaluate: EvaluateSpec = EvaluateSpec()
    accept: AcceptSpec | None = None
    serve: ServeSpec = ServeSpec()

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        if self.prune is not None and self.train.segments < 2:
            raise ValueError("prune: pruning happens between segments; set train.segments to at least 2")
        if self.accept is not None and self.accept.min_speedup > 1 and self.prune is None and self.quantize is None:
            wanted = f"the finished model can't be {self.accept.min_speedup:g} times as fast as the fine-tuned one, as it is that one"
            raise ValueError(f"accept.min_speedup: {wanted}: add prune or quantize, or set accept.min_speedup to 0")
        workers, parts = self.train.workers.count, self.train.accumulate
        if self.train.batch_size % (workers * parts):
            each = f" in {parts} parts each" if parts > 1 else ""
            raise ValueError(f"train.batch_size: {self.train.batch_size} rows do not divide among {workers} workers{each}")
        if 0 < self.train.workers.gpu < 1 < workers:
            raise ValueError("train.workers.gpu: workers of one model need a GPU each, as NCCL has it: set gpu to 1, or count to 1")
        for path in self.search.genes if self.search else ():
            self.get(path)
        for i in self.data.inputs:
            if i.modality not in _OWN_ENCODERS and (i.base or self.model.base) is None:
                raise ValueError(f"data.inputs: column '{i.column}' has no base model; set model.base, or base of that column")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder on this machine: storage/name, or runs/name if storage is a bucket, which has a copy of it."""
        return Path(os.path.realpath(os.path.expanduser("runs" if "://" in self.storage else self.storage))) / self.name

    @property
    def members(self) -> int:
        """Of the population; one where there is no search."""
        return self.search.population if self.search else 1

    def inputs(self) -> list[InputSpec]:
        """The input columns, with what they take from the model section filled in."""

        def filled(i: InputSpec) -> InputSpec:
            base = i.base or (None if i.modality in _OWN_ENCODERS else self.model.base)
            optional = (len(self.data.inputs) > 1 or i.modality in UNREAD) if i.optional is None else i.optional
            return i.model_copy(update={"base": base, "weights": i.weights or self.model.weights, "optional": optional})

        return [filled(i) for i in self.data.inputs]

    def starts(self) -> list[float]:
        """The parts of training, from 0 to 1, at which segments start, and 1. One of them is the start of pruning."""
        count, dense = self.train.segments, self.dense_segments()
        cut = self.prune.start if self.prune else 1.0
        return [cut * s / dense if s <= dense else cut + (1 - cut) * (s - dense) / (count - dense) for s in range(count + 1)]

    def dense_segments(self) -> int:
        """How many segments come before pruning; all of them if there is none."""
        return max(1, min(self.train.segments - 1, round(self.train.segments * self.prune.start))) if self.prune else self.train.segments

    def get(self, path: str) -> Any:
        """Value at a dotted path. Raises ValueError naming the part that does not exist and the nearest that does."""
        value: Any = self
        for part in path.split("."):
            fields = list(type(value).model_fields) if isinstance(value, BaseModel) else []
            if part not in fields:
                raise ValueError(f"'{path}': no field '{part}'{nearest(part, fields)}")
            value = getattr(value, part)
        return value

    def set(self, values: dict[str, Any]) -> JobSpec:
        """A copy with dotted paths replaced, validated again."""
        return parse(override(self.model_dump(mode="json"), values))


def minimised(metric: str) -> bool:
    """Whether a metric is better the smaller it is, by the last word of its name."""
    return metric.rpartition("_")[2] in _MINIMISED


@functools.cache
def module_name(column: str) -> str:
    """A column's name as a PyTorch module, and a tensor's prefix, may be named: not as what every module has, such as `type`."""
    from torch import nn  # which reading a job does not need

    name = re.sub(r"\W", "_", column)
    return f"{name}_" if hasattr(nn.ModuleDict, name) or name == "training" else name


def parse(tree: Any, where: str = "job") -> JobSpec:
    """Validate a nested dict.

    Raises:
        SpecError: every problem found, each with its field; an unknown field with the nearest known one.
    """
    if not isinstance(tree, dict):
        raise SpecError("expected a mapping of sections (model, data, ...)", where, "see `lc-ray init` for a commented job file")
    try:
        job = JobSpec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(problems(error, JobSpec, root="job"), where, "`lc-ray schema` prints every field") from None
    if "learning_rate" in job.train.model_fields_set or any(i.base and i.weights != "random" for i in job.inputs()):
        return job
    return job.model_copy(update={"train": job.train.model_copy(update={"learning_rate": _NEW})})


def read(path: str | Path, values: dict[str, Any] | None = None) -> JobSpec:
    """Read a YAML job file, with dotted paths overridden by `values`."""
    try:
        tree = load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"can't read the job file: {error.strerror}", str(path)) from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for other text than UTF-8, and dates that are none
        raise SpecError(f"not valid YAML: {error}", str(path)) from None
    return parse(override(tree, values) if values and isinstance(tree, dict) else tree, str(path))


def digest(*parts: Any) -> str:
    """Short name for anything made of JSON and sections: equal content, equal name."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
