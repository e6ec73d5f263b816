"""What stands in a job's way on a cluster, all of it at once."""

import importlib.metadata
import platform
from types import SimpleNamespace

import pytest

import lc_ray
from lc_ray import spec
from lc_ray.cluster import check, probe
from lc_ray.cluster.package import pack
from lc_ray.errors import ClusterError

NODE = {"CPU": 1.0, "memory": 2**32, "object_store_memory": 2**30}


@pytest.fixture
def package(tiny_job):
    return pack(spec.parse(tiny_job))


@pytest.fixture
def found():
    """A cluster that can run the job."""
    names = [requirement.name for requirement in check._requirements()]
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "lc_ray": None,
        "packages": [],
        "storage": "/mnt/runs",
        "nodes": [NODE, NODE],
        "starting": False,
        "refused": "",
        "unshared": [],
        "absent": [],
    }


def test_nothing_is_lacking(found, package):
    check.require(found, package, "here")


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"python": "3.9.1"}, "Python 3.9.1 is there, >=3.11 is needed"),
        ({"packages": ["easy_vqa"]}, "package 'easy_vqa' is missing"),
        ({"nodes": [NODE]}, "2 workers of 1 CPU need 2 CPUs; the cluster has 1"),
        ({"unshared": ["10.0.0.2"]}, "node 10.0.0.2 does not see /mnt/runs"),
        ({"refused": "Bucket not found"}, "nothing can be written to its storage /mnt/runs: Bucket not found"),
        ({"absent": ["/mnt/rows.csv"]}, "not all nodes see /mnt/rows.csv"),
    ],
)
def test_what_is_lacking_is_told(found, package, lacking, message):
    with pytest.raises(ClusterError, match=message):
        check.require(found | lacking, package, "here")


def test_versions_are_those_that_lc_ray_asks_for(found, package):
    found["versions"] |= {"ray": "2.40.0", "deepspeed": None}
    with pytest.raises(ClusterError) as told:
        check.require(found, package, "here")
    assert "ray 2.40.0 is there, <2.61,>=2.60 is needed" in str(told.value)
    assert "deepspeed is missing" in str(told.value)


def test_nodes_that_an_autoscaler_starts_are_counted_on(found, package):
    check.require(found | {"nodes": [], "starting": True}, package, "here")


def test_packages_inside_others_that_are_missing_are_missing():
    assert all(map(probe._importable, ("json", "json.decoder")))
    assert not any(map(probe._importable, ("json.nothing", "nothing.at.all", "sys.nothing")))


def test_the_digest_of_a_package_is_of_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    first = probe.digest(tmp_path / "a")
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("1")
    assert probe.digest(tmp_path / "a") == first
    (tmp_path / "a" / "x.py").write_text("2")
    assert probe.digest(tmp_path / "a") != first
    assert check.ours()[1] == probe.digest(check.ours()[0])
    assert (check.ours()[0] / "__init__.py").samefile(lc_ray.__file__)


@pytest.mark.parametrize(
    ("cluster", "job", "place"),
    [("s3://b/runs/", "runs", "s3://b/runs"), (None, "/mnt/runs/", "/mnt/runs"), (None, "runs", "~/lc_ray_runs")],
)
def test_where_the_cluster_keeps_runs(cluster, job, place):
    named = SimpleNamespace(cluster=SimpleNamespace(storage=cluster)), SimpleNamespace(job=SimpleNamespace(storage=job))
    assert check.storage(*named) == place


@pytest.mark.parametrize(("place", "why"), [("/proc/x", "Cannot create directory"), ("ftp://there/x", "Unrecognized"), ("s3://", "bucket")])
def test_storage_that_can_t_be_written_is_told(place, why):
    assert why in probe._refused(f"{place}/file")


def test_storage_that_can_be_written(tmp_path):
    assert probe._refused(f"{tmp_path}/new/file") == ""
