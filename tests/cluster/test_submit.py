"""What a job tells on its way, and how it ends."""

import dataclasses
import json

import pytest

from lc_ray import spec
from lc_ray.cluster import check, submit
from lc_ray.cluster.clusters import Cluster
from lc_ray.cluster.jobs import Job
from lc_ray.errors import ClusterError, DataError
from lc_ray.progress import Display
from lc_ray.section import override


class Told:
    """A cluster's jobs, of which one has printed some lines."""

    def __init__(self, status, *lines):
        self.job, self.lines = Job("tiny-1", "tiny", "key", status, "it is over", 1.0, 2.0, "node"), lines

    def follow(self, name, take):
        for line in self.lines:
            take(line if isinstance(line, str) else json.dumps(line))
        return self.job


STEP = {"time": 1.0, "event": "step", "member": 0, "step": 1, "steps": 2, "loss": 0.5}  # as a worker posts it
STAGE = {"event": "stage", "name": "prepare", "title": "prepare: read"}


def test_every_event_is_shown(capsys):
    told = Told("SUCCEEDED", STAGE, "a warning", "{oops", '{"no": 1}', STEP, {"event": "result", "metrics": {}})
    assert submit.follow(told, "tiny-1", Display(None, "json")).status == "SUCCEEDED"
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [STAGE, STEP]


def test_its_error_is_raised_here():
    error = {"event": "error", "kind": "DataError", "what": "no column 'x'", "where": "rows.csv", "fix": "correct it"}
    with pytest.raises(DataError) as raised:
        submit.follow(Told("FAILED", STAGE, error), "tiny-1", Display(None, "quiet"))
    assert str(raised.value) == "rows.csv: no column 'x'\n  → correct it"
    with pytest.raises(ClusterError, match="what"):
        submit.follow(Told("FAILED", error | {"kind": "annotations", "what": "what"}), "tiny-1", Display(None, "quiet"))


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_one_that_ends_without_a_word_shows_its_last_lines(status):
    with pytest.raises(ClusterError, match=f"ended as {status}: it is over\n  a traceback\n  → submit it again"):
        submit.follow(Told(status, STEP, "a traceback"), "tiny-1", Display(None, "quiet"))


def test_a_result_that_a_later_job_has_written_over_is_not_fetched(tmp_path):
    class Two(Told):
        def all(self):
            return [self.job, dataclasses.replace(self.job, id="tiny-2", key="other")]

    two = Two("SUCCEEDED")
    with pytest.raises(ClusterError, match="a later job of that name"):
        submit.bring(two, two.job, tmp_path)
    running = Two("RUNNING")
    with pytest.raises(ClusterError, match="the job is RUNNING"):
        submit.bring(running, running.job, tmp_path)


class Sent:
    """A cluster whose jobs succeed at once."""

    cluster, address = Cluster(address="http://there"), "http://there"

    def __init__(self):
        self.sent = []

    def all(self):
        return self.sent

    def get(self, name):
        return next(one for one in self.sent if one.id == name)

    def submit(self, command, name, metadata, environment):
        self.sent.append(Job(name, metadata["name"], metadata["lc_ray"], "SUCCEEDED", "", None, None, None))


@pytest.fixture
def looked(monkeypatch):
    """A first look at the cluster finds all that is needed."""
    monkeypatch.setattr(check, "look", lambda jobs, package: {"storage": "/mnt/runs", "lc_ray": None})
    monkeypatch.setattr(check, "require", lambda found, package, where: None)


def test_a_job_that_another_has_sent_at_the_same_time_is_followed(looked, tiny_job):
    class Twice(Sent):
        def submit(self, command, name, metadata, environment):
            super().submit(command, name, metadata, environment)
            raise ClusterError(f"the cluster answered: Job with submission_id {name} already exists")

    assert submit.submit(spec.parse(tiny_job), Twice(), Display(None, "quiet")).id.startswith("tiny-")


def test_a_job_whose_data_may_be_other_data_by_now_is_sent_again(looked, tiny_job):
    for data, times in ({}, 1), ({"data.train": "s3://bucket/rows.csv"}, 2), ({"data.train": "/mnt/there/rows.csv"}, 2):
        job, there = spec.parse(override(tiny_job, data)), Sent()
        sent = [submit.submit(job, there, Display(None, "quiet")).id for _ in range(2)]
        assert len(there.sent) == len(set(sent)) == times
