"""Pictures as Python programs have them."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
from PIL import Image

from lc_ray.data.files import File
from lc_ray.data.given import source_of
from lc_ray.data.read import Reader
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


def test_a_set_is_the_same_list_each_time(tmp_path):
    (line,) = Path(source_of([{"labels": {"c", "a", "b"}}], str(tmp_path), set())).read_text().splitlines()
    assert json.loads(line) == {"labels": ["a", "b", "c"]}


def test_paths_of_a_hugging_face_dataset_are_from_here(tmp_path, monkeypatch, column):
    monkeypatch.chdir(tmp_path)
    GREY.save("a.png")
    plain = datasets.Dataset.from_dict({"photo": ["a.png", None]})
    for data in (plain, plain.cast_column("photo", datasets.Image())):
        there, missing = pq.read_table(source_of(data, str(tmp_path / "runs"), {"photo"}))["photo"].to_pylist()
        assert column.decode(there, folder="/") == column.decode(kept(GREY, tmp_path))
        assert missing is None


@pytest.mark.cluster
def test_pictures_of_a_ray_dataset(ray_local, tmp_path, monkeypatch, column):
    monkeypatch.chdir(tmp_path)
    GREY.save("a.png")
    for cells in ([SHADES, SHADES], ["a.png", "a.png"], [kept(GREY, tmp_path)] * 2):
        data = ray.data.from_items([{"photo": cell} for cell in cells])
        rows = [row for chunk in Reader(File(source_of(data, str(tmp_path / "runs"), {"photo"}))).rows(["photo"]) for row in chunk]
        assert [column.decode(row["photo"], folder="/") for row in rows] == [column.decode(kept(GREY, tmp_path))] * 2
