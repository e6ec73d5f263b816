"""The application builder: its arguments, and what k8s/ has KubeRay do with it, on a real local Ray Serve."""

import time
from pathlib import Path

import pytest
import yaml
from artifacts import copied
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

import lc_ray
from lc_ray import artifact
from lc_ray.client import Client
from lc_ray.errors import ArtifactError, ServeError, SpecError
from lc_ray.serve import app, auth, build, rollout, update
from lc_ray.serving import ServeSpec

KEY = "a key for tests"


@pytest.fixture
def config():
    """The RayService's `serveConfigV2`."""
    return yaml.safe_load(yaml.safe_load(Path("k8s/rayservice/rayservice.yaml").read_text("utf-8"))["spec"]["serveConfigV2"])


def test_a_replica_may_have_a_gpu_for_itself():
    given = app.Given(("model",), ServeSpec(replicas={"gpu": 1}), {}, {})
    assert app.bound(given)._bound_deployment.ray_actor_options["num_gpus"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "artifacts: this field is required"),
        ({"artifact": "x", "artifacts": "x"}, "did you mean 'artifacts'"),
        ({"artifacts": ["x", "y"], "digests": "a"}, r"args: 1 digests of 2 artifacts"),
        ({"artifacts": "x", "serve": {"replicas": {"min": 3, "max": 2}}}, r"min \(3\) is more than max"),
    ],
)
def test_arguments_that_are_not_right(args, message):
    with pytest.raises(SpecError, match=message):
        build.build(args)


def test_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    with pytest.raises(ServeError, match="no API key"):
        build.build({"artifacts": "somewhere"})
    monkeypatch.setenv(auth.VARIABLE, KEY)
    (given,) = build.build({"artifacts": "somewhere"})._bound_deployment.init_args
    assert (given.source, list(given.keys)) == (("somewhere",), [auth.digest(KEY)])
    (tmp_path / "keys").write_text("a:one\nb:two\n", "utf-8")
    made = build.build({"artifacts": ["a", "b"], "keys": str(tmp_path / "keys")})._bound_deployment
    assert list(made.init_args[0].keys) == [auth.digest("one"), auth.digest("two")]


def test_another_artifact_than_was_deployed_is_not_served(tiny_artifact, monkeypatch):
    monkeypatch.setenv(auth.VARIABLE, KEY)
    digest = artifact.read(tiny_artifact).digest
    made = build.build({"artifacts": str(tiny_artifact), "digests": digest})._bound_deployment
    (given,) = made.init_args
    assert list(rollout.served(given.source, given.digests)) == ["tiny"]
    with pytest.raises(ArtifactError, match=rf"this is {digest}, and 0123 is to be served"):
        rollout.served([tiny_artifact], ["0123"])


@pytest.mark.cluster
def test_the_config_of_k8s_on_ray_serve(ray_local, tiny_artifact, config):
    (application,) = config["applications"]
    digests = [artifact.read(tiny_artifact).digest]
    application["args"] = {"artifacts": [str(tiny_artifact)], "digests": digests, "serve": {"replicas": {"cpu": 1}}}
    application["runtime_env"] = {"env_vars": {auth.VARIABLE: KEY}}
    port = app._free("127.0.0.1", 0)
    variables = rayservice_variables() | app._side_ports()
    http = {"host": "127.0.0.1", "port": port}
    serve.start(proxy_location="HeadOnly", http_options=http, controller_options={"runtime_env": {"env_vars": variables}})
    try:
        _get_global_client().deploy_apps(ServeDeploySchema(**config))
        end = time.monotonic() + 300
        while (state := serve.status().applications.get("lc_ray")) is None or state.status not in ("RUNNING", "DEPLOY_FAILED"):
            assert time.monotonic() < end
            time.sleep(0.2)
        assert state.status == "RUNNING", state.message
        expected = lc_ray.load(tiny_artifact, threads=1).predict(["good flight"])
        with Client(f"http://127.0.0.1:{port}", KEY) as client:
            assert client.predict(["good flight"])[0]["label"] == expected[0]["label"]
        with pytest.raises(ServeError, match="can't be changed from here"):
            update.update(tiny_artifact)
        with Client(f"http://127.0.0.1:{port}", "guess") as client, pytest.raises(ServeError, match="valid key"):
            client.predict(["good"])
    finally:
        app.stop()


@pytest.mark.cluster
def test_what_a_replica_fails_with_is_told(ray_local, tiny_artifact, tmp_path):
    architecture = artifact.read(tiny_artifact).manifest.architecture | {"shapes": {"head.bias": [7]}}
    with pytest.raises(ServeError, match=r"the endpoint can't start: .*the weights do not fit"):
        app.start([copied(tiny_artifact, tmp_path / "tiny", architecture=architecture)], ServeSpec(port=0), {})


def rayservice_variables():
    """What the RayService sets for Serve's processes; the same as for an endpoint of ours."""
    manifest = yaml.safe_load(Path("k8s/rayservice/rayservice.yaml").read_text("utf-8"))
    (container,) = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}
