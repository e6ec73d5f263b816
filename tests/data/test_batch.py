import itertools
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lc_ray.data.batch import ahead, arrange, deal, steps_per_epoch, stream
from lc_ray.data.prepare import Prepared
from lc_ray.errors import DataError
from lc_ray.storage import StoragePath


@pytest.fixture(params=["", "file://"])
def prepared(tmp_path, request):
    """200 rows in 10 parts; `_size` is 1 to 40."""
    (tmp_path / "one" / "train").mkdir(parents=True)
    record = []
    for part in range(10):
        ids = list(range(part * 20, part * 20 + 20))
        pq.write_table(pa.table({"id": ids, "_size": [1 + i * 7 % 40 for i in ids]}), tmp_path / "one" / "train" / f"{part}.parquet")
        record.append({"file": f"{part}.parquet", "rows": 20})
    return Prepared(StoragePath(f"{request.param}{tmp_path}"), {"try": "one", "train": record})


def take(prepared, count, rank=0, world=2, batch_size=20, seed=0, start=0):
    return [b["id"] for b in itertools.islice(stream(prepared, rank, world, batch_size, seed, start), count)]


def test_every_part_goes_to_one_worker():
    parts = [str(i) for i in range(10)]
    dealt = [deal(parts, rank, 3, seed=1, epoch=0) for rank in range(3)]
    assert sorted(itertools.chain(*dealt)) == parts
    assert dealt != [deal(parts, rank, 3, seed=1, epoch=1) for rank in range(3)]


def test_more_workers_than_parts():
    with pytest.raises(DataError, match="fewer workers"):
        deal(["0"], 0, 2, 0, 0)


def test_an_epoch_sees_every_row_once(prepared):
    seen = Counter(i for rank in (0, 1) for batch in take(prepared, 10, rank) for i in batch)
    assert seen == Counter(range(200))


def test_workers_never_share_a_row_in_an_epoch(prepared):
    rows = [set(itertools.chain(*take(prepared, 9, rank, 3, 21))) for rank in range(3)]
    assert not rows[0] & rows[1]
    assert not rows[1] & rows[2]


def test_same_seed_same_batches_another_seed_others(prepared):
    assert take(prepared, 30) == take(prepared, 30)
    assert take(prepared, 30) != take(prepared, 30, seed=1)


def test_epochs_differ(prepared):
    batches = take(prepared, 20)
    assert batches[:10] != batches[10:]


@pytest.mark.parametrize("start", [1, 9, 10, 13, 25])
def test_resuming_gives_the_very_batch_it_would_have_had(prepared, start):
    assert take(prepared, 5, start=start) == take(prepared, 30)[start : start + 5]


def test_batches_are_whole(prepared):
    assert {len(b) for b in take(prepared, 40, world=1, batch_size=16)} == {16}


def test_rows_of_like_length_meet(prepared):
    sizes = [[1 + i * 7 % 40 for i in b] for b in take(prepared, 10, world=1)]
    padded = sum(max(s) * len(s) for s in sizes)
    rows = np.random.default_rng(0).permutation(200).reshape(10, 20)
    random = sum(max(1 + i * 7 % 40 for i in b) * 20 for b in rows)
    assert padded < 0.8 * random


def test_arrange_is_a_permutation():
    parts = arrange(np.array([5, 1, 9, 3, 7, 2, 8]), 3, [0])
    assert [len(p) for p in parts] == [3, 3, 1]
    assert sorted(np.concatenate(parts)) == list(range(7))


@pytest.mark.parametrize(("rows", "batch", "steps"), [(100, 10, 10), (105, 10, 10), (5, 10, 1)])
def test_steps(rows, batch, steps):
    assert steps_per_epoch(rows, batch) == steps


def test_a_part_whose_rows_all_lack_a_value(tmp_path):
    (tmp_path / "one" / "train").mkdir(parents=True)
    for part, values in enumerate(([None, None], [b"a", None], [b"b", b"c"])):
        pq.write_table(pa.table({"pixels": values, "_size": [1, 1]}), tmp_path / "one" / "train" / f"{part}.parquet")
    prepared = Prepared(StoragePath(str(tmp_path)), {"try": "one", "train": [{"file": f"{part}.parquet", "rows": 2} for part in range(3)]})
    batches = list(itertools.islice(stream(prepared, 0, 1, 3, 0), 2))
    assert Counter(v for batch in batches for v in batch["pixels"]) == Counter([None, None, None, b"a", b"b", b"c"])
    assert Counter(prepared.rows("train")["pixels"]) == Counter([None, None, None, b"a", b"b", b"c"])


def test_the_next_is_made_while_one_is_used():
    made, threads = [], set()

    def items():
        for number in itertools.count():
            made.append(number)
            threads.add(threading.current_thread())
            yield number

    found = ahead(items())
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    found.close()
    assert made == [0, 1, 2, 3]
    assert threading.current_thread() not in threads
    with pytest.raises(DataError, match="lost"):
        next(ahead(1 / 0 if one else _lost() for one in [0]))


def _lost():
    raise DataError("lost")
