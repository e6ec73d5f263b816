"""Find a pretrained model, build the trainable one around it, write it as an artifact, and read it back."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import safetensors.torch
import torch
from torch import Tensor, nn

from lc_ray import artifact, family
from lc_ray.artifact import Artifact, Manifest
from lc_ray.errors import ArtifactError, ModelError, first_line
from lc_ray.models.fusion import FusionModel
from lc_ray.models.shapes import Attributes, Shapes, apply
from lc_ray.spec import InputSpec, ModelSpec, module_name
from lc_ray.storage import cached, storage_path

# Open models that stand in for closed or unwieldy names of the article; the choice is always logged.
ALIASES = {"gpt3": "openai-community/gpt2", "gpt-3": "openai-community/gpt2"}
FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]  # of a model, that loading reads: never a pickle
_HUB_ANSWERS = 5.0  # seconds
_log = logging.getLogger(__name__)


def find(name: str) -> str:
    """A base model's folder. A model of the hub is downloaded once, and then found in the cache even without a network.

    Args:
        name: hub id, folder, URI of one (s3://, gs://, hdfs://), `package:NAME/path`, an alias, or a torchvision model, whose name is returned
            as it is.

    Raises:
        ModelError: a path, package or hub id that does not exist, or the hub can't be reached and the model was not downloaded before.
    """
    if name in ALIASES:
        _log.warning("'%s' can't be had: using the open model '%s' in its place", name, ALIASES[name])
        name = ALIASES[name]
    if name.startswith("package:"):
        return str(package_path(name))
    if "://" in name:
        return _copied(name)
    if (folder := Path(os.path.expanduser(name))).exists():
        if (folder / artifact.MANIFEST).exists() and not (folder / "config.json").exists():
            raise ModelError("an artifact, which is trained already, and no base model", name, "give the folder or name that it was trained from")
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError("no such folder", name, "give a folder with config.json, a Hugging Face id, or package:NAME/path")
    return name if _in_torchvision(name) else _download(name)


def _in_torchvision(name: str) -> bool:
    import torchvision  # slow to import, and most names are folders

    return "/" not in name and name in torchvision.models.list_models()


@functools.lru_cache(maxsize=8)
def _copied(name: str) -> str:
    """The copy of a bucket's folder."""
    try:
        return str(cached(storage_path(name), FILES))
    except FileNotFoundError:
        raise ModelError("no model there", name, "give a folder with config.json and model.safetensors") from None
    except OSError as error:
        raise ModelError(f"can't be read: {first_line(error)}", name) from None


@functools.lru_cache(maxsize=8)
def _download(name: str) -> str:
    """The folder of a hub model. The hub is tried once: its client would try each file for half a minute."""
    try:
        httpx.head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_ANSWERS)
        offline = False
    except httpx.TransportError:
        offline = True
    try:
        return str(huggingface_hub.snapshot_download(name, allow_patterns=FILES, local_files_only=offline))
    except (OSError, ValueError, httpx.HTTPError) as error:
        known = "it is not on this machine, and the hub can't be reached" if offline else first_line(error)
        raise ModelError(f"no such model: {known}", name, "check the name and the network, or give a folder or package:NAME/path") from None


def package_path(name: str) -> Path:
    """Path of `package:NAME/path`, without importing the package.

    Raises:
        ModelError: no such package, or no such path in it.
    """
    package, _, inside = name.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # the package that it would be in is missing, or none can have such a name
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"no package '{package}' is installed", name, f"pip install {package.replace('_', '-')}")
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    if not path.exists():
        raise ModelError(f"package '{package}' has no '{inside}'", name)
    return path


def modalities(inputs: list[InputSpec], processors: Path | None = None) -> dict[str, Any]:
    """A `Modality` per column, from its base model, or from an artifact's processor folder with a subfolder per column."""
    return {
        i.column: family.load("modalities", i.modality).Modality(i, processors / module_name(i.column) if processors else _source(i))
        for i in inputs
    }


def _source(spec: InputSpec) -> str:
    found = find(spec.base) if spec.base else ""
    if found and "/" not in found and getattr(family.load("modalities", spec.modality).Modality, "MEDIA", "") != "image":
        raise ModelError("a model of torchvision, which sees pictures alone", found, f"give column '{spec.column}' a `base` of its own")
    return found


def pretrained(spec: ModelSpec, inputs: list[InputSpec], task: Any) -> nn.Module:
    """The task's model, with pretrained weights: encoders by column with a new head, unless the task's file defines another.

    Raises:
        ModelError: a base can't be found or loaded.
    """
    sources = {i.column: _source(i) for i in inputs}
    return freeze(_quietly(lambda: _kind(task).pretrained(spec, inputs, sources, task)), spec.freeze, inputs)


def _kind(task: Any) -> Any:
    """Class of a task's model."""
    return getattr(importlib.import_module(type(task).__module__), "Model", FusionModel)


def freeze(model: nn.Module, parts: tuple[str, ...], inputs: list[InputSpec]) -> nn.Module:
    """Stop training parameters whose name contains one of `parts`, and encoders whose rate is 0; those that a model itself keeps as they are stay so.

    Raises:
        ModelError: a part that no parameter's name contains, a rate of what is no encoder, or nothing is left to train.
    """
    names = [n for n, _ in model.named_parameters()]
    encoders = {i.column: f"encoders.{module_name(i.column)}." for i in inputs}
    for i in inputs:
        if i.rate != 1 and not any(n.startswith(encoders[i.column]) for n in names):
            raise ModelError(f"data.inputs: '{i.column}' has no encoder of its own here, and no rate", fix="use train.learning_rate, model.freeze")
    for part in parts:
        if not any(part in n for n in names):
            raise ModelError(f"model.freeze: no parameter's name contains '{part}'", fix=f"for example {names[0]}")
    parts = (*parts, *(encoders[i.column] for i in inputs if i.rate == 0))
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError("model.freeze and rates of 0 leave nothing to train")
    return model


def train(model: nn.Module) -> None:
    """Put a model in training mode. Batch normalisation whose weights are frozen keeps its statistics, too: what is behind it sees what it will."""
    for part in model.train().modules():
        own = list(part.parameters(recurse=False))
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and own and not any(parameter.requires_grad for parameter in own):
            part.eval()


def describe(model: nn.Module, shapes: Shapes, attributes: Attributes) -> dict[str, Any]:
    """A manifest's `architecture`."""
    return {"config": model.config, "shapes": shapes, "attributes": attributes}


def rebuild(manifest: Manifest) -> nn.Module:
    """The unloaded model of a manifest, pruned shapes included."""
    known, task = manifest.architecture, task_of(manifest)
    return apply(_kind(task).rebuild(known["config"], task), known["shapes"], known["attributes"])


def save(folder: Path, manifest: Manifest, weights: dict[str, Tensor], columns: dict[str, Any]) -> Artifact:
    """Write weights and processors as an artifact."""

    def fill(partial: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in untied(weights).items()}
        safetensors.torch.save_file(tensors, partial / artifact.WEIGHTS)
        for column, modality in columns.items():
            modality.save(partial / "processor" / module_name(column))

    return artifact.write(folder, manifest, fill)


def untied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without those that are another one by a second name, as an output layer may be the embedding."""
    first: dict[Any, str] = {}
    return {name: w for name, w in weights.items() if not w.numel() or first.setdefault((w.data_ptr(), w.shape, w.stride()), name) == name}


def open_model(found: Artifact) -> nn.Module:
    """The PyTorch model of an artifact, in evaluation mode and fp32.

    Raises:
        ArtifactError: weights that do not fit the manifest's shapes.
    """
    model = rebuild(found.manifest)
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # the first one of each
    try:
        weights = safetensors.torch.load_file(found.path / artifact.WEIGHTS)
        tied = {n: weights[names[id(p)]] for n, p in model.named_parameters(remove_duplicate=False) if names[id(p)] in weights}
        model.load_state_dict(weights | tied)
    except (RuntimeError, OSError) as error:
        raise ArtifactError(f"the weights do not fit the manifest: {error}", str(found.path)) from None
    return model.eval()


def export(found: Artifact, folder: str | Path) -> Path:
    """Write a model of one column in Hugging Face format, to be the base of another job or to be used without lc_ray.

    Args:
        found: an artifact; of a quantized one, the weights before.
        folder: made if missing.

    Raises:
        ModelError: pruned, of several columns, or not made of a Hugging Face model.
    """
    if found.manifest.architecture["shapes"]:
        raise ModelError("a pruned model has no Hugging Face format", str(found.path), "export the dense one")
    whole: list[Any] = [part for part in open_model(found).modules() if hasattr(part, "save_pretrained")]
    columns = modalities(inputs_of(found.manifest), found.path / "processor")
    if not whole or len(columns) > 1:
        raise ModelError("only a model of one column that came from Hugging Face can be exported", str(found.path))
    whole[0].save_pretrained(str(folder))  # the outermost
    next(iter(columns.values())).save(Path(folder))
    return Path(folder)


def task_of(manifest: Manifest) -> Any:
    """The task object of a manifest."""
    config = dict(manifest.task)
    return family.load("tasks", config.pop("kind")).Task(**config)


def inputs_of(manifest: Manifest) -> list[InputSpec]:
    """The input columns of a manifest."""
    return [InputSpec(**i) for i in manifest.inputs]


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def _quietly(build: Any) -> Any:
    """Without the load report about heads, which are replaced on purpose."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with torch.no_grad():
            return build()
    finally:
        transformers.logging.set_verbosity(level)
