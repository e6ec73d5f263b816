"""Checks of manifests without a cluster: the API server's of fields, KubeRay's own, and what a reviewer expects.

kuberay-1.7.0.json.xz has the schemas of KubeRay 1.7.0's CustomResourceDefinitions (Apache-2.0), of version v1, without their descriptions.
"""

import json
import lzma
import re
from pathlib import Path

import jsonschema

CLUSTER = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
_LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}


def validators():
    """By kind, with which a manifest is checked as strictly as an API server does."""
    schemas = json.loads(lzma.decompress((Path(__file__).parent / "kuberay-1.7.0.json.xz").read_bytes()))
    for schema in schemas.values():
        schema["properties"]["metadata"] = {"type": "object"}
    return {kind: jsonschema.Draft202012Validator(strict(schema)) for kind, schema in schemas.items()}


def strict(schema):
    """A structural schema as one of JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(value) for name, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False) is True:
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_ended = schema.pop("x-kubernetes-preserve-unknown-fields", False) is True
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("required"), list):  # defaults are filled in first
        schema["required"] = [name for name in schema["required"] if "default" not in schema["properties"].get(name, {})]
    return schema


def cluster(manifest):
    """The cluster inside a Ray object."""
    found = manifest["spec"]
    for part in CLUSTER[manifest["kind"]]:
        found = found[part]
    return found


def pods(manifest):
    """(what it is, its spec) of every pod of a Ray object."""
    inside = cluster(manifest)
    yield "head", inside["headGroupSpec"]["template"]["spec"]
    for group in inside["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    if "submitterPodTemplate" in manifest["spec"]:
        yield "submitter", manifest["spec"]["submitterPodTemplate"]["spec"]


def lint(manifest):
    """What is wrong with a Ray object that no schema tells, a sentence each."""
    return [*_rules(manifest), *(f"{name}: {wrong}" for name, pod in pods(manifest) for wrong in _pod(name, pod, cluster(manifest)["rayVersion"]))]


def _rules(manifest):
    kind, spec, inside = manifest["kind"], manifest["spec"], cluster(manifest)
    name, scaled = manifest["metadata"]["name"], inside.get("enableInTreeAutoscaling")
    if len(name) > _LONGEST[kind] or not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "name: not DNS-1035, or too long"
    if inside["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "head: takes work"
    if inside.get("authOptions", {}).get("mode") != "token" or tuple(map(int, inside["rayVersion"].split(".")[:2])) < (2, 52):
        yield "authOptions: no token"
    for group in inside["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield "replicas: not between the least and the most"
        if scaled and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "restartPolicy: autoscaler v2 needs Never"
        if not scaled and group["minReplicas"] != group["maxReplicas"]:
            yield "replicas: nothing scales them"
    if bool(scaled) != ("autoscalerOptions" in inside) or (scaled and inside["autoscalerOptions"].get("version") != "v2"):
        yield "autoscalerOptions: not v2"
    if any(part in inside for part in ("networkPolicy", "tlsOptions")):
        yield "alpha fields"
    if "gcsFaultToleranceOptions" in inside:
        if any("ft-enabled" in note for note in manifest["metadata"].get("annotations", {})):
            yield "gcsFaultToleranceOptions: beside the old annotation"
        if "valueFrom" not in inside["gcsFaultToleranceOptions"].get("redisPassword", {}):
            yield "gcsFaultToleranceOptions: password not from a Secret"
    if "kueue.x-k8s.io/queue-name" in manifest["metadata"].get("labels", {}) and ("suspend" in spec or scaled):
        yield "kueue: suspends, and counts workers, itself"
    if kind == "RayJob":
        if "ttlSecondsAfterFinished" in spec and not spec.get("shutdownAfterJobFinishes"):
            yield "ttlSecondsAfterFinished: without shutdown"
        if spec.get("shutdownAfterJobFinishes") and "deletionRules" in spec.get("deletionStrategy", {}):
            yield "shutdownAfterJobFinishes: beside deletionRules"
        if "backoffLimit" in spec and "clusterSelector" in spec:
            yield "backoffLimit: with a cluster of others"
    if kind == "RayService" and spec.get("upgradeStrategy", {}).get("type") != "NewCluster":
        yield "upgradeStrategy: not without a gap"


def _pod(name, pod, version):
    """PodSecurity's `restricted`, and what a Ray pod needs beside it."""
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext of the pod"
    if any(pod.get(host) for host in ("hostNetwork", "hostPID", "hostIPC")) or any("hostPath" in v for v in pod.get("volumes", [])):
        yield "reaches the node"
    if name != "head" and pod.get("automountServiceAccountToken") is not False:
        yield "has a token for the API server"
    for container in pod["containers"]:
        inner, resources = container.get("securityContext", {}), container["resources"]
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("capabilities", {}).get("drop") != ["ALL"]:
            yield "securityContext of the container"
        if resources["requests"]["memory"] != resources["limits"]["memory"]:
            yield "memory: requests are not limits"
        if any("gpu" in one for one in resources["requests"]):
            yield "GPUs: not in limits"
        if not container["image"].endswith(f"-ray{version}"):
            yield "image: not of rayVersion"
        stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1]
        if name != "submitter" and not stop.endswith("ray stop"):
            yield "preStop: no ray stop"
        if any(port["name"] == "serve" for port in container.get("ports", [])) and not stop.startswith("sleep"):
            yield "preStop: ends while the Service sends requests"
        mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        if name != "submitter" and volumes.get(mounts.get("/dev/shm"), {}).get("emptyDir", {}).get("medium") != "Memory":
            yield "/dev/shm: not in memory"
