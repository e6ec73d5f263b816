"""Deploy on Kubernetes, as a RayService that KubeRay runs.

The artifact lies on a volume that its pods mount, where a RayJob or `lc-ray submit` has left it. What the RayService needs beside itself is made by
`kubectl apply -k k8s/common`; the credentials are those of kubectl.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import Field, field_validator

from lc_ray.artifact import Artifact
from lc_ray.client import Client
from lc_ray.deploy import _platform
from lc_ray.deploy._platform import Call
from lc_ray.errors import DeployError
from lc_ray.section import Section
from lc_ray.serve import auth
from lc_ray.serving import ServeSpec
from lc_ray.units import Seconds

_KIND = {"group": "ray.io", "version": "v1", "plural": "rayservices"}
_MANAGER = "lc-ray"
_POLL = 5.0  # seconds between two looks at a service, which takes minutes
_ANSWERS = 60.0  # seconds in which the API server must answer a call
_HEARD, _STOPS = 15, 30  # seconds in which a Service has heard that a pod goes, and in which Ray has stopped
_VERSION = "lc-ray/version"
_ELSEWHERE = ("host", "port", "grpc_port", "tls", "replicas")  # of a job's `serve`: what Kubernetes' Service, an Ingress and the pods are
_MARK = {"app.kubernetes.io/managed-by": _MANAGER}


class Settings(Section):
    """The RayService, and its pods."""

    path: str = Field(pattern="^/", description="the artifact's folder in the pods, such as /runs/reviews/model")
    image: str = Field(min_length=1, description="the image of cluster/Dockerfile, in a registry")
    name: str | None = Field(None, max_length=47, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", description="of the RayService; the model's if not given")
    namespace: str = Field("lc-ray", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    context: str | None = Field(None, description="kubectl's; the current one if not given")
    claim: str = Field("lc-ray-runs", description="PersistentVolumeClaim that is mounted at /runs")
    pods: int = Field(2, ge=1, description="that serve, each with one copy of the model, or one for each of its GPUs")
    cpu: int = Field(4, ge=1, description="of each pod")
    memory: str = Field("16Gi", pattern=r"^\d+(Mi|Gi)$", description="of each pod")
    gpu: int = Field(0, ge=0, description="NVIDIA's, of each pod")
    serve: ServeSpec = Field(ServeSpec(), description="limits and batching, as in a job file")
    url: str | None = Field(None, description="where clients reach it, such as an Ingress's; the Service's, inside the cluster, if not given")
    timeout: Seconds = Field(1800.0, description="longest time until it answers")

    @field_validator("serve")
    @classmethod
    def _of_the_model(cls, serve: ServeSpec) -> ServeSpec:
        if said := [name for name in _ELSEWHERE if getattr(serve, name) != getattr(ServeSpec(), name)]:
            raise ValueError(f"{', '.join(said)}: not for Kubernetes: the Service listens, an Ingress has TLS, and pods are the replicas")
        return serve


class _Manifest(Call):
    """A call as YAML that `kubectl apply -f -` takes too, to which a Secret is but a comment."""

    def __str__(self) -> str:
        body = self.arguments["body"]
        about = f"# {self.name} {body['metadata']['name']}: {self.note}"
        return f"{about}\n---\n{yaml.safe_dump(body, sort_keys=False)}" if "spec" in body else about


def calls(artifact: Artifact, settings: Settings) -> list[Call]:
    """The Secret with the API key, unless it is there, and the RayService.

    Raises:
        DeployError: GPUs for a model that does not run on any.
    """
    _platform.need_no_gpu(artifact, settings.gpu > 0)
    name, namespace = _name(artifact, settings), settings.namespace
    secret = {"namespace": namespace, "body": {"metadata": {"name": _secret(name), "labels": _MARK}, "data": {"api-key": "..."}}}
    service = _KIND | {"namespace": namespace, "name": name, "body": manifest(artifact, settings), "field_manager": _MANAGER, "force": True}
    return [
        _Manifest("CoreV1Api.create_namespaced_secret", secret, "unless it is there; the key is that of `lc-ray serve`"),
        _Manifest("CustomObjectsApi.patch_namespaced_custom_object", service, "server-side apply"),
    ]


def manifest(artifact: Artifact, settings: Settings) -> dict[str, Any]:
    """The RayService of k8s/, for an artifact."""
    base = yaml.safe_load(importlib.resources.files("lc_ray.deploy").joinpath("rayservice.yaml").read_text("utf-8"))
    found: dict[str, Any] = json.loads(json.dumps(base))  # of what the file shares among pods, a copy for each
    name, pods = _name(artifact, settings), settings.pods
    found["metadata"] = {"name": name, "namespace": settings.namespace, "labels": _MARK}
    config, cluster = yaml.safe_load(found["spec"]["serveConfigV2"]), found["spec"]["rayClusterConfig"]
    copies = max(1, settings.gpu)  # in a pod
    replicas = {"min": pods * copies, "max": pods * copies, "cpu": settings.cpu / copies, "gpu": min(1, settings.gpu)}
    serve = settings.serve.model_dump(mode="json") | {"replicas": replicas}
    config["applications"][0]["args"] = {"artifacts": [settings.path], "digests": [artifact.digest], "serve": serve}
    found["spec"]["serveConfigV2"] = yaml.safe_dump(config, sort_keys=False)
    (group,) = cluster["workerGroupSpecs"]
    group |= {"replicas": pods, "minReplicas": pods, "maxReplicas": pods}
    size = {"cpu": str(settings.cpu), "memory": settings.memory} | ({"nvidia.com/gpu": str(settings.gpu)} if settings.gpu else {})
    pod, lasts = group["template"]["spec"], math.ceil(settings.serve.timeout)
    pod["containers"][0]["resources"] = {"requests": size, "limits": size}
    pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2] = f"sleep {max(lasts, _HEARD)}; ray stop"
    pod["terminationGracePeriodSeconds"] = max(lasts, _HEARD) + _STOPS
    if settings.gpu:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]  # as k8s/overlays/gpu
    for template in (cluster["headGroupSpec"]["template"], group["template"]):
        # A change of the pods is what has KubeRay bring up a second cluster, which takes the place of the first once it answers.
        template["metadata"] = {"annotations": {_VERSION: artifact.digest}}
        (container,) = template["spec"]["containers"]
        container["image"] = settings.image
        variables = {one["name"]: one for one in container["env"]}
        variables[auth.VARIABLE]["valueFrom"]["secretKeyRef"]["name"] = _secret(name)
        variables["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]["value"] = str(lasts + 1)  # as serve/app.py has it
        template["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = settings.claim
    return found


def _name(artifact: Artifact, settings: Settings) -> str:
    name = _platform.label(artifact.manifest.name, 47)
    return settings.name or (name if name[0].isalpha() else _platform.label(f"model-{name}", 47))


def _secret(name: str) -> str:
    return f"{name}-api-key"


@dataclass(frozen=True)
class Deployment:
    """A RayService.

    Attributes:
        url: where it answers, for those who can reach it.
        key: what requests need as `Authorization: Bearer KEY`.
        name: of the RayService.
    """

    url: str
    key: str = field(repr=False)
    name: str
    _settings: Settings

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers over HTTP."""
        with Client(self.url, self.key) as client:
            return client.predict(rows)

    def delete(self) -> None:
        """Delete the RayService and its Secret, unless somebody else has made that.

        Raises:
            DeployError: with what Kubernetes said, or somebody else has made the RayService.
        """
        core, custom = _clients(self._settings)
        with _explained(self.name):
            _owned(custom, self.name, self._settings)
            with _unless(404):
                custom.delete_namespaced_custom_object(**_KIND, namespace=self._settings.namespace, name=self.name)
            with _unless(404):
                if _ours(core.read_namespaced_secret(_secret(self.name), self._settings.namespace).metadata.labels):
                    core.delete_namespaced_secret(_secret(self.name), self._settings.namespace)


def deploy(artifact: Artifact, settings: Settings) -> Deployment:
    """Make the RayService, or have it change to this version without a gap.

    Raises:
        DeployError: with what Kubernetes or KubeRay said; the RayService stays, for `kubectl describe`, and the version before answers on. Or
            somebody else has made a RayService of this name.
    """
    core, custom = _clients(settings)
    secret, service = calls(artifact, settings)
    name = _name(artifact, settings)
    with _explained(name):
        _owned(custom, name, settings)
        with _unless(409):
            core.create_namespaced_secret(**secret.arguments | {"body": secret.arguments["body"] | {"data": {"api-key": _coded(auth.ensure())}}})
        found = (core.read_namespaced_secret(_secret(name), settings.namespace).data or {}).get("api-key")
        if found is None:
            raise DeployError("a Secret that is there has no `api-key`, which the pods read", _secret(name), "add it, or remove the Secret")
        key = base64.b64decode(found).decode()
        applied = custom.patch_namespaced_custom_object(**service.arguments, _content_type="application/apply-patch+yaml")
        _wait(custom, name, applied["metadata"]["generation"], settings)
    return _handle(name, key, settings)


def delete(artifact: Artifact, settings: Settings) -> None:
    """Delete the RayService and its Secret, as `Deployment.delete`."""
    _handle(_name(artifact, settings), "", settings).delete()


def _handle(name: str, key: str, settings: Settings) -> Deployment:
    return Deployment(settings.url or f"http://{name}-serve-svc.{settings.namespace}.svc:8000", key, name, settings)


def _owned(custom: Any, name: str, settings: Settings) -> None:
    """Raise DeployError for a RayService that somebody else has made."""
    with _unless(404):
        about = custom.get_namespaced_custom_object(**_KIND, namespace=settings.namespace, name=name)
        if not _ours(about["metadata"].get("labels")):
            raise _platform.foreign(name, f"label '{next(iter(_MARK))}'", "--set name=ANOTHER_NAME")


def _ours(labels: dict[str, str] | None) -> bool:
    return _MARK.items() <= (labels or {}).items()


def _wait(custom: Any, name: str, generation: int, settings: Settings) -> None:
    """Wait until KubeRay has seen a generation, and it alone answers.

    Raises:
        DeployError: it did not in time.
    """
    end = time.monotonic() + settings.timeout
    while True:
        about = custom.get_namespaced_custom_object(**_KIND, namespace=settings.namespace, name=name).get("status", {})
        said = {one["type"]: one for one in about.get("conditions", [])}
        ready, changing = (said.get(kind, {}).get("status") == "True" for kind in ("Ready", "UpgradeInProgress"))
        if about.get("observedGeneration", 0) >= generation and ready and not changing:
            return
        if time.monotonic() > end:
            told = "; ".join(f"{kind}: {one.get('message') or one['status']}" for kind, one in said.items()) or "KubeRay says nothing: does it run?"
            fix = f"kubectl -n {settings.namespace} describe rayservice {name}"
            raise DeployError(f"it does not answer after {settings.timeout:g} s: {told}", name, fix)
        time.sleep(_POLL)


def _coded(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


def _clients(settings: Settings) -> tuple[Any, Any]:
    """The API's clients for core objects and custom ones.

    Raises:
        DeployError: kubectl's settings lead nowhere.
    """
    client, config = _module("client"), _module("config")
    try:
        api = config.new_client_from_config(context=settings.context)
    except (config.ConfigException, yaml.YAMLError, ValueError, TypeError) as error:  # the last two for a file of something else
        raise DeployError(str(error), "kubeconfig", "`kubectl config get-contexts` should list the cluster") from None
    send = api.rest_client.request
    api.rest_client.request = lambda *given, **named: send(*given, **named | {"_request_timeout": _ANSWERS})  # the client itself waits without end
    return client.CoreV1Api(api), client.CustomObjectsApi(api)


def _module(name: str) -> Any:
    return _platform.needed(f"kubernetes.{name}", "kubernetes")


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Raise what Kubernetes' client does as DeployError."""
    try:
        yield
    except _module("client").ApiException as error:
        raise DeployError(f"{error.status} {error.reason}: {(error.body or '')[:500]}", where) from None
    except _platform.needed("urllib3.exceptions", "kubernetes").HTTPError as error:
        raise DeployError(f"the API server can't be reached: {error}", where) from None


@contextmanager
def _unless(status: int) -> Iterator[None]:
    """Pass over a refusal of this status."""
    try:
        yield
    except _module("client").ApiException as error:
        if error.status != status:
            raise
