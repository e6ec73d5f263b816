"""The object API. Its objects record a plan, "train it pruned and quantized so"; `train()` runs the job's own pipeline.

    gpt = LangChain("bert-base-uncased", dataset="reviews.csv")
    model = QuantizeModel(PruneModel(gpt, pruning_ratio=0.5), quantization_bits=8)
    AutoHyperparameterOptimizer(model, epochs=10).train()
    evaluate_model(model, "test.csv")
    DeployModel(model, platform="ray").deploy()
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lc_ray import family, pipeline
from lc_ray.errors import DataError, DeployError, ModelError, SpecError
from lc_ray.evaluate.labelled import evaluate
from lc_ray.pipeline import RunResult
from lc_ray.predictor import Predictor, load
from lc_ray.progress import Mode
from lc_ray.spec import JobSpec, parse

_BITS = {8: "int8"}
_PLATFORMS = {"amazon sagemaker": "sagemaker", "google cloud": "vertex", "google vertex ai": "vertex"}


class LangChain:
    """A pretrained text model and what is planned for it.

    Args:
        model: Hugging Face id, folder, `package:NAME/path`, or a model loaded with `from_pretrained`.
        tokenizer: of a loaded model; not needed for a name.
        dataset: labelled rows: a path, a pandas DataFrame, a Hugging Face dataset, a Ray Dataset or a list of dicts.
        validation: held-out rows likewise, or a fraction or number of rows of the dataset; a tenth if not given.
        text: column with the text.
        target: column with the label.
        storage: folder in which runs are kept.

    Attributes:
        result: of the last `train()`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        dataset: Any = None,
        validation: Any = None,
        text: str = "text",
        target: str = "label",
        storage: str = "runs",
    ) -> None:
        self.storage = storage
        self.job: dict[str, Any] = {
            "model": {"base": self._base(model, tokenizer)},
            "data": {"inputs": [{"column": text, "modality": "text"}], "target": target},
            "train": {},
        }
        self.dataset, self.validation = dataset, validation
        self.result: RunResult | None = None

    def _base(self, model: Any, tokenizer: Any) -> str:
        if isinstance(model, str | Path):
            return str(model)
        if tokenizer is None:
            raise ModelError("a loaded model needs its tokenizer", fix="LangChain(model, tokenizer)")
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            weights = hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()[:16]
            kept = Path(self.storage) / "bases" / weights
            kept.mkdir(parents=True, exist_ok=True)
            for file in Path(folder).iterdir():
                (kept / file.name).write_bytes(file.read_bytes())
        return str(kept.resolve())

    @property
    def predictor(self) -> Predictor:
        """The trained model.

        Raises:
            ModelError: it was not trained yet.
        """
        if self.result is None:
            raise ModelError("this model was not trained yet", fix="AutoHyperparameterOptimizer(model).train() first")
        return load(self.result.artifact.path)

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers for texts or rows, from the trained model."""
        return self.predictor.predict(rows)


def PruneModel(model: LangChain, pruning_ratio: float = 0.5) -> LangChain:
    """Plan to remove a fraction of the prunable layers' parameters after half of the training, and to recover by distillation.

    Args:
        model: the plan so far; it stays as it is.
        pruning_ratio: fraction of those layers' parameters, in [0, 0.95]. The manifest gives units as well.

    Returns:
        The extended plan.
    """
    return _extended(model, "prune", {"parameters": pruning_ratio})


def QuantizeModel(model: LangChain, quantization_bits: int = 8) -> LangChain:
    """Plan to quantize the trained model.

    Args:
        model: the plan so far; it stays as it is.
        quantization_bits: 8.

    Returns:
        The extended plan.

    Raises:
        SpecError: another number of bits; the message lists those known.
    """
    if quantization_bits not in _BITS:
        raise SpecError(f"quantization_bits={quantization_bits} is not known", fix=f"known: {', '.join(map(str, _BITS))}")
    return _extended(model, "quantize", {"kind": _BITS[quantization_bits]})


def _extended(model: LangChain, section: str, fields: dict[str, Any]) -> LangChain:
    planned = copy.copy(model)
    planned.job, planned.result = {**model.job, section: fields}, None
    return planned


class AutoHyperparameterOptimizer:
    """Population-based search over the learning rate while fine-tuning.

    Args:
        model: a plan.
        epochs: of every member.
        dataset: labelled rows, if the model has none bound.
        validation: held-out rows, likewise.
        population: members; 1 trains without a search.
        **train: fields of the job's train section, for example `batch_size=16`, `workers={"count": 2}`.
    """

    def __init__(
        self, model: LangChain, epochs: float = 3, dataset: Any = None, validation: Any = None, population: int = 3, **train: Any
    ) -> None:
        self.model, self.epochs, self.population, self.train_fields = model, epochs, population, train
        self.dataset = dataset if dataset is not None else model.dataset
        self.validation = validation if validation is not None else model.validation

    def plan(self) -> JobSpec:
        """The job that `train` runs.

        Raises:
            DataError: no data was given.
        """
        if self.dataset is None:
            raise DataError("no labelled data was given", fix="AutoHyperparameterOptimizer(model, dataset=...) or LangChain(name, dataset=...)")
        job = {**self.model.job, "storage": self.model.storage}
        data = {**job["data"], "train": _source(self.dataset, self.model.storage)}
        if self.validation is not None:
            given = isinstance(self.validation, str | int | float)  # "10%", 200, 0.1 or a path: what the job file takes
            data["validation"] = self.validation if given else _source(self.validation, self.model.storage)
        if self.population > 1:
            job["search"] = {"population": self.population, "genes": {"train.learning_rate": {"log_uniform": [3e-5, 5e-4]}}}
        job |= {"data": data, "train": {"epochs": self.epochs, "segments": 2, "checkpoint_every": 500, **self.train_fields}}
        name = parse({**job, "name": "plan"})
        return name.model_copy(update={"name": f"model-{hashlib.sha256(name.model_dump_json().encode()).hexdigest()[:10]}"})

    def train(self, mode: Mode = "bars") -> RunResult:
        """Run the pipeline; the model then predicts, is evaluated and is deployed as trained."""
        self.model.result = pipeline.run(self.plan(), mode)
        return self.model.result


def evaluate_model(model: LangChain | Predictor | str | Path, dataset: Any, target: str | None = None) -> dict[str, Any]:
    """Metrics of a trained model on labelled rows.

    Args:
        model: a trained plan, a loaded model, or an artifact's folder.
        dataset: a path, a pandas DataFrame, a Hugging Face dataset, a Ray Dataset or a list of dicts.
        target: column with the label; the one trained on if not given.
    """
    if isinstance(model, LangChain):
        target = target or model.job["data"]["target"]
        model = model.predictor
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(model, _source(dataset, folder), target or "label")


class DeployModel:
    """A trained model and where it is to run.

    Args:
        model: a trained plan, or an artifact's folder.
        platform: a file in lc_ray/deploy, or a name of the article such as "Amazon SageMaker".

    Raises:
        DeployError: an unknown platform; the message lists the known ones.
    """

    def __init__(self, model: LangChain | str | Path, platform: str = "ray") -> None:
        known = family.kinds("deploy")
        kind = _PLATFORMS.get(platform.lower(), platform.lower())
        if kind not in known:
            raise DeployError(f"platform '{platform}' is not known here", fix=f"known platforms: {', '.join(known)}")
        self.model, self.platform = model, family.load("deploy", kind)

    def deploy(self) -> Any:
        """Deploy; returns a handle with `url`, `predict(rows)` and `delete()`."""
        path = self.model.predictor.artifact.path if isinstance(self.model, LangChain) else Path(self.model)
        return self.platform.deploy(path)


def _source(data: Any, storage: str) -> str:
    """Any accepted form of data as a file that a job can name. In-memory rows are kept under a name made of their content."""
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, list):
        return _kept(_json_lines(data), ".jsonl", storage)
    if hasattr(data, "to_arrow_refs"):
        import ray

        table = pa.concat_tables(ray.get(data.to_arrow_refs()))
    elif hasattr(data, "with_format"):
        table = data.with_format("arrow")[:]
    elif hasattr(data, "to_parquet"):
        try:
            table = pa.Table.from_pandas(data, preserve_index=False)
        except pa.ArrowException:  # a column of several types, of which some rows will be rejected
            return _kept(_json_lines(data.to_dict("records")), ".jsonl", storage)
    else:
        raise DataError(
            f"data of type {type(data).__name__} is not accepted",
            fix="give a path, a pandas DataFrame, a Hugging Face dataset, a Ray Dataset or a list of dicts",
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), sink)
    return _kept(sink.getvalue() if table.num_rows else b"", ".parquet", storage)


def _json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()


def _kept(content: Any, ending: str, storage: str) -> str:
    if not content:
        raise DataError("the dataset is empty")
    file = Path(storage).resolve() / "data" / f"{hashlib.sha256(content).hexdigest()[:16]}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_bytes(content)
    return str(file)
