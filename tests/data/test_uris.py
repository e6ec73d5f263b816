"""Files that are named by URIs."""

import io

import pandas as pd
import pytest
from PIL import Image

from lc_ray.data.files import File, files
from lc_ray.data.read import Reader
from lc_ray.errors import DataError
from lc_ray.modalities import _media


def rows_of(file, wanted):
    return [row for chunk in Reader(file).rows(wanted) for row in chunk]


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_uri(tmp_path, name):
    """The way of s3:// and gs://, on the one such file system that is always there."""
    table = pd.DataFrame({"image": ["p/1.png"], "label": ["x"]})
    {"a.csv": table.to_csv, "a.jsonl": table.to_json, "a.parquet": table.to_parquet}[name](
        tmp_path / name, **{"a.csv": {"index": False}, "a.jsonl": {"orient": "records", "lines": True}}.get(name, {})
    )
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.png").write_bytes(png("red"))
    (found,) = files(f"file://{tmp_path}/{name}")
    assert str(found) == f"file://{tmp_path}/{name}"
    assert found.folder == f"file://{tmp_path}"
    (row,) = rows_of(found, ["image"])
    assert _media.fetch(row["image"], found.folder) == png("red")
    assert [str(f) for f in files(f"file://{tmp_path}") if f.kind != "folder"] == [str(found)]


def test_files_of_a_uri_have_any_names(tmp_path):
    folder = tmp_path / "pics #1 50%"
    named = {"100%": "a#1.png", "what?": "b%20c.png", "é": "d.png"}
    for place, (label, name) in enumerate(named.items()):
        (folder / label).mkdir(parents=True)
        (folder / label / name).write_bytes(png(("red", "green", "blue")[place]))
    for uri in (f"file://{tmp_path}/pics #1 50%", f"file://{tmp_path}/pics%20%231%2050%25"):
        (found,) = files(uri)
        rows = rows_of(found, ["image", "label"])
        assert [(row["label"], row["image"].rpartition("/")[2]) for row in rows] == list(named.items())
        assert len({_media.fetch(row["image"], found.folder) for row in rows}) == 3
    for name in ("a#1.csv", "a#2.csv", "b%20c.csv", "what?.csv"):
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / name).write_text(f"text\n{name}\n")
    every = files(f"file://{tmp_path}/tables")
    assert [row["text"].decode() for file in every for row in rows_of(file, ["text"])] == ["a#1.csv", "a#2.csv", "b%20c.csv", "what?.csv"]


def test_uris_that_lead_nowhere(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        files(f"file://{tmp_path}/none.csv")
    with pytest.raises(DataError, match="use s3://"):
        files("nothing://bucket/file.csv")


def test_a_bucket_that_can_not_be_read_any_more(refusing):
    with pytest.raises(DataError, match=r"can't be reached: .*ACCESS_DENIED"):
        File(f"{refusing}/rows.csv").stamp()
