"""Images: decoded and resized once per dataset, encoded by a torchvision or Hugging Face vision model."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import httpx
import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from lc_ray.errors import DataError, ModelError, first_line
from lc_ray.modalities import _hub, _media, _pixels
from lc_ray.spec import InputSpec
from lc_ray.storage import storage_path

_LEAST, _MOST = 2, 50_000_000  # pixels along a side, pixels in all
# Pillow knows others, of which EPS is a program that it would run.
_FORMATS = ("PNG", "JPEG", "JPEG2000", "AVIF", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM", "TGA")
_ICON, _IN_ICON = b"\0\0\1\0", re.compile(rb"\x89PNG\r\n\x1a\n....IHDR(....)(....)", re.DOTALL)
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_GREY = [0.299, 0.587, 0.114]  # luma of ITU-R BT.601
_ACROSS = [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]  # x → (1, 1, 1) × x
_HEADS = ("pooler", "head")  # the latter of SigLIP
_ANSWERS = 5.0  # seconds in which the host of weights must answer


class Modality:
    """One column of images, resized to a square of `spec.size` pixels.

    Args:
        spec: the column.
        source: the base model; not needed.
    """

    TYPE = pa.binary()
    MEDIA = "image"
    SCHEMA: ClassVar[dict[str, Any]] = _media.schema(MEDIA)

    def __init__(self, spec: InputSpec, source: str | Path) -> None:
        self.spec = spec

    @property
    def example(self) -> str:
        """A grey picture."""
        return str(self.show({"pixels": bytes([128]) * (3 * self.spec.size**2)}))

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> bytes:
        """An encoded image, or lists of its levels, as RGB bytes (size × size × 3), rows first.

        Raises:
            DataError: missing, damaged, of another format, 1 pixel wide, or of more than 50 megapixels.
        """
        return self.measured(value, folder)[0]

    def measured(self, value: Any, folder: Path | str | None) -> tuple[bytes, int, int, bool]:
        """As `decode` gives it, the width and height that the image had, upright, and whether it is stored turned by 90 degrees."""
        drawn = _pixels.picture(value)
        data = b"" if drawn else _media.fetch(value, folder, self.spec.path)
        try:
            if data.startswith(_ICON) and any(int.from_bytes(side[1]) * int.from_bytes(side[2]) > _MOST for side in _IN_ICON.finditer(data)):
                raise DataError("image of more than 50 megapixels")  # which Pillow would decode before it tells of its size
            with warnings.catch_warnings(action="ignore"), drawn or Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if min(width, height) < _LEAST or width * height > _MOST:
                    raise DataError(f"image of {width} × {height} pixels" if min(width, height) < _LEAST else "image of more than 50 megapixels")
                _media.spend(width * height)
                image.draft("RGB", (self.spec.size * 2, self.spec.size * 2))  # JPEG: decoded at a fraction of its size where that is enough
                image.load()  # some formats tell of their orientation after the pixels
                lies = _media.lies(image)
                ImageOps.exif_transpose(image, in_place=True)
                pixels = _resized(image if image.mode == "RGB" else _without_alpha(image), self.spec.size)
                return (pixels, height, width, True) if lies else (pixels, width, height, False)
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError("not an image of a known format" + _told(data)) from None
        except Image.DecompressionBombError:
            raise DataError("image of more than 50 megapixels") from None
        except (OSError, SyntaxError, ValueError, MemoryError, EOFError, RuntimeError) as error:  # the last of AVIF
            raise DataError(f"damaged image: {str(error).split(' (')[0]}") from None

    def prepare(self, values: list[bytes | None]) -> dict[str, list[Any]]:
        """The pixels."""
        return {"pixels": values}

    def sizes(self, columns: dict[str, list[Any]]) -> list[int]:
        """All images cost the same."""
        return [0] * len(columns["pixels"])

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`pixels` (batch, 3, size, size), uint8; 0 where an image is missing."""
        side = self.spec.size
        blank = bytes(3 * side * side)
        joined = np.frombuffer(bytearray().join(row or blank for row in columns["pixels"]), np.uint8)
        return {"pixels": torch.from_numpy(joined).view(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()}

    def augment(self, tensors: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Cropped and recoloured, each image in its own way. None is flipped: a digit, a word or an arrow would be another one."""
        return {"pixels": recoloured(_cropped(tensors["pixels"], random), 0.2, 0.0, random)}

    def show(self, parts: dict[str, Any]) -> Any:
        """The resized image as a data URI."""
        if parts["pixels"] is None:
            return None
        return png(Image.frombytes("RGB", (self.spec.size, self.spec.size), parts["pixels"]))

    def measure(self, parts: dict[str, Any]) -> dict[str, float | str]:
        """How bright it is, from 0 to 255, and how much that varies; by every 61st byte, which has all colours."""
        pixels = np.frombuffer(parts["pixels"], np.uint8)[::61].astype(np.float32)
        return {"brightness": float(pixels.mean()), "contrast": float(pixels.std())}

    def save(self, folder: Path) -> None:
        """Nothing: the size is in the manifest."""
        folder.mkdir(parents=True, exist_ok=True)


class Encoder(nn.Module):
    """A vision model without its head, normalisation included.

    Args:
        model: pixels (batch, 3, side, side) in model units → a feature map or hidden states.
        config: what `rebuild` needs.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, config
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def pretrained(cls, spec: InputSpec, source: str) -> Self:
        """With pretrained weights, weights of a safetensors file, or random ones, as `spec.weights` says.

        Raises:
            ModelError: the model or its weights can't be had.
        """
        weights = spec.weights or "pretrained"
        if in_torchvision(source):
            if source not in torchvision.models.list_models(torchvision.models):
                fix = "for example resnet50 or convnext_tiny; Faster R-CNN is for task object_detection"
                raise ModelError("a model of torchvision that does not classify images", source, fix)
            whole = torchvision.models.get_model(source, weights=None)
            if weights != "random":
                fill(whole, source, weights)
            return cls(_trunk(whole, source), {"torchvision": source, **_IMAGENET})._measured(spec.size, source)
        with _hub.loading("vision model", source):
            found = _hub.model(AutoModel, AutoConfig.from_pretrained(source, trust_remote_code=False), source, weights)
            if hasattr(found, "vision_model"):  # of CLIP and others, which read texts beside
                found = found.vision_model
                with torch.device("meta"):
                    AutoModel.from_config(found.config, trust_remote_code=False)  # as `rebuild` does; not every such part can stand alone
        if hasattr(found.config, "mask_ratio"):
            found.config.mask_ratio = 0.0  # a masked autoencoder would hide most of every image
        return cls(_hub.headless(found, *_HEADS), {"transformers": found.config.to_dict(), **statistics(Path(source))})._measured(spec.size, source)

    @classmethod
    def rebuild(cls, config: dict[str, Any]) -> Self:
        """With weights yet to be loaded, from `config`."""
        if name := config.get("torchvision"):
            return cls(_trunk(torchvision.models.get_model(name, weights=None), name), config)
        model = AutoModel.from_config(AutoConfig.for_model(**config["transformers"]), trust_remote_code=False)
        return cls(_hub.headless(model, *_HEADS), config)

    def _measured(self, side: int, source: str) -> Self:
        """With its width, which configurations name in many ways.

        Raises:
            ModelError: it takes no images of that size.
        """
        try:
            with torch.no_grad():
                hidden, _ = self.eval()(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            fix = "set data.inputs.size, or use a model that takes pictures alone"
            raise ModelError(f"images of {side} × {side} pixels do not fit the model: {error}", source, fix) from None
        self.config["width"] = hidden.shape[-1]
        return self.train()

    @property
    def width(self) -> int:
        """Length of a hidden vector."""
        return int(self.config["width"])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (batch, 3, side, side) → hidden (batch, positions, width) and mask (batch, positions), all ones."""
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        scaled = torch.addcmul(-mean / std, pixels.float(), 1 / (255 * std))  # one pass over the pixels
        hidden = self.model(scaled)
        if not isinstance(hidden, Tensor):
            hidden = hidden.last_hidden_state
        if hidden.dim() == 4:
            hidden = hidden.flatten(2).transpose(1, 2)  # (batch, height × width, width)
        return hidden, torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device)


def png(picture: Image.Image) -> str:
    """A picture as a data URI of PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _told(data: bytes) -> str:
    """What a file is that often stands where an image should be: the page of an error, a drawing, or what a telephone makes."""
    if data.lstrip()[:1] == b"<":
        return ": it is HTML or XML"
    return ": it is HEIC; save it as JPEG" if data[4:8] == b"ftyp" else ""


def in_torchvision(name: str | None) -> bool:
    """Whether torchvision has a model of that name."""
    return name in torchvision.models.list_models()


def _cropped(pixels: Tensor, random: torch.Generator) -> Tensor:
    """A random part of each image, from 0.6 of its area and of a shape between 3:4 and 4:3, enlarged to the whole."""
    count, _, side, _ = pixels.shape
    area, shape, down, right = torch.rand(4, count, generator=random)
    area, shape = 0.6 + 0.4 * area, torch.exp((2 * shape - 1) * math.log(4 / 3))
    sides = (side * torch.stack([(area / shape).sqrt(), (area * shape).sqrt()])).round().clamp(1, side)  # (2, count): heights and widths
    starts = ((side - sides + 1) * torch.stack([down, right])).floor()
    source = pixels.contiguous(memory_format=torch.channels_last)  # of which torch resizes bytes fastest
    out = torch.empty_like(source)
    for i, (height, width, top, left) in enumerate(torch.cat([sides, starts]).T.int().tolist()):
        part = source[i : i + 1, :, top : top + height, left : left + width]
        out[i] = nn.functional.interpolate(part, (side, side), mode="bilinear", antialias=True)[0]
    return out


def recoloured(pixels: Tensor, most: float, hue: float, random: torch.Generator) -> Tensor:
    """Images in another brightness, contrast, saturation and hue each. All four are linear, so one matrix per image does it in one pass.

    Args:
        pixels: (batch, 3, height, width), uint8.
        most: by which the factors of brightness, contrast and saturation differ from 1.
        hue: by which colours are turned around grey, at most, in turns.
        random: of all that is drawn.
    """
    count = len(pixels)
    bright, contrast, saturation, turn = (2 * torch.rand(4, count, 1, 1, generator=random) - 1) * torch.tensor([most] * 3 + [hue]).view(4, 1, 1, 1)
    grey, one, across = torch.tensor(_GREY).expand(3, 3), torch.eye(3), torch.tensor(_ACROSS) / math.sqrt(3)
    angle = 2 * math.pi * turn
    turned = angle.cos() * one + angle.sin() * across + (1 - angle.cos()) / 3  # Rodrigues' rotation around (1, 1, 1)
    matrix = (1 + bright) * (1 + contrast) * (((1 + saturation) * one - saturation * grey) @ turned)  # (batch, 3, 3)
    flat = pixels.contiguous().flatten(2).float()  # (batch, 3, height × width)
    middle = -contrast * (1 + bright) * (grey[:1] @ flat.mean(2, keepdim=True))  # what contrast leaves of an image's mean
    return torch.baddbmm(middle, matrix, flat).clamp_(0, 255).round_().to(torch.uint8).view(pixels.shape)


def _resized(image: Image.Image, side: int) -> bytes:
    """A square of RGB bytes, rows first. As Pillow's resize to a level of 256, in a quarter of its time."""
    pixels = _levels(image).view(1, image.height, image.width, 4).permute(0, 3, 1, 2)  # (1, 4, height, width), colours innermost in memory
    small = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    levels = small.permute(0, 2, 3, 1).contiguous().numpy()
    return Image.frombuffer("RGBX", (side, side), levels, "raw", "RGBX", 0, 1).tobytes("raw", "RGB")


def _levels(image: Image.Image) -> Tensor:
    """Red, green, blue and an unused byte of each pixel of an RGB image, as Pillow keeps them; not copied unless it keeps them in several pieces."""
    try:
        return torch.utils.dlpack.from_dlpack(pa.array(image).flatten())
    except ValueError:
        return torch.from_numpy(np.array(image.convert("RGBX")).reshape(-1))


def _without_alpha(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, and grey of more than 8 bits is scaled rather than clipped."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(np.array(image, np.float32), image.mode)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _grey(levels: NDArray[np.float32], mode: str) -> NDArray[np.uint8]:
    """Levels of 16 bits by their own scale, so that pictures stay as dark as they are; of 32 by what they hold: fractions, 8 bits, or more.

    Args:
        levels: which are changed in their place, since a copy may take hundreds of MB.
        mode: as Pillow calls it.

    Raises:
        DataError: some are not finite.
    """
    most = float(levels.max(initial=0.0))
    if not np.isfinite([most, levels.min(initial=0.0)]).all():
        raise DataError("damaged image: levels that are not numbers")
    white = 65535.0 if mode.startswith("I;16") else 1.0 if mode == "F" and most <= 1 else max(255.0, most)
    levels *= 255 / white
    return levels.clip(0, 255, out=levels).round(out=levels).astype(np.uint8)


def _trunk(model: nn.Module, name: str) -> nn.Module:
    """What comes before pooling and classifier."""
    if hasattr(model, "permute"):  # Swin has its channels last
        return nn.Sequential(*(cast(nn.Module, getattr(model, part)) for part in ("features", "norm", "permute")))
    if hasattr(model, "features"):
        return cast(nn.Module, model.features)
    if hasattr(model, "layer4"):
        return nn.Sequential(*(part for part_name, part in model.named_children() if part_name not in ("avgpool", "fc")))
    if hasattr(model, "trunk_output"):
        return nn.Sequential(cast(nn.Module, model.stem), cast(nn.Module, model.trunk_output))
    fix = "for example resnet50, convnext_tiny, or google/vit-base-patch16-224"
    raise ModelError("this torchvision model has no convolutional trunk to build on", name, fix)


def statistics(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation per colour that a Hugging Face model was trained with."""
    try:
        known = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return dict(_IMAGENET)
    if not known.get("do_normalize", True):
        return {"mean": [0.0] * 3, "std": [1.0] * 3}
    return {"mean": known.get("image_mean", _IMAGENET["mean"]), "std": known.get("image_std", _IMAGENET["std"])}


def fill(model: nn.Module, name: str, weights: str) -> None:
    """Load a torchvision model's weights: a safetensors file, or the published ones.

    Raises:
        ModelError: they can't be had or do not fit.
    """
    try:
        if weights == "pretrained":
            model.load_state_dict(_published(name))
        else:
            with storage_path(weights).here() as file:
                model.load_state_dict(safetensors.torch.load_file(file))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(f"weights can't be loaded: {first_line(error)}", weights if weights != "pretrained" else name) from None


def _published(name: str) -> Any:
    url = str(torchvision.models.get_model_weights(name).DEFAULT.url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.exists():
        try:
            httpx.head(url, timeout=_ANSWERS)
        except httpx.TransportError:
            raise ModelError(
                f"no pretrained weights: {file.name} is neither in {file.parent} nor can {url} be reached",
                name,
                "put that file there, set weights to a safetensors file of this model, or weights: random",
            ) from None
    return torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True, map_location="cpu", progress=False)
