"""Files that several tasks share: each reads its part of them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lc_ray.data import read
from lc_ray.data.cells import dealt
from lc_ray.data.files import File, files
from lc_ray.data.read import Reader
from lc_ray.errors import DataError

TABLE = pa.table({"text": [f"text {n}" for n in range(1000)], "label": [n % 3 for n in range(1000)]})


def shared(file, shards, size=64):
    return [[row for chunk in Reader(File(str(file))).rows(["text"], shard, shards, size) for row in chunk] for shard in range(shards)]


@pytest.mark.parametrize(("group", "most"), [(10, 24), (60, 17), (64, 16), (100, 16 * 2), (1000, 4)])
def test_row_groups_of_parquet_are_read_by_those_who_use_them(tmp_path, monkeypatch, group, most):
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=group)
    asked, own = [], pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, size, groups, *names: asked.append(groups) or own(self, size, groups, *names))
    parts = shared(tmp_path / "a.parquet", 4)
    assert sorted((row["_row"], row["text"]) for part in parts for row in part) == [(n, f"text {n}") for n in range(1000)]
    assert len(asked) <= most
    assert group > 64 or sum(map(len, asked)) == -(-1000 // group), "each once"


def test_a_chunk_of_parquet_may_be_passed_over(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=500)
    (last,) = list(Reader(File(str(tmp_path / "a.parquet"))).rows(["text"], 7, 8, 64))[:1]
    assert [row["_row"] for row in last] == list(range(7 * 64, 500)), "a chunk ends with its row group"


def test_what_is_damaged_later_on_is_told(tmp_path):
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=500, compression="gzip")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    start = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
    content[start : start + 400] = bytes(400)
    (tmp_path / "a.parquet").write_bytes(content)
    rows = Reader(File(str(tmp_path / "a.parquet"))).rows(["text"], size=500)
    assert len(next(rows)) == 500
    with pytest.raises(DataError, match="can't be read to its end"):
        next(rows)


def test_lines_are_read_as_json_by_those_who_use_them(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()), "utf-8")
    asked, own = [], json.loads
    monkeypatch.setattr(read.json, "loads", lambda *given: asked.append(given) or own(*given))
    parts = shared(tmp_path / "a.jsonl", 4)
    assert len(asked) == 1000 == sum(map(len, parts))


def test_an_arrow_file_is_no_copy_in_memory(tmp_path):
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pa.ipc.new_stream(out, TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=100)
    before = pa.total_allocated_bytes()
    assert [len(part) for part in shared(tmp_path / "a.arrow", 4)] == [64 * 5, 36 * 5, 64 * 5, 36 * 5]
    assert pa.total_allocated_bytes() == before


def test_small_files_share_tasks():
    work = dealt({f"{n}": (1, 10.0) for n in range(1000)} | {"large": (3, 400.0), "last": (1, 1.0)}, 500.0)
    assert [len(shares) for shares in work] == [50] * 20 + [1, 1, 2]
    assert [share["task"] for shares in work for share in shares] == [task for task, shares in enumerate(work) for _ in shares]
    assert [(share["source"], share["shard"], share["shards"]) for share in work[-1]] == [(1000, 2, 3), (1001, 0, 1)]


def test_files_that_were_listed_are_not_asked_for_again(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("text,label\ngood,x\n", "utf-8")
    found = files(str(tmp_path))
    stamps = [file.stamp() for file in found]
    assert stamps == [File(str(file)).stamp() for file in found]
    (tmp_path / "a.csv").unlink()
    assert [file.stamp() for file in found] == stamps, "by what the listing told"
    assert files(str(tmp_path)) == found[1:]


def test_the_folder_of_a_file_is_found_once_for_all_its_rows(tmp_path):
    file = File(str(tmp_path / "a.csv"))
    assert file.folder is file.folder == tmp_path
