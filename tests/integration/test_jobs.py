"""Every job file in jobs/ is valid; the one whose columns, base models and data are of several kinds is run, on fewer rows and for fewer steps."""

from pathlib import Path

import pytest

import lc_ray
from lc_ray import family, spec

SMALLER = {
    "data.train": "package:easy_vqa/data/test/questions.json",  # a quarter of the pictures
    "data.rows": 800,
    "data.validation": "10%",
    "train.batch_size": 32,
    "train.epochs": 0.3,
    "train.workers.count": 1,
    "search": None,
    "quantize.calibration": 32,
    "evaluate.rounds": 1,
    "accept": {"max_drop": 1.0, "min_speedup": 0},
}


@pytest.mark.parametrize("file", sorted(Path("jobs").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_job_names_what_is_there(file):
    job = spec.read(file)
    task = family.load("tasks", job.task.kind).Task
    assert task.options(job.task) is not None
    assert job.data.target or not task.LABELLED
    for column in job.inputs():
        assert family.load("modalities", column.modality).Modality.TYPE is not None


@pytest.mark.cluster
def test_questions_about_pictures(ray_local, tmp_path):
    result = lc_ray.run(spec.read("jobs/questions_demo.yaml", SMALLER | {"storage": str(tmp_path)}))
    assert result.artifact.manifest.lineage["pruned"] > 0
    assert result.record["answer"]["question"].keys() == {"question", "picture"}
    assert result.record["answer"]["answer"]["label"]
    assert result.record["ablation"].keys() == {"only question", "only picture"}
    assert result.record["rows"]["rejected"] == 0
