"""Every job file in jobs/ runs as it stands, on fewer rows and for fewer steps."""

from pathlib import Path

import pytest

import lc_ray
from lc_ray import spec

pytestmark = pytest.mark.cluster
SMALLER = {
    "data.rows": 200,
    "data.validation": "40 rows",
    "train.epochs": 0.4,
    "train.batch_size": 32,
    "search.population": 2,
    "evaluate.rounds": 1,
    "accept": {"max_drop": 1.0, "min_speedup": 0},
}


@pytest.mark.parametrize("file", Path("jobs").glob("*.yaml"), ids=lambda f: f.stem)
def test_job(ray_local, file, tmp_path):
    result = lc_ray.run(spec.read(file, SMALLER | {"storage": str(tmp_path)}))
    assert result.artifact.manifest.lineage["pruned"] > 0
    assert result.record["answer"]["answer"]
