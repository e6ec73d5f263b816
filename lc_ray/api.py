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
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lc_ray import family, pipeline
from lc_ray.artifact import Artifact, read, sha256
from lc_ray.data.given import media_of, order_of, source_of
from lc_ray.deploy import _platform as platforms
from lc_ray.errors import DataError, ModelError, SpecError
from lc_ray.evaluate import labelled
from lc_ray.models.load import find
from lc_ray.pipeline import RunResult
from lc_ray.predictor import Predictor, load
from lc_ray.progress import Mode
from lc_ray.section import problems
from lc_ray.spec import InputSpec, JobSpec, digest, parse
from lc_ray.storage import names_in, storage_path

_BITS = {8: "int8"}
_MIDDLE, _SPREAD = 2.4, 4  # of the learning rates that members begin with, as a multiple of a job's, and what the outermost differ from it by


class Model:
    """A pretrained model and what is planned for it: the common part of `LangChain`, `ImageModel`, `AudioModel` and `MultimodalModel`.

    Args:
        inputs: sections of the job's `data.inputs`.
        dataset: labelled rows: a path, a table of pandas, Polars or Arrow, a dataset of Hugging Face, Ray or PyTorch, a list of dicts, or a dict of
            columns. Rows may also be tuples of the inputs, in their order, and the target.
        validation: held-out rows likewise, or a fraction or number of rows of the dataset; a tenth if not given.
        target: column with the label; None for a task that needs none.
        task: a file in lc_ray/tasks, or the job's task section.
        storage: folder in which runs are kept.
        fusion: section `model.fusion` of the job, for several inputs.

    Attributes:
        result: of the last `train()`.
    """

    def __init__(
        self,
        inputs: list[dict[str, Any]],
        dataset: Any = None,
        validation: Any = None,
        target: str | None = "label",
        task: str | dict[str, Any] = "classification",
        storage: str | Path = "runs",
        fusion: dict[str, Any] | None = None,
    ) -> None:
        self.storage = os.fspath(storage)
        self.job: dict[str, Any] = {
            "model": {"fusion": fusion or {}},
            "data": {"inputs": inputs, "target": target},
            "task": {"kind": task} if isinstance(task, str) else task,
            "train": {},
        }
        self.dataset, self.validation = dataset, validation
        self.result: RunResult | None = None
        self._loaded: Predictor | None = None

    def __repr__(self) -> str:
        columns = [f"{i['column']}: {i.get('base', i['modality'])}" for i in self.job["data"]["inputs"]]
        planned = [f"{section}: {self.job[section]}" for section in ("prune", "quantize") if section in self.job]
        return f"{type(self).__name__}({', '.join([*columns, *planned, 'trained' if self.result else 'not trained yet'])})"

    @property
    def predictor(self) -> Predictor:
        """The trained model, which is loaded once.

        Raises:
            ModelError: it was not trained yet.
        """
        found = self.artifact
        if self._loaded is None or self._loaded.artifact.digest != found.digest:
            self._loaded = load(found.path)
        return self._loaded

    @property
    def artifact(self) -> Artifact:
        """What training made.

        Raises:
            ModelError: it was not trained yet.
        """
        if self.result is None:
            raise ModelError("this model was not trained yet", fix="AutoHyperparameterOptimizer(model).train() first")
        return self.result.artifact

    def predict(self, rows: Any) -> list[dict[str, Any]]:
        """Answers for a list or DataFrame of values or rows, from the trained model. Pictures and sounds are decoded, bytes or base64, no names."""
        return self.predictor.predict(rows)


class LangChain(Model):
    """A pretrained text model and what is planned for it.

    Args:
        model: Hugging Face id, folder, `package:NAME/path`, or a model loaded with `from_pretrained`.
        tokenizer: of a loaded model; not needed for a name.
        text: column with the text; of `token_classification` with its words; several with bars between, such as `messages|tools`.
        max_length: longest text in tokens; longer ones are cut. As a job's if not given: 128, or 1024 of chats.
        chat: whether the column has conversations, which the model's chat template writes; for `task="text_generation", target=None`.
        **options: of `Model`: `dataset`, `validation`, `target`, `task`, `storage`.
    """

    def __init__(
        self, model: Any, tokenizer: Any = None, text: str = "text", max_length: int | None = None, chat: bool = False, **options: Any
    ) -> None:
        modality = "chat" if chat else _modality("text", options)
        column = {"column": text, "modality": modality, "base": _saved(model, tokenizer, options.get("storage", "runs"))}
        super().__init__([column | ({} if max_length is None else {"max_length": max_length})], **options)


class ImageModel(Model):
    """A pretrained vision model and what is planned for it.

    Args:
        model: torchvision name such as "resnet50", Hugging Face id, or folder.
        pretrained: whether it starts from the published weights; or a safetensors file with weights.
        image: column with the picture: bytes, a path or a URI. Of `image_generation`, whose pictures are targets, the one with requests' seeds.
        size: side in pixels to which pictures are resized.
        augment: whether training pictures are cropped and recoloured.
        **options: of `Model`.

    Raises:
        ModelError: the model or its weights can't be had; says where they were looked for.
    """

    def __init__(
        self,
        model: str | Path,
        pretrained: bool | str | Path = True,
        image: str = "image",
        size: int = 224,
        augment: bool = True,
        **options: Any,
    ) -> None:
        weights = "pretrained" if pretrained is True else "random" if pretrained is False else str(pretrained)
        base = _named(model)
        modality = _modality("image", options)
        column = {"column": image, "modality": modality, "base": base, "weights": weights, "size": size, "augment": augment}
        try:
            spec = InputSpec.model_validate(column)
        except ValidationError as error:
            raise SpecError(problems(error, InputSpec), "ImageModel") from None
        found = find(base)  # what can't be had is said now, not after the data is read
        if modality == "image":
            family.load("modalities", "image").Encoder.pretrained(spec, found)
        super().__init__([column], **options)


class AudioModel(Model):
    """A pretrained speech model and what is planned for it.

    Args:
        model: Hugging Face id, folder, or `package:NAME/path` of wav2vec2, HuBERT, Whisper, AST and their like.
        audio: column with the clip: bytes, a path or a URI.
        seconds: longest clip; longer ones are cut.
        augment: whether training clips are shifted, masked and noisy.
        **options: of `Model`.
    """

    def __init__(self, model: str | Path, audio: str = "audio", seconds: float = 10.0, augment: bool = False, **options: Any) -> None:
        column = {"column": audio, "modality": _modality("audio", options), "base": _named(model), "seconds": seconds, "augment": augment}
        super().__init__([column], **options)


class MultimodalModel(Model):
    """Several models, each for a column of its own, fused.

    Args:
        models: such as `[LangChain(...), ImageModel(...)]`; their data and targets are not looked at.
        fusion: concat, gated or attention.
        **options: of `Model`.

    Raises:
        SpecError: one of them is to be pruned or quantized, which is planned for the whole.
    """

    def __init__(self, models: list[Model], fusion: str = "concat", **options: Any) -> None:
        if any({"prune", "quantize"} & set(_planned(model).job) for model in models):
            raise SpecError("parts are not pruned or quantized alone", fix="PruneModel(MultimodalModel([...])), likewise QuantizeModel")
        super().__init__([i for model in models for i in model.job["data"]["inputs"]], fusion={"kind": fusion, "drop": 0.1}, **options)


def _modality(usual: str, options: dict[str, Any]) -> str:
    """Of a column, for the task that is asked for."""
    task = options.get("task")
    kind = task.get("kind") if isinstance(task, dict) else task
    return str(family.load("tasks", kind).Task.COLUMNS.get(usual, usual)) if isinstance(kind, str) else usual


def _saved(model: Any, tokenizer: Any, storage: str | Path) -> str:
    """A base model's name; of one that is loaded, the folder that it is saved to."""
    if not hasattr(model, "save_pretrained"):
        return _named(model)
    if tokenizer is None:
        raise ModelError("a loaded model needs its tokenizer", fix="LangChain(model, tokenizer)")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        content = {name: sha256(Path(folder, name)) for name in names_in(Path(folder))}
        kept = storage_path(storage) / "bases" / digest(content)
        kept.complete(Path(folder))
    return str(kept)


def _named(model: Any) -> str:
    """A base model's name, if that is what was given."""
    if not isinstance(model, str | Path):
        raise ModelError(f"not the name of a model but {type(model).__name__}", fix="give a name, or the folder that the model was saved to")
    return str(model)


def PruneModel(model: Model, pruning_ratio: float = 0.5) -> Model:
    """Plan to remove a fraction of the prunable layers' parameters after half of the training, and to recover by distillation.

    Args:
        model: the plan so far; it stays as it is.
        pruning_ratio: fraction of those layers' parameters, in [0, 0.95]; of each layer an eighth stays. The manifest gives units as well.

    Returns:
        The extended plan.
    """
    return _extended(model, "prune", {"parameters": pruning_ratio})


def QuantizeModel(model: Model, quantization_bits: int = 8) -> Model:
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
        raise SpecError(f"quantization_bits={quantization_bits!r} is not known", fix=f"known: {', '.join(map(str, _BITS))}")
    return _extended(model, "quantize", {"kind": _BITS[quantization_bits]})


def _extended(model: Model, section: str, fields: dict[str, Any]) -> Model:
    planned = copy.copy(_planned(model))
    planned.job, planned.result = {**model.job, section: fields}, None
    return planned


def _planned(model: Any) -> Model:
    """What was given, if it is a plan."""
    if not isinstance(model, Model):
        raise ModelError(f"not a plan but {type(model).__name__}", fix="give LangChain(model), ImageModel(name) or the like")
    return model


class AutoHyperparameterOptimizer:
    """Population-based search over the learning rate while fine-tuning.

    Args:
        model: a plan.
        epochs: of every member.
        dataset: labelled rows, if the model has none bound.
        validation: held-out rows, likewise.
        population: members; 1 trains without a search.
        **train: fields of the job's train section, for example `batch_size=16`, `workers={"count": 2}`. A search begins around a given
            `learning_rate`.
    """

    def __init__(
        self, model: Model, epochs: float = 3, dataset: Any = None, validation: Any = None, population: int = 3, **train: Any
    ) -> None:
        self.model, self.epochs, self.population, self.train_fields = _planned(model), epochs, population, train
        self.dataset = dataset if dataset is not None else model.dataset
        self.validation = validation if validation is not None else model.validation

    def plan(self) -> JobSpec:
        """The job that `train` runs.

        Raises:
            DataError: no data was given, or it can't be kept.
            SpecError: the plan's numbers or names are wrong; says each.
        """
        if self.dataset is None:
            raise DataError("no labelled data was given", fix="AutoHyperparameterOptimizer(model, dataset=...) or LangChain(name, dataset=...)")
        train = {"epochs": self.epochs, "segments": 2, "checkpoint_every": 500, **self.train_fields}
        job: dict[str, Any] = {**self.model.job, "storage": self.model.storage, "train": train}
        if self.population != 1:
            job["search"] = {"population": self.population, "genes": _around(1.0)}
        said = isinstance(self.validation, str | int | float)  # "10%", 200, 0.1 or a path: what the job file takes
        data = {**job["data"], **({"validation": self.validation} if said else {})}
        known = parse({**job, "data": {**data, "train": ""}})  # what is wrong is told before data is kept
        if known.search:
            job["search"] |= {"genes": _around(known.train.learning_rate * (1 if "learning_rate" in self.train_fields else _MIDDLE))}
        modalities = {i.column: i.modality for i in known.data.inputs}
        media, order = media_of(modalities, known.task.kind, known.data.target), order_of(modalities, known.data.target)
        data["train"] = source_of(self.dataset, self.model.storage, media, order)
        if self.validation is not None and not said:
            data["validation"] = source_of(self.validation, self.model.storage, media, order)
        job["data"] = data
        name = parse({**job, "name": "plan"})
        return name.model_copy(update={"name": f"model-{hashlib.sha256(name.model_dump_json().encode()).hexdigest()[:10]}"})

    def train(self, mode: Mode = "bars") -> RunResult:
        """Run the pipeline; the model then predicts, is evaluated and is deployed as trained."""
        self.model.result = pipeline.run(self.plan(), mode)
        return self.model.result


def _around(rate: float) -> dict[str, Any]:
    """Genes of a search for the learning rate."""
    return {"train.learning_rate": {"log_uniform": [rate / _SPREAD, rate * _SPREAD]}}


def evaluate_model(model: Model | Predictor | str | Path, dataset: Any, target: str | None = None, **reading: Any) -> dict[str, Any]:
    """Metrics of a trained model on labelled rows.

    Args:
        model: a trained plan, a loaded model, or an artifact's folder.
        dataset: labelled rows, as of a `Model`.
        target: column with the label; the one trained on if not given.
        **reading: `columns` and `encoding_errors`, as of a job's data.
    """
    how = labelled.parse(reading)
    if isinstance(model, Model):
        target = target or model.job["data"]["target"]
        model = model.predictor
    predictor = model if isinstance(model, Predictor) else load(model)
    target, modalities = target or "label", {i.column: i.modality for i in predictor.inputs}
    media = media_of(modalities, predictor.artifact.manifest.task["kind"], target)
    order = order_of(modalities, target if predictor.task.LABELLED else None)
    with tempfile.TemporaryDirectory() as folder:
        return labelled.evaluate(predictor, source_of(dataset, folder, media, order), target, how)


class DeployModel:
    """A trained model and where it is to run.

    Args:
        model: a trained plan, or an artifact's folder.
        platform: a file in lc_ray/deploy, or a name of the article such as "Amazon SageMaker".
        **settings: of the platform; those of `--set` of `lc-ray deploy`.

    Raises:
        DeployError: an unknown platform, or a setting that is missing, unknown or wrong.
    """

    def __init__(self, model: Model | str | Path, platform: str = "ray", **settings: Any) -> None:
        self.model, self.platform = model, platforms.find(platform)
        self.settings = platforms.parse(self.platform, settings)

    def plan(self) -> list[platforms.Call]:
        """What `deploy` calls there, with every argument; nothing is called."""
        found: list[platforms.Call] = self.platform.calls(self._artifact(), self.settings)
        return found

    def deploy(self) -> Any:
        """Deploy; returns a handle with `url`, `predict(rows)` and `delete()`."""
        return self.platform.deploy(self._artifact(), self.settings)

    def _artifact(self) -> Artifact:
        return self.model.artifact if isinstance(self.model, Model) else read(self.model)
