"""Image generation: pictures drawn from noise by a denoising diffusion model (Ho et al. 2020, arXiv:2006.11239), a UNet2D of diffusers.

The target is the picture. Other input columns than a seed are what it is drawn from: a category, a text, or several, encoded and fused as for
any task. Hiding them now and then in training (`model.fusion.drop`) makes classifier-free guidance possible (Ho & Salimans 2022,
arXiv:2207.12598).
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from lc_ray.errors import DataError, ModelError, SpecError, first_line
from lc_ray.modalities import _encoders, image
from lc_ray.modalities._encoders import pool
from lc_ray.section import Section
from lc_ray.spec import UNREAD, InputSpec, ModelSpec, module_name
from lc_ray.tasks import _task

_NOISY, _TIMESTEP = "noisy", "timestep"  # tensors of the model that are no column's
_SEED = "add {column: seed, modality: seed}; the data need not have it"


class Task(_task.Task):
    """Pictures by denoising.

    Args:
        options: see `Options`.
    """

    TYPE = pa.binary()
    objective = "r2"
    STEPWISE = True
    COLUMNS: ClassVar[dict[str, str]] = {"image": "seed"}
    DECODES_SCORES = False

    class Options(Section):
        """Fields of the task section."""

        size: int = Field(32, ge=8, le=1024, description="side of the pictures in pixels")
        steps: int = Field(50, ge=1, le=1000, description="passes of the model per picture")
        guidance: float = Field(1.0, ge=1, le=50, description="weight of the inputs in classifier-free guidance; above 1, a step takes two passes")
        timesteps: int = Field(1000, ge=2, le=10_000, description="levels of noise")
        schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field("linear", description="how noise grows over the timesteps")
        prediction: Literal["epsilon", "v_prediction", "sample"] = Field("epsilon", description="what the model tells: noise, velocity or picture")
        features: str | None = Field(
            None,
            description="a vision model (torchvision's name, folder or hub id): the Fréchet distance, by its features, of as many drawn pictures "
            "from the held-out ones becomes a metric",
        )

        @model_validator(mode="after")
        def _fewer(self) -> Self:
            if self.steps > self.timesteps:
                raise ValueError(f"steps: more than the {self.timesteps} timesteps")
            return self

    def __init__(self, **options: Any) -> None:
        self.options_given = self.Options(**options)
        self.size = self.options_given.size
        given = {"num_train_timesteps": self.options_given.timesteps, "beta_schedule": self.options_given.schedule}
        self._noise: Any = DDIMScheduler(**given, prediction_type=self.options_given.prediction, timestep_spacing="trailing")
        self._noise.set_timesteps(self.options_given.steps)
        self._seeds: list[str] = []

    @classmethod
    def read(cls, value: Any, folder: Path | str | None, options: Any) -> bytes:
        """A picture's bytes, path or URI as RGB bytes (size × size × 3), rows first.

        Raises:
            DataError: see `image.Modality.decode`.
        """
        return _reader(options.size).decode(value, folder=folder)

    @classmethod
    def fit(cls, targets: Iterable[bytes], options: Any, columns: dict[str, Any]) -> Self:
        """Nothing is taken from the rows."""
        return cls(**options.model_dump())

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of this class, as JSON."""
        return self.options_given.model_dump()

    def bind(self, columns: dict[str, Any]) -> Self:
        """See which columns hold seeds."""
        self._seeds = [module_name(name) for name, modality in columns.items() if modality.spec.modality in UNREAD]
        return self

    def encode(self, target: bytes) -> NDArray[np.uint8]:
        """RGB bytes as (size, size, 3)."""
        return np.frombuffer(target, np.uint8).reshape(self.size, self.size, 3)

    def collate(self, encoded: list[NDArray[np.uint8]]) -> Tensor:
        """(batch, 3, size, size), in [-1, 1]."""
        return torch.from_numpy(np.stack(encoded)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def teach(self, inputs: _task.Batch, targets: Tensor, random: torch.Generator, training: bool) -> tuple[_task.Batch, Tensor]:
        """Pictures with noise of a level drawn for each, the same whenever a picture is evaluated, and what the model is to tell of them."""
        randoms = [random] * len(targets)
        if not training:
            randoms = [torch.Generator().manual_seed(zlib.crc32(picture.numpy().tobytes())) for picture in targets]
        timestep = torch.cat([torch.randint(self.options_given.timesteps, (1,), generator=each) for each in randoms])
        noise = torch.stack([torch.randn(targets.shape[1:], generator=each) for each in randoms])
        noisy = self._noise.add_noise(targets, noise, timestep)
        match self.options_given.prediction:
            case "epsilon":
                wanted = noise
            case "sample":
                wanted = targets
            case _:
                wanted = self._noise.get_velocity(targets, noise, timestep)
        return self._without_seeds(inputs) | {_NOISY: noisy, _TIMESTEP: timestep}, wanted

    def _without_seeds(self, inputs: _task.Batch) -> _task.Batch:
        return {name: tensor for name, tensor in inputs.items() if name.partition(".")[0] not in self._seeds}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of outputs (batch, 3, size, size)."""
        return F.mse_loss(outputs.float(), targets)

    def distill(self, outputs: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Mean squared distance from the teacher."""
        return F.mse_loss(outputs.float(), teacher.float())

    def score(self, run: _task.Run, inputs: _task.Batch, targets: Tensor) -> list[Any]:
        """Of each row: the squared error, the squared target, how many numbers these are, and the features of a picture drawn for it."""
        outputs, wanted = torch.from_numpy(run(inputs)), targets.cpu()
        errors, totals = ((x.double() ** 2).flatten(1).sum(1).tolist() for x in (outputs - wanted, wanted))
        drawn: list[Any] = [None] * len(errors)
        if self.options_given.features:
            own = {name: tensor for name, tensor in inputs.items() if name not in (_NOISY, _TIMESTEP)}
            random = [torch.Generator().manual_seed(int(1000 * total)) for total in totals]
            drawn = list(_features(self.options_given.features, self.size, self._draw(run, own, random)))
        return list(zip(errors, totals, [wanted[0].numel()] * len(errors), drawn, strict=True))

    def metrics(self, scores: list[Any], encoded: list[NDArray[np.uint8]]) -> dict[str, float]:
        """R² and mean squared error (`loss`) of what the model tells, noise unless `prediction` says otherwise; `frechet_distance` on request.

        Raises:
            DataError: fewer than 2 rows for a Fréchet distance.
        """
        errors, totals, counts, drawn = zip(*scores, strict=True)
        found = {"r2": 1 - sum(errors) / max(sum(totals), 1e-12), "loss": sum(errors) / sum(counts)}
        if self.options_given.features:
            if len(encoded) < 2:
                raise DataError("a Fréchet distance needs 2 rows or more", fix="hold out more, or leave out task.features")
            real = _features(self.options_given.features, self.size, np.stack(encoded))
            found["frechet_distance"] = frechet_distance(np.stack(drawn), real)
        return found

    def answer(self, run: _task.Run, inputs: _task.Batch) -> list[Any]:
        """A picture (size, size, 3) for each row, uint8. It depends on the row and its seed alone, not on the rest of its batch."""
        (column,) = self._seeds
        randoms = [torch.Generator().manual_seed(seed) for seed in inputs[f"{column}.seed"].tolist()]
        return list(self._draw(run, self._without_seeds(inputs), randoms))

    def _draw(self, run: _task.Run, inputs: _task.Batch, randoms: list[torch.Generator]) -> NDArray[np.uint8]:
        """Noise → pictures (rows, size, size, 3), by DDIM (Song et al. 2020, arXiv:2010.02502)."""
        noisy = torch.stack([torch.randn(3, self.size, self.size, generator=random) for random in randoms])
        hidden = inputs | {name: torch.zeros_like(tensor) for name, tensor in inputs.items() if name.endswith(".present")}
        for timestep in self._noise.timesteps:
            now = {_NOISY: noisy, _TIMESTEP: timestep.repeat(len(noisy))}
            told = torch.from_numpy(np.array(run(inputs | now)))
            if self.options_given.guidance > 1 and inputs:
                free = torch.from_numpy(np.array(run(hidden | now)))
                told = free + self.options_given.guidance * (told - free)
            noisy = self._noise.step(told, timestep, noisy).prev_sample
        return ((noisy.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def decode(self, output: NDArray[np.uint8], parts: _task.Parts) -> dict[str, Any]:
        """The picture as a data URI of PNG."""
        return {"image": image.png(Image.fromarray(np.asarray(output)))}

    def schema(self) -> dict[str, Any]:
        """See `_task.Task`."""
        return _task.fields(image={"type": "string", "contentMediaType": "image/png", "description": "a data URI"})


@functools.lru_cache(maxsize=4)
def _reader(size: int) -> image.Modality:
    return image.Modality(InputSpec(column="target", modality="image", size=size), "")


@functools.lru_cache(maxsize=1)
def _encoder(name: str, size: int) -> image.Encoder:
    return image.Encoder.pretrained(InputSpec(column="target", modality="image", size=size), name).eval()


def _features(name: str, size: int, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pictures (rows, size, size, 3) → pooled features (rows, width)."""
    with torch.no_grad():
        parts = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
        return np.concatenate([pool(*_encoder(name, size)(part)).double().numpy() for part in torch.split(parts, 64)])


def frechet_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Fréchet distance between normal distributions fitted to features (rows, width) (Heusel et al. 2017, arXiv:1706.08500)."""
    means, centred = [x.mean(0) for x in (one, other)], [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (one, other)]
    # The root of the covariances' product has the sum of these singular values as its trace. Itself it takes minutes where features are wide, and is
    # wrong where rows are few.
    first, second = (torch.linalg.qr(torch.from_numpy(x), mode="r").R for x in centred)
    shared = float(torch.linalg.matrix_norm(first @ second.T, "nuc"))
    return max(0.0, float(((means[0] - means[1]) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * shared))


class Model(nn.Module):
    """A UNet2D. What the input columns say is added to what tells it the timestep, as class labels are in Dhariwal & Nichol 2021, arXiv:2105.05233.

    Args:
        net: the UNet.
        encoders: one per input column but the seed; see `lc_ray.modalities`.
    """

    def __init__(self, net: Any, encoders: dict[str, Any]) -> None:
        super().__init__()
        width = net.time_embedding.linear_2.out_features
        self.net, self.columns = net, list(encoders)
        self.encoders = nn.ModuleDict({module_name(column): encoder for column, encoder in encoders.items()})
        self.project = nn.ModuleDict({module_name(column): nn.Linear(int(encoder.width), width) for column, encoder in encoders.items()})
        blocks = [module for module in net.modules() if isinstance(module, ResnetBlock2D)]
        inner = {part for block in blocks for part in (block.conv1, block.time_emb_proj, block.norm2, block.conv2)}
        leaves = [module for module in net.modules() if not any(True for _ in module.children())]
        self.keep = [self.project, *(leaf for leaf in leaves if leaf not in inner)]  # all that adds to what a block passes on

    @classmethod
    def pretrained(cls, spec: ModelSpec, inputs: list[InputSpec], sources: dict[str, str], task: Task) -> Self:
        """The UNet that is the seed's base: a UNet2DModel, or a pipeline's folder that has one; or random weights of that shape.

        Raises:
            SpecError: no seed, or the pictures' size does not suit.
            ModelError: there is no UNet2D for pictures of three colours, or it was trained with other noise than the task section says.
        """
        seeds = [i for i in inputs if i.modality in UNREAD]
        if len(seeds) != 1:
            raise SpecError("data.inputs: image_generation takes one column of modality `seed`, from which pictures are drawn", fix=_SEED)
        source, given = Path(sources[seeds[0].column]), [i for i in inputs if i.modality not in UNREAD]
        inside = "unet" if (source / "unet").is_dir() else None
        changed = {"class_embed_type": "identity" if given else None, "num_class_embeds": None, "sample_size": task.size}
        try:
            if seeds[0].weights == "random":
                net = UNet2DModel.from_config(UNet2DModel.load_config(str(source), subfolder=inside), **changed)
            else:
                net = UNet2DModel.from_pretrained(str(source), subfolder=inside, use_safetensors=True, low_cpu_mem_usage=False, **changed)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"no UNet2D can be loaded: {first_line(error)}", str(source)) from None
        if (net.config.in_channels, net.config.out_channels) != (3, 3):
            raise ModelError("this UNet is not for pictures of three colours", str(source))
        if task.size % (least := 2 ** (len(net.config.block_out_channels) - 1)):
            raise SpecError(f"task.size: {task.size} is not a multiple of {least}, by which this UNet divides pictures")
        if seeds[0].weights != "random":
            _same_noise(source, task.options_given)
        return cls(net, _encoders.pretrained(given, sources))

    @classmethod
    def rebuild(cls, config: dict[str, Any], task: Task) -> Self:
        """With weights yet to be loaded, from `config`."""
        return cls(UNet2DModel.from_config(config["unet"]), _encoders.rebuild(config["encoders"]))

    @property
    def config(self) -> dict[str, Any]:
        """What `rebuild` needs, as JSON."""
        known = {name: value for name, value in dict(self.net.config).items() if not name.startswith("_")}
        return {"unet": known, "encoders": _encoders.config({c: self.encoders[module_name(c)] for c in self.columns})}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """`noisy` (batch, 3, size, size), `timestep` (batch,) and the columns' tensors → (batch, 3, size, size).

        A column's tensors may include `present` (batch,), 0 where a row lacks it: it then says nothing.
        """
        apart = _encoders.by_column(batch)
        said = [self._said(name, apart[name]) for name in self.encoders]
        label = torch.stack(said).sum(0) if said else None
        return cast(Tensor, self.net(batch[_NOISY], batch[_TIMESTEP], class_labels=label, return_dict=False)[0])

    def _said(self, name: str, own: dict[str, Tensor]) -> Tensor:
        there = own.pop("present", None)
        said: Tensor = self.project[name](pool(*self.encoders[name](**own)))
        return said if there is None else said * there.unsqueeze(-1).to(said.dtype)


def _same_noise(source: Path, options: Any) -> None:
    """Raise ModelError if a pipeline's scheduler says that its UNet knows other noise."""
    files = [source / "scheduler" / "scheduler_config.json", source / "scheduler_config.json"]
    known: dict[str, Any] = next((json.loads(file.read_text("utf-8")) for file in files if file.is_file()), {})
    for field, name in (("timesteps", "num_train_timesteps"), ("schedule", "beta_schedule"), ("prediction", "prediction_type")):
        if known.get(name, getattr(options, field)) != getattr(options, field):
            raise ModelError(f"the model was trained with other noise: {name} is {known[name]}", str(source), f"set task.{field}: {known[name]}")
