"""The manifests of k8s/, rendered by kubectl and checked offline. No operator runs here: what KubeRay makes of them is not tested."""

import copy
import os
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import ray
import yaml
from kuberay import CLUSTER, cluster, lint, pods, validators

from lc_ray import spec
from lc_ray.section import override

K8S = Path("k8s").resolve()
KINDS = ["raycluster", "rayjob", "rayservice"]
OVERLAYS = sorted(one.name for one in (K8S / "overlays").iterdir())
CHOICES = [(kind, *chosen) for kind in KINDS for chosen in ([], *([one] for one in OVERLAYS), ["gpu", "spot", "monitor"])]
CHOICES = [c for c in CHOICES if not {"rayservice", "kueue"} <= {*c} and not {"rayjob", "ha"} <= {*c}]


@pytest.fixture(scope="module")
def schemas():
    return validators()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """rendered(kind, overlays...) → what `kubectl kustomize` makes of them, for an image of one's own registry."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = {}

    def render(kind, *overlays):
        if (kind, *overlays) not in made:
            folder = tmp_path_factory.mktemp("kustomize").resolve()
            near = [os.path.relpath(K8S / one, folder) for one in (kind, *(f"overlays/{name}" for name in overlays))]
            chosen = {"resources": near[:1], "components": near[1:], "images": [{"name": "lc-ray", "newName": "registry.example/lc-ray"}]}
            (folder / "kustomization.yaml").write_text(yaml.safe_dump(chosen), "utf-8")
            done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            made[(kind, *overlays)] = list(yaml.safe_load_all(done.stdout))
        return copy.deepcopy(made[(kind, *overlays)])

    return render


def ray_object(manifests):
    (found,) = [m for m in manifests if m["kind"] in CLUSTER]
    return found


@pytest.mark.parametrize("choice", CHOICES, ids="+".join)
def test_every_choice_is_what_the_api_server_and_kuberay_take(rendered, schemas, choice):
    manifests = rendered(*choice)
    assert all(m["kind"] == "Namespace" or m["metadata"]["namespace"] == "lc-ray" for m in manifests)
    for manifest in manifests:
        if manifest["kind"] in CLUSTER:
            assert [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in schemas[manifest["kind"]].iter_errors(manifest)] == []
            assert lint(manifest) == []
            assert cluster(manifest)["rayVersion"] == ray.__version__
            assert all(c["image"].startswith("registry.example/") for _, pod in pods(manifest) for c in pod["containers"])
        elif manifest["kind"] != "PodMonitor":  # whose schema is the Prometheus operator's
            kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_what_pods_name_is_there(rendered):
    for kind in KINDS:
        manifests = rendered(kind)
        there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
        for _, pod in pods(ray_object(manifests)):
            named = {("ServiceAccount", pod["serviceAccountName"])} if "serviceAccountName" in pod else set()
            for volume in pod.get("volumes", []):
                if "persistentVolumeClaim" in volume:
                    named.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
                if "configMap" in volume:
                    named.add(("ConfigMap", volume["configMap"]["name"]))
            assert named <= there


def test_ports_that_run_code_are_open_to_nobody_else(rendered):
    for choice in CHOICES:
        policies = [m["spec"] for m in rendered(*choice) if m["kind"] == "NetworkPolicy"]
        wide = [rule for p in policies for rule in p.get("ingress", []) if any(f.get("namespaceSelector") == {} for f in rule["from"])]
        assert {port["port"] for rule in wide for port in rule["ports"]} <= {8000}
        assert not [m for m in rendered(*choice) if m["kind"] in ("Ingress", "Gateway")]
        assert all(m["spec"].get("type", "ClusterIP") == "ClusterIP" for m in rendered(*choice) if m["kind"] == "Service")


@pytest.mark.parametrize("namespace", ["ray-system", "default"])
def test_kuberay_reaches_the_dashboard_from_where_its_documentation_installs_it(rendered, namespace):
    (policy,) = (m["spec"] for m in rendered("rayservice") if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "lc-ray")
    rules = [rule for rule in policy["ingress"] if {"protocol": "TCP", "port": 8265} in rule.get("ports", [])]
    (operator,) = (f for rule in rules for f in rule["from"] if "namespaceSelector" in f)
    assert namespace in operator["namespaceSelector"]["matchExpressions"][0]["values"]
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}


def test_overlays_do_what_they_say(rendered):
    (group,) = cluster(ray_object(rendered("rayjob", "gpu", "spot", "monitor")))["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert len(pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]) == 3
    queued = ray_object(rendered("rayjob", "kueue"))
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lc-ray"}
    assert cluster(ray_object(rendered("rayservice", "ha")))["gcsFaultToleranceOptions"]["redisAddress"] == "lc-ray-redis:6379"


def test_the_job_is_one(rendered):
    (config,) = [m for m in rendered("rayjob") if m["kind"] == "ConfigMap"]
    job = spec.parse(yaml.safe_load(config["data"]["job.yaml"]))
    assert job.data.train.startswith("/runs/")


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("metadata.name", "lc_ray", "name"),
        ("metadata.name", "a" * 48, "name"),
        ("metadata.labels", {"kueue.x-k8s.io/queue-name": "q"}, "kueue"),
        ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
        ("spec.clusterSelector", {}, "backoffLimit"),
        ("spec.rayClusterSpec.rayVersion", "2.51.0", "authOptions"),
        ("spec.rayClusterSpec.autoscalerOptions.version", "v1", "autoscalerOptions"),
        ("spec.rayClusterSpec.tlsOptions", {}, "alpha"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", 9, "replicas"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.restartPolicy", "Always", "restartPolicy"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.securityContext", {}, "workers: securityContext"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.image", "lc-ray:latest", "workers: image"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes", [], "workers: /dev/shm"),
        ("spec.rayClusterSpec.gcsFaultToleranceOptions", {"redisPassword": {"value": "x"}}, "gcsFaultToleranceOptions"),
        ("spec.submitterPodTemplate.spec.automountServiceAccountToken", True, "submitter: has a token"),
    ],
)
def test_the_lint_finds_what_it_is_for(path, value, wrong):
    sound = yaml.safe_load((K8S / "rayjob" / "rayjob.yaml").read_text("utf-8"))
    assert lint(sound) == []
    assert any(told.startswith(wrong) for told in lint(override(sound, {path: value})))


def test_the_schemas_find_what_no_api_server_takes(schemas):
    sound = yaml.safe_load((K8S / "rayjob" / "rayjob.yaml").read_text("utf-8"))
    for path, value in (("spec.entryPoint", "x"), ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "two"), ("spec.submissionMode", 3)):
        assert list(schemas["RayJob"].iter_errors(override(sound, {path: value})))
