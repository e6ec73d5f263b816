"""Ray Data's stage on pictures and sounds: folders per label, bad files, splits by column and by label."""

import io
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lc_ray import spec
from lc_ray.data.prepare import prepare
from lc_ray.errors import DataError

pytestmark = pytest.mark.cluster


def png(number, size=(12, 9)):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()



def job(tmp_path, train, **data):
    image = {"column": "image", "modality": "image", "size": 8, "base": "resnet18", "weights": "random"}
    given = {"train": str(train), "validation": "25%", "inputs": [image], "target": "label", "reject": {"limit": "90%"}}
    return spec.parse({"model": {}, "data": given | data, "storage": str(tmp_path / "runs")})


def test_a_folder_per_label(ray_local, tmp_path):
    for number in range(24):
        file = tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    found, _ = prepare(job(tmp_path, tmp_path / "pets", stratify=True))
    assert found.task().labels == ["cat", "dog"]
    assert Counter(found.rows("validation")["_target"]) == {"cat": 3, "dog": 3}
    assert Counter(found.rows("train")["_target"]) == {"cat": 9, "dog": 9}
    assert all(len(pixels) == 3 * 8 * 8 for pixels in found.rows("train")["image.pixels"])
    assert sum(size for size, _ in (found.folder / "blobs").files().values()) == 24 * 3 * 8 * 8  # each picture once
    (tmp_path / "pets" / "cat" / "new.png").write_bytes(png(99))
    more, reused = prepare(job(tmp_path, tmp_path / "pets", stratify=True))
    assert not reused
    assert more.count("train") + more.count("validation") == 25


def test_bad_pictures_and_sounds_are_set_aside_with_their_reason(ray_local, tmp_path):
    bad = {
        "damaged image": png(100)[:-40],
        "not an image of a known format": b"\x00\x01hello",
        "image of 1 × 1 pixels": png(101, (1, 1)),
        "null": None,
        "no such file": "nowhere.png",
    }
    cells = [png(number) for number in range(20)] + list(bad.values())
    (tmp_path / "there.png").write_bytes(png(50))
    table = pd.DataFrame({"image": cells, "label": ["a", "b"] * 10 + ["a"] * len(bad)})
    table.loc[len(table)] = [png(200), None]
    pq.write_table(_table(table), tmp_path / "rows.parquet")
    found, _ = prepare(job(tmp_path, tmp_path / "rows.parquet"))
    rejects = pq.read_table(str(found.folder / "rejects")).to_pandas().set_index("row")
    for row, reason in enumerate(bad, 20):
        assert rejects["reason"][row].startswith(reason), reason
        assert rejects["column"][row] == "image"
    assert rejects["column"][25] == "label"
    assert found.record["rejected"] == 6 == sum(found.record["reasons"].values())
    with pytest.raises(DataError, match=r"6 of 26 rows can't be used"):
        prepare(job(tmp_path, tmp_path / "rows.parquet", reject={"limit": "5%"}))
    assert len(list((tmp_path / "runs" / "prepared").glob("*/[0-9]*-*"))) == 1, "nothing is left of the try that failed"


def _table(frame):
    """Bytes as they are; a path as the bytes of its name, since a column has one type."""
    import pyarrow as pa

    cells = [c.encode() if isinstance(c, str) else c for c in frame["image"]]
    return pa.table({"image": pa.array(cells, pa.binary()), "label": pa.array([x if isinstance(x, str) else None for x in frame["label"]])})


def test_no_more_rows_are_decoded_than_are_used(ray_local, tmp_path):
    rows = [{"image": png(number) if number % 2 else b"broken %d" % number, "label": "ab"[number // 2 % 2]} for number in range(400)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    found, _ = prepare(job(tmp_path, tmp_path / "rows.parquet", rows=20, validation=4, reject={"limit": "75%"}))
    assert (found.count("train"), found.count("validation")) == (16, 4)
    assert 5 < found.record["rejected"] < 60, "of 20 rows, their spares, and not of all 400"


def test_rows_of_a_group_stay_together(ray_local, tmp_path):
    rows = [{"image": png(number), "label": "ab"[number % 2], "camera": f"c{number % 9}" if number < 54 else " "} for number in range(78)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    found, _ = prepare(job(tmp_path, tmp_path / "rows.parquet", split="camera"))
    by_row = [row["camera"] for row in rows]
    sides = {side: {by_row[i] for i in found.rows(side)["_row"]} for side in ("train", "validation")}
    assert sides["train"] & sides["validation"] == {" "}, "rows of no camera are no group"
    assert sides["train"] | sides["validation"] == set(by_row)


def test_several_columns_of_which_some_are_missing(ray_local, tmp_path, tiny_base):
    rows = [{"image": png(n) if n % 3 else None, "text": f"good {n}" if n % 4 else None, "label": "ab"[n % 2]} for n in range(48)]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    inputs = [
        {"column": "image", "modality": "image", "size": 8, "base": "resnet18", "weights": "random"},
        {"column": "text", "base": str(tiny_base), "max_length": 8},
    ]
    found, _ = prepare(job(tmp_path, tmp_path / "rows.parquet", inputs=inputs))
    assert found.record["rejected"] == 4  # neither of both, every twelfth
    assert next(iter(found.record["reasons"])).endswith("all of them are missing")
    every = {side: found.rows(side) for side in ("train", "validation")}
    for side in every.values():
        for row, image, text in zip(side["_row"], side["image.present"], side["text.present"], strict=True):
            assert (image, text) == (float(row % 3 > 0), float(row % 4 > 0))
