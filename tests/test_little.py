"""What a run says of data that is too little to learn from, or to judge by."""

import pytest

from lc_ray import pipeline, spec
from lc_ray.data.prepare import Prepared
from lc_ray.storage import StoragePath

JOB = {"model": {"base": "b"}, "data": {"train": "t.csv", "inputs": [{"column": "text"}], "target": "label"}}


@pytest.mark.parametrize(
    ("train", "validation", "told"),
    [
        (27, [1, 1, 1], ["measured on 3 row(s)", "training: 3 steps in all"]),
        (27, [100, 100], ["training: 3 steps in all"]),
        (300, [33], ["measured on 33 row(s)"]),
        (1000, [50, 50], []),
    ],
)
def test_little_data_is_told_of(train, validation, told):
    parts = {"train": [{"file": "1", "rows": train}], "validation": [{"file": str(place), "rows": rows} for place, rows in enumerate(validation)]}
    data = Prepared(StoragePath("/prepared"), {"try": "one", **parts})
    found = pipeline._little(spec.parse(JOB), data)
    assert len(found) == len(told)
    assert all(part in note for part, note in zip(told, found, strict=True))


def test_half_of_the_rows_are_little_where_members_are_compared_on_the_others():
    parts = {"train": [{"file": "1", "rows": 900}], "validation": [{"file": "1", "rows": 60}, {"file": "2", "rows": 40}]}
    job = spec.parse(JOB | {"search": {"genes": {"train.learning_rate": {"log_uniform": [1e-5, 1e-4]}}}})
    halves, few = pipeline._little(job, Prepared(StoragePath("/prepared"), {"try": "one", **parts}))
    assert "compared on 60 of its rows" in halves
    assert "measured on 40 row(s)" in few
