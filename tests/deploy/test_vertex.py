"""Vertex AI: Google's clients against a local stand-in for its control plane."""

import re

import pytest
from google.api_core.exceptions import FailedPrecondition, InternalServerError
from google.cloud import aiplatform
from vertex_ai import PLACE

from lc_ray import DeployModel, artifact
from lc_ray.deploy import vertex
from lc_ray.errors import DeployError

SETTINGS = {"project": "demo", "region": "europe-west4", "bucket": "models", "image": "europe-west4-docker.pkg.dev/demo/lc/ray:1"}


def put(path, **settings):
    return DeployModel(path, "Google Cloud", **SETTINGS | settings).deploy()


def nothing(google):
    return (google.models, google.endpoints, google.files) == ({}, {}, {})


def test_a_deployment_and_all_that_it_made_is_gone_again(google, tiny_artifact):
    deployment = put(tiny_artifact, accelerator="NVIDIA_L4", machine="g2-standard-4", most=2)
    (endpoint,), (model,) = google.endpoints.values(), google.models.values()
    assert endpoint["displayName"] == "tiny"
    found = artifact.read(tiny_artifact)
    assert {name.partition("/")[2].partition("/")[2] for _, name in google.files} == {*found.manifest.files, "manifest.json"}
    assert all(content == (tiny_artifact / name.split("/", 2)[2]).read_bytes() for (_, name), content in google.files.items())
    assert all(f"gs://{bucket}/{name}".startswith(model["artifactUri"] + "/") for bucket, name in google.files)
    container = model["containerSpec"]
    assert container["imageUri"] == SETTINGS["image"]
    assert container["command"] == ["python", "-m", "lc_ray.serve.container"]
    assert {"name": "LC_RAY_KEYLESS", "value": "1"} in container["env"]
    (deployed,) = endpoint["deployedModels"]
    machine = deployed["dedicatedResources"]
    assert machine["machineSpec"]["machineType"] == "g2-standard-4"
    assert (machine["minReplicaCount"], machine["maxReplicaCount"]) == (1, 2)
    assert endpoint["trafficSplit"] == {deployed["id"]: 100}
    assert deployment.url == f"https://europe-west4-aiplatform.googleapis.com/v1/{endpoint['name']}:predict"
    put(tiny_artifact, accelerator="NVIDIA_L4", machine="g2-standard-4", most=2)
    assert (len(google.models), len(endpoint["deployedModels"])) == (1, 1)
    deployment.delete()
    assert nothing(google)


def test_a_new_version_takes_some_of_the_traffic_and_then_the_place_of_the_old(google, tiny_artifact):
    put(tiny_artifact)
    (endpoint,) = google.endpoints.values()
    (old,) = endpoint["deployedModels"]
    put(tiny_artifact, machine="n2-standard-8", traffic=20)
    new = endpoint["deployedModels"][1]
    assert endpoint["trafficSplit"] == {old["id"]: 80, new["id"]: 20}
    assert len(google.models) == 2
    put(tiny_artifact, machine="n2-standard-8")
    assert endpoint["deployedModels"] == [new]
    assert endpoint["trafficSplit"] == {new["id"]: 100}
    assert list(google.models) == [new["model"]]
    assert {name.split("/")[1] for _, name in google.files} == {new["displayName"]}
    vertex.delete(artifact.read(tiny_artifact), vertex.Settings(**SETTINGS))
    assert nothing(google)


def test_a_version_is_deleted_from_the_bucket_that_it_is_in(google, tiny_artifact):
    put(tiny_artifact)
    put(tiny_artifact, bucket="others")
    (model,) = google.models.values()
    assert model["artifactUri"].startswith("gs://others/")
    assert {bucket for bucket, _ in google.files} == {"others"}
    vertex.delete(artifact.read(tiny_artifact), vertex.Settings(**SETTINGS))
    assert nothing(google)


def test_what_is_refused_leaves_all_as_it_was(google, tiny_artifact):
    google.refuse = {"deployModel"}
    with pytest.raises(DeployError, match=r"tiny: .*no deployModel today"):
        put(tiny_artifact)
    assert nothing(google)
    google.refuse = set()
    put(tiny_artifact)
    before, models, files = dict(*google.endpoints.values()), dict(google.models), dict(google.files)
    google.refuse = {"deployModel"}
    with pytest.raises(DeployError):
        put(tiny_artifact, machine="n2-standard-8")
    assert (dict(*google.endpoints.values()), google.models, google.files) == (before, models, files)


@pytest.mark.parametrize("error", [InternalServerError("the machines are gone"), KeyboardInterrupt()])
def test_what_can_not_be_undone_is_told_beside_what_went_wrong(google, tiny_artifact, monkeypatch, error):
    def refused(*_, **__):
        raise FailedPrecondition("a model is being deployed")

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(aiplatform.Endpoint, "deploy", fails)
    monkeypatch.setattr(aiplatform.Endpoint, "delete", refused)
    wrong = re.escape(str(error) or "KeyboardInterrupt")
    with pytest.raises(DeployError, match=f"tiny: {wrong}; and it can't be undone: .*being deployed\n.*the same command again"):
        put(tiny_artifact)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerators": 2}, "settings of vertex: accelerators without accelerator"),
        ({"accelerator": "NVIDIA_L4"}, "machine n2-standard-4 has no GPUs: choose one that has NVIDIA_L4"),
        ({"accelerator": "NVIDIA_NONE", "machine": "g2-standard-4"}, "tiny: .*NVIDIA_NONE"),
    ],
)
def test_gpus_that_are_not_right(google, tiny_artifact, settings, message):
    with pytest.raises(DeployError, match=message):
        put(tiny_artifact, **settings)
    assert nothing(google)


def test_an_endpoint_that_others_have_made_is_left_alone(google, tiny_artifact):
    theirs = f"{PLACE}/endpoints/7"
    google.endpoints[theirs] = {"name": theirs, "displayName": "tiny", "labels": {"team": "search"}}
    with pytest.raises(DeployError, match="lc_ray has not made: it lacks the tag 'lc_ray'"):
        put(tiny_artifact)
    with pytest.raises(DeployError, match="lc_ray has not made"):
        vertex.delete(artifact.read(tiny_artifact), vertex.Settings(**SETTINGS))
    assert list(google.endpoints) == [theirs]
    assert not google.models


@pytest.mark.parametrize(
    ("before", "new", "percent", "expected"),
    [
        ({}, "0", 20, {"0": 100}),
        ({"1": 100}, "0", 100, {"1": 0, "0": 100}),
        ({"1": 50, "2": 50}, "0", 33, {"1": 33, "2": 33, "0": 34}),
        ({"1": 80, "2": 20}, "2", 60, {"1": 40, "2": 60}),
        ({"1": 0, "2": 100}, "2", 60, {"1": 0, "2": 100}),
    ],
)
def test_shares(before, new, percent, expected):
    assert vertex.shares(before, new, percent) == expected


def test_a_dry_run_calls_nothing(google, tiny_artifact):
    told = "\n".join(map(str, DeployModel(tiny_artifact, "vertex", **SETTINGS).plan()))
    for name in (SETTINGS["project"], SETTINGS["region"], "upload_from_filename", "Model.upload", "Endpoint.create", "Endpoint.deploy"):
        assert name in told
    assert nothing(google)


def test_settings_that_are_missing(tiny_artifact):
    with pytest.raises(DeployError, match=r"project: .*\n  region: .*\n  bucket: .*\n  image: "):
        DeployModel(tiny_artifact, "vertex")
