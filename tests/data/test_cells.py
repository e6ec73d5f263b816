"""Cells that are found by their place."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest

from lc_ray import spec
from lc_ray.data import cells
from lc_ray.data.cells import gather, reading, settled, unread
from lc_ray.errors import DataError
from lc_ray.storage import StoragePath


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_rows_of_many_files_come_in_the_order_asked_for(tmp_path, scheme, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = StoragePath(f"{scheme}{tmp_path}")
    for task, chunk in ((0, 0), (0, 1), (3, 0)):
        table = pa.table({"name": [f"{task}-{chunk}-{i}" for i in range(5)], "pixels": [bytes([task, chunk, i]) for i in range(5)]})
        with pa.OSFile(str(tmp_path / f"{task:05d}-{chunk:06d}.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    asked = [(3, 0, 4), (0, 1, 0), (0, 0, 2), (3, 0, 1), (0, 1, 0)]
    index = pa.table({name: pa.array([row[i] for row in asked], pa.int32()) for i, name in enumerate(("_task", "_chunk", "_place"))})
    found = gather(index, folder)
    assert found["name"].to_pylist() == ["3-0-4", "0-1-0", "0-0-2", "3-0-1", "0-1-0"]
    assert found["pixels"].to_pylist() == [bytes(row) for row in asked]
    assert gather(index, folder, ["pixels"]).column_names == ["pixels"]


@pytest.mark.parametrize("kind", ["of another user", "a link"])
def test_copies_that_another_user_may_have_put_there_are_not_read(tmp_path, monkeypatch, kind):
    """Temporary folders are everybody's, and the name can be guessed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = StoragePath(f"file://{tmp_path}/cells")
    planted, theirs = cells._copies(folder), tmp_path / "theirs"
    table = pa.table({"name": ["x"]})
    theirs.mkdir()
    with pa.OSFile(str(theirs / "00000-000000.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    if kind == "a link":
        planted.symlink_to(theirs)
    else:
        theirs.rename(planted)
        owner = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: owner + 1)
        monkeypatch.setattr(cells, "_copies", lambda folder: planted)
    index = pa.table({name: pa.array([0], pa.int32()) for name in ("_task", "_chunk", "_place")})
    with pytest.raises(DataError, match="somebody else's"):
        gather(index, folder)


def test_equal_rows_are_told_by_their_source():
    index = pa.table({"_order": [5, 3, 5, 5], "_source": [1, 0, 0, 0], "_row": [0, 9, 7, 2]})
    assert settled(index)["_row"].to_pylist() == [9, 2, 7, 0]
    assert np.array_equal(settled(index, drop=True)["_row"], [9, 2])


def test_what_a_task_has_its_columns_do_is_for_its_jobs_alone(tiny_job):
    kinds = ("text_generation", "classification", "text_generation")
    sides = [reading(spec.parse(tiny_job | {"task": {"kind": kind}}))[1]["text"].tokenizer.truncation_side for kind in kinds]
    assert sides == ["left", "right", "left"]


def test_columns_beside_a_conversation_that_are_not_read_are_told(tmp_path):
    row = {"messages": [{"role": "user", "content": "x"}], "tools": [], "system": "y", "parallel_tool_calls": True}
    (tmp_path / "talks.jsonl").write_text(json.dumps(row) + "\n", "utf-8")

    def told(column, modality="chat"):
        data = {"train": str(tmp_path / "talks.jsonl"), "inputs": [{"column": column, "modality": modality}]}
        return unread(spec.parse({"model": {"base": "x"}, "data": data, "task": {"kind": "text_generation"}}))

    assert told("messages") == ["tools, system of the data is not read; it is with `column: messages|tools|system`"]
    assert told("messages|tools|system") == told("messages", "text") == []
