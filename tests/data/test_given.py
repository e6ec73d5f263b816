"""Pictures as Python programs have them."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import soundfile
import torch
from PIL import Image

from lc_ray.data.files import File
from lc_ray.data.given import media_of, order_of, plain, source_of
from lc_ray.data.read import Reader
from lc_ray.errors import DataError
from lc_ray.modalities import image
from lc_ray.spec import InputSpec

SHADES = np.add.outer(np.arange(8) * 8, np.arange(12) * 16).astype(np.uint8)


def kept(picture, storage):
    """The bytes that a job reads."""
    return pq.read_table(source_of([{"photo": picture}], str(storage), {"photo"}))["photo"][0].as_py()


def cells(data, column, storage, media=(), order=()):
    reader = Reader(File(source_of(data, str(storage), set(media), order)))
    return [row[column] for chunk in reader.rows([column]) for row in chunk]


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


def test_an_array_with_its_colours_first_is_the_same_picture(tmp_path):
    colours = np.stack([SHADES, SHADES // 2, SHADES // 3])
    assert kept(colours, tmp_path) == kept(colours.transpose(1, 2, 0), tmp_path)


@pytest.mark.parametrize("shape", [(5, 8, 12), (0, 0, 3), (1, 8, 12, 3)])
def test_an_array_that_is_no_picture(tmp_path, shape):
    with pytest.raises(DataError, match=r"row 1: .* numbers are no picture: .*height × width × 3"):
        cells([{"photo": SHADES}, {"photo": np.zeros(shape, np.uint8)}], "photo", tmp_path, ["photo"])


def test_files_as_hugging_face_keeps_them(tmp_path):
    rows = [{"photo": {"bytes": b"x", "path": None}}, {"photo": {"bytes": b"y", "path": None}}]
    for data in (rows, pd.DataFrame(rows)):
        assert [cell["bytes"] for cell in cells(data, "photo", tmp_path, ["photo"])] == [b"x", b"y"]


def test_arrays_beside_a_picture(tmp_path):
    boxes = {"bbox": np.arange(8.0).reshape(2, 4), "label": ["a", "b"]}
    assert cells([{"photo": SHADES, "boxes": boxes}], "boxes", tmp_path, ["photo"]) == [{"bbox": [[0, 1, 2, 3], [4, 5, 6, 7]], "label": ["a", "b"]}]
    assert cells([{"label": torch.tensor(1)}], "label", tmp_path) == [1]


def test_dtypes_of_pandas_that_arrow_lacks(tmp_path):
    groups = pd.cut([1, 5, np.nan], [0, 3, 10])
    data = pd.DataFrame({"groups": groups, "months": pd.period_range("2024-01", periods=3, freq="M"), "few": pd.arrays.SparseArray([0, 0, 1])})
    for frame, media in ((data, []), (data.drop(columns="few"), []), (data.assign(photo=[b"x"] * 3), ["photo"])):
        assert [None if label != label else label for label in cells(frame, "groups", tmp_path, media)] == ["(0, 3]", "(3, 10]", None]
        assert cells(frame, "months", tmp_path, media) == ["2024-01", "2024-02", "2024-03"]
    assert cells(data, "few", tmp_path) == [0, 0, 1]
    assert isinstance(data["groups"].dtype, pd.CategoricalDtype)


def test_a_stream_is_not_accepted(tmp_path):
    with pytest.raises(DataError, match="IterableDataset is not accepted"):
        cells(datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), "text", tmp_path)


def test_targets_that_are_files():
    columns = {"text": "text", "photo": "image"}
    assert media_of(columns, "image_generation", "picture") == {"photo", "picture"}
    assert media_of(columns, "classification", "label") == media_of(columns, "masked_language_modeling", None) == {"photo"}


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
def test_arrays_of_a_ray_dataset(ray_local, tmp_path):
    tags = [np.array([0, 1]), np.array([1]), np.zeros((2, 2))]
    data = ray.data.from_items([{"tags": cell} for cell in tags], override_num_blocks=3)
    assert cells(data, "tags", tmp_path) == [cell.tolist() for cell in tags]


@pytest.mark.cluster
def test_pictures_of_a_ray_dataset(ray_local, tmp_path, monkeypatch, column):
    monkeypatch.chdir(tmp_path)
    GREY.save("a.png")
    for cells in ([SHADES, SHADES], ["a.png", "a.png"], [kept(GREY, tmp_path)] * 2):
        data = ray.data.from_items([{"photo": cell} for cell in cells])
        rows = [row for chunk in Reader(File(source_of(data, str(tmp_path / "runs"), {"photo"}))).rows(["photo"]) for row in chunk]
        assert [column.decode(row["photo"], folder="/") for row in rows] == [column.decode(kept(GREY, tmp_path))] * 2


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, number):
        return {"text": "ab"[number], "label": torch.tensor(number)}


def test_rows_as_other_libraries_have_them(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    polars = SimpleNamespace(to_arrow=lambda: pa.Table.from_pylist(rows))  # its DataFrame, of which no more is asked
    columns = {"text": np.array(["a", "b"]), "label": [0, 1]}
    for data in (Rows(), torch.utils.data.Subset(Rows(), [0, 1]), tuple(rows), columns, pa.Table.from_pylist(rows), polars):
        (found,) = Reader(File(source_of(data, str(tmp_path), set()))).rows(["text", "label"])
        assert [(row["text"], row["label"]) for row in found] == [("a", 0), ("b", 1)]
    pictures = pa.table({"photo": ["a.png"]})
    assert cells(pictures, "photo", tmp_path, ["photo"]) == [str(Path("a.png").resolve())]


@pytest.mark.parametrize("data", [3, {"text": "ab", "label": "xy"}, {"text": ["a"], "label": [1, 2]}, {}])
def test_data_that_is_none(tmp_path, data):
    with pytest.raises(DataError, match=r"is not accepted\n.*give a path, a table of pandas"):
        source_of(data, str(tmp_path), set())


def test_rows_without_names_are_told(tmp_path):
    with pytest.raises(DataError, match=r"row 0: not a dict but tuple"):
        source_of(torch.utils.data.TensorDataset(torch.zeros(2), torch.zeros(2)), str(tmp_path), set())


class Listed(torch.utils.data.Dataset):
    """As torchvision's datasets are."""

    def __init__(self, rows, **names):
        self.rows = rows
        vars(self).update(names)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


PAIRS = [("a", 1), ("b", 0), ("c", 1)]
LOADED = torch.utils.data.DataLoader


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (PAIRS, [1, 0, 1]),
        ([list(pair) for pair in PAIRS], [1, 0, 1]),
        (Listed(PAIRS), [1, 0, 1]),
        (Listed(PAIRS, classes=["bad", "good"]), ["good", "bad", "good"]),
        (torch.utils.data.Subset(Listed(PAIRS, classes=["bad", "good"]), [1, 2]), ["bad", "good"]),
        (LOADED(Listed(PAIRS, classes=["bad", "good"]), batch_size=2), ["good", "bad", "good"]),
        (LOADED(Listed([{"text": text, "label": label} for text, label in PAIRS]), batch_size=2), [1, 0, 1]),
        (Listed(PAIRS, classes=["only"]), [1, 0, 1]),
        (list(pd.DataFrame(PAIRS, columns=["text", "label"]).itertuples()), [1, 0, 1]),
        (pa.RecordBatch.from_pylist([{"text": text, "label": label} for text, label in PAIRS]), [1, 0, 1]),
    ],
)
def test_rows_that_are_no_dicts(tmp_path, data, labels):
    assert cells(data, "label", tmp_path, order=["text", "label"]) == labels
    texts = [text.decode() if isinstance(text, bytes) else text for text in cells(data, "text", tmp_path, order=["text", "label"])]
    assert texts == ["a", "b", "c"][-len(labels) :]


def test_columns_of_a_row_that_is_a_tuple(tmp_path):
    assert order_of({"draw": "seed", "premise|hypothesis": "text", "photo": "image"}, "label") == ["premise", "hypothesis", "photo", "label"]
    assert cells(["a", "b"], "text", tmp_path, order=order_of({"text": "text"}, None)) == ["a", "b"]
    with pytest.raises(DataError, match=r"row 1: not a dict but tuple\n.*tuples \(text, label\)"):
        cells([*PAIRS[:1], ("a", 1, 2)], "text", tmp_path, order=["text", "label"])


def test_decoded_sounds_are_kept_as_files(tmp_path):
    wave = (np.sin(np.arange(4000) / 9) * 0.7).astype(np.float32)
    sound = {"array": wave, "sampling_rate": 8000}
    features = datasets.Features({"clip": {"array": datasets.List(datasets.Value("float32")), "sampling_rate": datasets.Value("int32")}})
    listed = datasets.Dataset.from_list([{"clip": sound | {"array": wave.tolist()}}], features=features)
    channels = [sound | {"array": array} for array in (wave[None], torch.from_numpy(np.stack([wave, wave], 1)), wave.astype(np.float64).tolist())]
    for data in (listed, [{"clip": sound}], *([{"clip": one}] for one in channels)):
        (found,) = cells(data, "clip", tmp_path, ["clip"])
        samples, rate = soundfile.read(io.BytesIO(found), dtype="float32", always_2d=True)
        assert rate == 8000
        assert np.array_equal(samples.mean(1), wave)
    with pytest.raises(DataError, match="row 0: not an array of samples"):
        cells([{"clip": {"array": ["a"], "sampling_rate": 8000}}], "clip", tmp_path, ["clip"])


def test_values_that_programs_have(tmp_path):
    assert plain({"array": np.arange(3)}, False) == {"array": [0, 1, 2]}
    assert [plain(value, False) for value in (pd.NA, pd.NaT, np.float32(2.5), Path("a"), (bytearray(b"x"),))] == [None, None, 2.5, "a", [b"x"]]
    shades = torch.from_numpy(SHADES)
    assert plain(torch.stack([shades] * 3), True) == plain(np.stack([SHADES] * 3, 2), True)
    assert plain("a.png", True) == "a.png"
    assert plain(io.BytesIO(b"x"), True) == b"x"
