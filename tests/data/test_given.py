"""Pictures as Python programs have them."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lc_ray.data.given import source_of
from lc_ray.modalities import image
from lc_ray.spec import InputSpec

SHADES = np.add.outer(np.arange(8) * 8, np.arange(12) * 16).astype(np.uint8)


def kept(picture, storage):
    """The bytes that a job reads."""
    return pq.read_table(source_of([{"photo": picture}], str(storage), {"photo"}))["photo"][0].as_py()


@pytest.fixture
def column():
    return image.Modality(InputSpec(column="photo", modality="image", size=8), "")


def test_a_photo_stays_upright(tmp_path, column):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Image.fromarray(SHADES).save(file, "PNG", exif=exif)
    assert Image.open(io.BytesIO(kept(Image.open(file), tmp_path))).size == (8, 12)
    assert column.decode(kept(Image.open(file), tmp_path)) == column.decode(file.getvalue())


GREY = Image.fromarray(SHADES)
OTHERS = [GREY.convert("RGB").convert(mode) for mode in ("CMYK", "YCbCr", "HSV", "I")]
DEEP = [Image.fromarray(SHADES.astype(np.float32) / 255), Image.fromarray(SHADES.astype(np.uint16) * 257)]


@pytest.mark.parametrize("picture", [*OTHERS, GREY.convert("RGBA").convert("RGBa"), *DEEP], ids=lambda picture: picture.mode)
def test_pictures_that_no_png_holds(tmp_path, column, picture):
    found, expected = (np.frombuffer(column.decode(kept(one, tmp_path)), np.uint8).astype(int) for one in (picture, GREY))
    assert np.abs(found - expected).max() <= 4


def test_an_array_of_one_channel(tmp_path, column):
    assert column.decode(kept(SHADES[:, :, None], tmp_path)) == column.decode(kept(GREY, tmp_path))
