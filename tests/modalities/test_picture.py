import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from lc_ray.errors import DataError
from lc_ray.modalities.picture import Modality
from lc_ray.spec import InputSpec

PICTURES = Modality(InputSpec(column="image", modality="picture", base="x", size=16, augment=True), "")


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_the_original_size_is_kept():
    wide = PICTURES.decode(encoded(Image.new("RGB", (50, 20))), folder=Path())
    assert (wide["width"], wide["height"], len(wide["pixels"])) == (50, 20, 3 * 16 * 16)
    parts = PICTURES.prepare([wide, None])
    tensors = PICTURES.collate(parts)
    assert tensors["original"].tolist() == [[50, 20], [1, 1]]
    assert tensors["pixels"].shape == (2, 3, 16, 16)
    assert PICTURES.show({k: v[0] for k, v in parts.items()}).startswith("data:image/png;base64,")
    assert PICTURES.decode(PICTURES.example)["width"] == 16


def test_the_size_of_a_large_photo_is_not_that_of_its_draft():
    assert PICTURES.decode(encoded(Image.new("RGB", (800, 600)), "JPEG"), folder=Path())["width"] == 800


@pytest.mark.parametrize(("orientation", "size"), [(1, (50, 20)), (3, (50, 20)), (6, (20, 50)), (8, (20, 50))])
def test_a_photo_is_measured_upright(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = PICTURES.decode(encoded(Image.new("RGB", (50, 20)), "JPEG", exif=exif), folder=Path())
    assert (found["width"], found["height"], found["lying"]) == (*size, orientation > 4)


def test_what_is_augmented_stays_where_it_is():
    picture = Image.new("RGB", (16, 16), "white")
    picture.paste((0, 0, 0), (0, 0, 5, 3))
    tensors = PICTURES.collate(PICTURES.prepare([PICTURES.decode(encoded(picture), folder=Path())] * 8))
    varied = PICTURES.augment(tensors, torch.Generator().manual_seed(0))
    assert not torch.equal(varied["pixels"], tensors["pixels"])
    assert torch.equal(varied["original"], tensors["original"])
    grey = varied["pixels"].float().mean(1)
    assert torch.equal(grey < grey.mean((1, 2), keepdim=True), tensors["pixels"][:, 0] == 0)


def test_damaged_pictures_are_refused():
    with pytest.raises(DataError, match=r"damaged|known format"):
        PICTURES.decode(encoded(Image.new("RGB", (50, 20)))[:40], folder=Path())
