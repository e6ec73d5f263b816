"""Pictures: images whose width and height are kept, for tasks that answer where something is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lc_ray.modalities import image


class Modality(image.Modality):
    """One column of images, resized to a square as those of `image.Modality` are.

    What is augmented stays where it is: pictures are recoloured, but neither cropped nor flipped.

    Args:
        spec: the column.
        source: the base model; not needed.
    """

    TYPE = pa.struct({"pixels": pa.binary(), "width": pa.int64(), "height": pa.int64(), "lying": pa.bool_()})

    def decode(self, value: Any, errors: str = "strict", folder: Path | str | None = None) -> Any:
        """As `image.Modality` does, the width and height that the picture had, upright, and whether it is stored lying.

        Raises:
            DataError: see there.
        """
        pixels, width, height, lying = self.measured(value, folder)
        return {"pixels": pixels, "width": width, "height": height, "lying": lying}

    def prepare(self, values: list[Any]) -> dict[str, list[Any]]:
        """The pixels, and the original [width, height]."""
        blank = {"pixels": None, "width": 1, "height": 1}
        values = [value or blank for value in values]
        return {"pixels": [v["pixels"] for v in values], "original": [[v["width"], v["height"]] for v in values]}

    def collate(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """`pixels` (batch, 3, size, size), uint8, and `original` (batch, 2), the width and height in pixels, float32."""
        return {**super().collate(columns), "original": torch.tensor(columns["original"], dtype=torch.float32)}

    def measure(self, parts: dict[str, Any]) -> dict[str, float | str]:
        """As for images, and its width and height."""
        width, height = map(float, parts["original"])
        return super().measure(parts) | {"width": width, "height": height}

    def augment(self, tensors: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
        """Recoloured, each picture in its own way."""
        return {**tensors, "pixels": image.recoloured(tensors["pixels"], 0.4, 0.05, random)}


class Encoder(image.Encoder):
    """A vision model that has no use for the original size."""

    def forward(self, pixels: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Returns hidden (batch, positions, width) and mask (batch, positions), all ones."""
        return super().forward(pixels)
