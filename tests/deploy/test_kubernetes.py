"""Kubernetes: its own client against a stand-in for the API server, which takes of a RayService what KubeRay's schema allows."""

import asyncio
import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

import kubernetes.client
import pytest
import yaml
from kuberay import validators
from serving import served
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from lc_ray import DeployModel, artifact, cli
from lc_ray.deploy import kubernetes as platform
from lc_ray.errors import DeployError
from lc_ray.serve.app import environment
from lc_ray.serving import ServeSpec

SETTINGS = {"image": "registry.example/lc-ray:0.1.0-ray2.60.0", "path": "/runs/reviews/model"}


class ApiServer:
    def __init__(self, validator):
        self.validator, self.objects, self.status, self.looks, self.delay = validator, {}, [], 0, 0.0
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST", "PATCH", "DELETE"])])

    async def answer(self, request):
        await asyncio.sleep(self.delay)
        path, body = request.url.path, await request.body()
        told = yaml.safe_load(body) if body else {}
        if request.method == "POST":
            path = f"{path}/{told['metadata']['name']}"
            if path in self.objects:
                return self.refused(409, "AlreadyExists")
            self.objects[path] = told
        elif request.method == "PATCH":
            assert request.headers["content-type"] == "application/apply-patch+yaml"
            assert request.query_params["fieldManager"] == "lc-ray"
            if wrong := [e.message for e in self.validator.iter_errors(told)]:
                return self.refused(422, "; ".join(wrong))
            generation = self.objects.get(path, {"metadata": {"generation": 0}})["metadata"]["generation"] + 1
            self.objects[path] = told | {"metadata": told["metadata"] | {"generation": generation}}
        elif path not in self.objects:
            return self.refused(404, "NotFound")
        elif request.method == "DELETE":
            return JSONResponse(self.objects.pop(path))
        elif "spec" in self.objects[path]:
            self.looks += 1
            return JSONResponse(self.objects[path] | {"status": self.status[min(self.looks, len(self.status)) - 1]})
        return JSONResponse(self.objects[path])

    @staticmethod
    def refused(code, reason):
        return JSONResponse({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}, code)


def status(generation, **conditions):
    said = [{"type": kind, "status": str(value), "message": f"of {kind}"} for kind, value in conditions.items()]
    return {"observedGeneration": generation, "conditions": said}


@pytest.fixture
def api(tmp_path, monkeypatch):
    server = ApiServer(validators()["RayService"])
    server.status = [status(1, Ready=True)]
    with served(server.app) as place:
        file = {
            "clusters": [{"name": "here", "cluster": {"server": f"http://{place}"}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }
        (tmp_path / "config").write_text(yaml.safe_dump(file), "utf-8")
        monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
        monkeypatch.setattr(platform, "_POLL", 0.01)
        monkeypatch.setenv("LC_RAY_API_KEY", "secret")
        yield server


def test_an_api_server_that_does_not_answer_is_told(api, tiny_artifact, monkeypatch):
    monkeypatch.setattr(platform, "_ANSWERS", 0.1)
    api.delay = 2.0
    with pytest.raises(DeployError, match=r"the API server can't be reached: .*timed out"):
        DeployModel(tiny_artifact, "kubernetes", **SETTINGS).deploy()


def service(api):
    (found,) = [one for path, one in api.objects.items() if "rayservices" in path]
    return found


def test_a_deployment_and_all_that_it_made_is_gone_again(api, tiny_artifact):
    api.status = [{}, status(0, Ready=True), status(1, Ready=False), status(1, Ready=True, UpgradeInProgress=True), status(1, Ready=True)]
    deployment = DeployModel(tiny_artifact, "kubernetes", **SETTINGS, pods=3, cpu=2, memory="4Gi").deploy()
    assert api.looks == len(api.status)
    assert (deployment.url, deployment.key) == ("http://tiny-serve-svc.lc-ray.svc:8000", "secret")
    (secret,) = [one for path, one in api.objects.items() if path.endswith("/secrets/tiny-api-key")]
    assert base64.b64decode(secret["data"]["api-key"]) == b"secret"
    made = service(api)
    args = yaml.safe_load(made["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert args["artifacts"] == ["/runs/reviews/model"]
    assert args["digests"] == [artifact.read(tiny_artifact).digest]
    assert args["serve"]["replicas"] == {"min": 3, "max": 3, "cpu": 2, "gpu": 0}
    (group,) = made["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["image"] == SETTINGS["image"]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "tiny-api-key", "key": "api-key"}
    assert "secret" not in json.dumps(made).replace("secretKeyRef", "")
    deployment.delete()
    assert api.objects == {}


def test_a_secret_that_somebody_else_has_made_stays(api, tiny_artifact):
    path = "/api/v1/namespaces/lc-ray/secrets/tiny-api-key"
    api.objects[path] = {"metadata": {"name": "tiny-api-key"}, "data": {"api-key": base64.b64encode(b"theirs").decode()}}
    deployment = DeployModel(tiny_artifact, "kubernetes", **SETTINGS).deploy()
    assert deployment.key == "theirs"
    deployment.delete()
    assert list(api.objects) == [path]
    del api.objects[path]["data"]
    with pytest.raises(DeployError, match="has no `api-key`"):
        DeployModel(tiny_artifact, "kubernetes", **SETTINGS).deploy()


def test_pods_with_gpus(tiny_artifact):
    made = DeployModel(tiny_artifact, "kubernetes", **SETTINGS, gpu=2).plan()[1].arguments["body"]
    pod = made["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    component = yaml.safe_load(Path("k8s/overlays/gpu/kustomization.yaml").read_text("utf-8"))
    (overlay,) = (yaml.safe_load(one["patch"])[1]["value"] for one in component["patches"] if one["target"]["kind"] == "RayService")
    assert pod["tolerations"] == overlay, "machines with GPUs are kept free of all that does not say so"
    args = yaml.safe_load(made["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert args["serve"]["replicas"] == {"min": 4, "max": 4, "cpu": 2, "gpu": 1}, "a copy for each GPU"


def test_the_proxy_waits_as_long_as_requests_may_take(tiny_artifact):
    made = DeployModel(tiny_artifact, "kubernetes", **SETTINGS, serve={"timeout": "2m"}).plan()[1].arguments["body"]["spec"]["rayClusterConfig"]
    for template in (made["headGroupSpec"]["template"], made["workerGroupSpecs"][0]["template"]):
        (container,) = template["spec"]["containers"]
        name = "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"
        assert {"name": name, "value": environment(ServeSpec(timeout="2m"))[name]} in container["env"]


def servers(service):
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group["template"]["spec"]


def test_a_pod_that_goes_has_as_long_as_requests_may_take(tiny_artifact):
    for timeout, sleep in (("30s", 30), ("2m", 120), ("1s", 15)):
        pod = servers(DeployModel(tiny_artifact, "kubernetes", **SETTINGS, serve={"timeout": timeout}).plan()[1].arguments["body"])
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == f"sleep {sleep}; ray stop"
        assert pod["terminationGracePeriodSeconds"] == sleep + 30, "of which Ray needs the rest"
    pod = servers(yaml.safe_load(Path("k8s/rayservice/rayservice.yaml").read_text("utf-8")))
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == f"sleep {ServeSpec().timeout:.0f}; ray stop"


def test_pods_have_the_settings_that_serve_has_elsewhere():
    made = yaml.safe_load(Path("k8s/rayservice/rayservice.yaml").read_text("utf-8"))["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    (container,) = made["spec"]["containers"]
    told = {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("RAY_SERVE_")}
    elsewhere = environment(ServeSpec())
    assert told == {name: elsewhere[name] for name in told}


@pytest.mark.parametrize("serve", [{"tls": {"certificate": "a", "key": "b"}}, {"port": 80}, {"replicas": {"max": 5}}])
def test_what_the_service_and_the_pods_are_is_not_said_by_serve(tiny_artifact, serve):
    with pytest.raises(DeployError, match=f"serve: {next(iter(serve))}: not for Kubernetes"):
        DeployModel(tiny_artifact, "kubernetes", **SETTINGS, serve=serve)


def test_a_new_version_changes_the_pods_so_that_kuberay_brings_up_others(api, tiny_artifact):
    first = DeployModel(tiny_artifact, "kubernetes", **SETTINGS).plan()[1].arguments["body"]
    annotations = first["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert annotations == {"lc-ray/version": artifact.read(tiny_artifact).digest}
    DeployModel(tiny_artifact, "kubernetes", **SETTINGS).deploy()
    api.status = [status(1, Ready=True), status(2, Ready=True)]
    api.looks = 0
    assert DeployModel(tiny_artifact, "kubernetes", **SETTINGS | {"image": "lc-ray:2"}).deploy().key == "secret"
    assert api.looks == 2
    platform.delete(artifact.read(tiny_artifact), platform.Settings(**SETTINGS))
    assert api.objects == {}


def test_one_that_does_not_come_up_says_why(api, tiny_artifact):
    api.status = [status(1, Ready=False)]
    with pytest.raises(DeployError, match=r"tiny: it does not answer after 0 s: Ready: of Ready\n.*describe rayservice tiny"):
        DeployModel(tiny_artifact, "kubernetes", **SETTINGS, timeout=0).deploy()


def test_what_the_api_server_refuses_is_told(api, tiny_artifact):
    api.validator = validators()["RayJob"]
    with pytest.raises(DeployError, match=r"tiny: 422 .*serveConfigV2"):
        DeployModel(tiny_artifact, "kubernetes", **SETTINGS).deploy()


def test_what_somebody_else_has_made_stays_as_it_is(api, tiny_artifact):
    made = DeployModel(tiny_artifact, "kubernetes", **SETTINGS)
    made.deploy()
    service(api)["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
    before = dict(api.objects)
    for change in (made.deploy, lambda: platform.delete(artifact.read(tiny_artifact), platform.Settings(**SETTINGS))):
        with pytest.raises(DeployError, match="lc_ray has not made"):
            change()
    assert api.objects == before


def test_a_name_begins_with_a_letter(tiny_artifact, tmp_path):
    found = artifact.read(tiny_artifact)
    numbered = replace(found, manifest=found.manifest.model_copy(update={"name": "3D shapes"}))
    assert platform.manifest(numbered, platform.Settings(**SETTINGS))["metadata"]["name"] == "model-3d-shapes"


def test_a_dry_run_is_yaml_for_kubectl(api, tiny_artifact, capsys, monkeypatch):
    given = [f"--set={name}={value}" for name, value in {**SETTINGS, "serve.queue": 9}.items()]
    monkeypatch.setattr(sys, "argv", ["lc-ray", "deploy", str(tiny_artifact), "--platform", "kubernetes", "--dry-run", *given])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    (only,) = [one for one in yaml.safe_load_all(capsys.readouterr().out) if one]
    assert yaml.safe_load(only["spec"]["serveConfigV2"])["applications"][0]["args"]["serve"]["queue"] == 9
    assert only["kind"] == "RayService"
    assert only["metadata"] == {"name": "tiny", "namespace": "lc-ray", "labels": {"app.kubernetes.io/managed-by": "lc-ray"}}
    assert list(api.validator.iter_errors(only)) == []
    assert api.objects == {}


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"a,b\n", b"a: [\n"])
def test_no_cluster_is_told(tiny_artifact, tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "config").write_bytes(content)
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    with pytest.raises(DeployError, match="kubeconfig: "):
        DeployModel(tiny_artifact, "kubernetes", **SETTINGS).deploy()


def test_a_dry_run_of_deleting_is_refused(tiny_artifact, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lc-ray", "deploy", str(tiny_artifact), "--platform", "kubernetes", "--dry-run", "--delete"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code
    assert "leave one of the two out" in capsys.readouterr().err
