"""Values that are written once and found by their place."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lc_ray.data.blobs import PLACE, Reader, Writer
from lc_ray.storage import StoragePath


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_values_are_found_from_a_table_that_was_on_disk(tmp_path, scheme):
    folder = StoragePath(f"{scheme}{tmp_path}")
    with Writer(folder, "train/00001") as one, Writer(folder, "train/00002") as other:
        first, second = one.put([b"abc", None, b""]), other.put([b"defg"])
    table = pa.table({"pixels": pa.concat_arrays([first, second]), "label": list("wxyz")}).take([3, 0, 1, 2])
    pq.write_table(table, tmp_path / "rows.parquet")
    reader = pickle.loads(pickle.dumps(Reader(folder)))
    assert reader.values(pq.read_table(tmp_path / "rows.parquet")) == {"pixels": [b"defg", b"abc", None, b""], "label": list("zwxy")}
    pickle.dumps(reader)  # with files open


def test_what_is_not_large_stays_in_the_table(tmp_path):
    with Writer(StoragePath(str(tmp_path)), "train/00001") as writer:
        assert writer.put([1, None, 3]).to_pylist() == [1, None, 3]
        assert writer.put([None, None]).type == pa.null()
        assert writer.put([None, b"x"]).type == PLACE
    with Writer(StoragePath(str(tmp_path)), "train/00002") as writer:
        writer.put([[1, 2]])
    assert not (tmp_path / "train/00002.bin").exists()
