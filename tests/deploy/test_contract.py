"""One artifact and the same rows through every platform's contract, asked with its own client: the answers are the same."""

import json
import re
import tarfile
from contextlib import ExitStack

import boto3
import httpx
import numpy as np
import pytest
from artifacts import copied
from serving import KEY, served
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from tritonclient import http as triton

from lc_ray import Client, DeployModel, predictor
from lc_ray.deploy import _aws, kubernetes, ray
from lc_ray.errors import DeployError
from lc_ray.serve import auth, container
from lc_ray.serve.endpoint import Endpoint, Models, asgi, settings

ROWS = ["good flight", "the worst day ever, so late. é", "ok"]


@pytest.fixture
def started():
    """started(environment, path) → what the image serves in a container of that environment; its URL."""
    running = []

    def start(environment, path):
        spec = container.spec(environment)
        endpoint = Endpoint(predictor.load(path, threads=1), spec)
        keys = {} if environment.get(auth.KEYLESS) == "1" else {auth.digest(KEY): "test"}
        server = served(asgi(Models([endpoint], spec, settings(environment)), keys))
        running.append((server, endpoint))
        return f"http://{server.__enter__()}"

    yield start
    for server, endpoint in running:
        server.__exit__(None, None, None)
        endpoint.close()


@pytest.fixture
def expected(started, tiny_artifact):
    """What the native endpoint answers."""
    with Client(started({}, tiny_artifact), KEY) as client:
        return client.predict(ROWS)


def same(answers, expected):
    assert [a["label"] for a in answers] == [e["label"] for e in expected]
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


def gateway(url):
    """What SageMaker does between a signed request and the container."""

    async def invoke(request):
        if not re.match("AWS4-HMAC-SHA256 Credential=", request.headers.get("authorization", "")):
            return Response(status_code=403)
        headers = {name: request.headers[name] for name in ("content-type", "accept") if name in request.headers}
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{url}/invocations", content=await request.body(), headers=headers)
        told = answer.content if answer.is_success else json.dumps({"Message": answer.text}).encode()
        kind = {} if answer.is_success else {"x-amzn-errortype": "ModelError"}
        return Response(told, answer.status_code if answer.is_success else 424, kind, "application/json")

    return Starlette(routes=[Route("/endpoints/{name}/invocations", invoke, methods=["POST"])])


def test_sagemaker(aws, started, expected, tiny_artifact, tmp_path, monkeypatch):
    deployment = DeployModel(tiny_artifact, "Amazon SageMaker", **aws).deploy()
    name = boto3.client("sagemaker").list_models()["Models"][0]["ModelName"]
    image = boto3.client("sagemaker").describe_model(ModelName=name)["PrimaryContainer"]
    bucket, _, key = image["ModelDataUrl"].removeprefix("s3://").partition("/")
    boto3.client("s3").download_file(bucket, key, str(tmp_path / "model.tar.gz"))
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        tar.extractall(tmp_path / "model", filter="data")
    url = started(image["Environment"], tmp_path / "model")
    assert httpx.get(f"{url}/ping").status_code == 200
    with served(gateway(url)) as place:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://{place}")
        _aws.client.cache_clear()
        same(deployment.predict(ROWS), expected)
        with pytest.raises(DeployError, match=r"InvokeEndpoint: .*instances\.0"):
            deployment.predict([5])


def test_vertex_ai(google, started, expected, tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = {"project": "demo", "region": "europe-west4", "bucket": "models", "image": "image"}
    deployment = DeployModel(tiny_artifact, "Google Cloud", **settings).deploy()
    (model,) = google.models.values()
    for (_, name), content in google.files.items():
        file = tmp_path / "bucket" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    about = model["containerSpec"]
    routes = {"AIP_HEALTH_ROUTE": about["healthRoute"], "AIP_PREDICT_ROUTE": about["predictRoute"]}
    source = model["artifactUri"].replace("gs://models", f"file://{tmp_path}/bucket")
    environment = routes | {one["name"]: one["value"] for one in about["env"]} | {"AIP_STORAGE_URI": source}
    url = started(environment, container.place(environment))
    assert httpx.get(url + routes["AIP_HEALTH_ROUTE"]).status_code == 200
    google.containers[model["displayName"]] = url
    same(deployment.predict(ROWS), expected)
    with pytest.raises(DeployError, match=r"instances\.0"):
        deployment.predict([5])


def test_open_inference(started, expected, tiny_artifact):
    place = started({}, tiny_artifact).removeprefix("http://")
    rows = triton.InferInput("text", [len(ROWS)], "BYTES")
    rows.set_data_from_numpy(np.array(ROWS, object))
    with triton.InferenceServerClient(place) as client:
        result = client.infer("tiny", [rows], headers={"authorization": f"Bearer {KEY}"})
    same([json.loads(answer) for answer in result.as_numpy("answer")], expected)


def test_the_container_asks_for_a_key_unless_its_platform_does(started, tiny_artifact):
    assert httpx.post(started({}, tiny_artifact) + "/invocations", content=b"good").status_code == 401


def test_where_the_model_is_and_the_port():
    assert container.place({}) == "/opt/ml/model"
    assert container.place({"AIP_STORAGE_URI": "gs://bucket/model"}) == "gs://bucket/model"
    assert (container.spec({}).port, container.spec({"SAGEMAKER_BIND_TO_PORT": "8081"}).port) == (8080, 8081)
    assert container.spec({"AIP_HTTP_PORT": "7000"}).port == 7000
    with pytest.raises(container.ServeError, match="no port: 80a"):
        container.spec({"AIP_HTTP_PORT": "80a"})


@pytest.mark.parametrize(("gpus", "copies", "gpu"), [(0, 1, 0), (1, 1, 1), (4, 4, 1)])
def test_a_container_has_a_copy_on_each_gpu(monkeypatch, gpus, copies, gpu):
    monkeypatch.setattr(container.NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", lambda: gpus)
    monkeypatch.setattr(container.os, "sched_getaffinity", lambda process: range(16))
    found = container.spec({}).replicas
    assert (found.min, found.max, found.cpu, found.gpu) == (copies, copies, 16 / copies, gpu)


@pytest.mark.parametrize(
    ("platform", "given"),
    [
        ("kubernetes", {"path": "/runs/m", "image": "i", "gpu": 1}),
        ("vertex", {"project": "p", "region": "r", "bucket": "models", "image": "i", "machine": "g2-standard-4", "accelerator": "NVIDIA_L4"}),
        ("sagemaker", {"bucket": "models", "image": "i", "role": "arn:aws:iam::123456789012:role/r", "instance": "ml.g5.xlarge"}),
    ],
)
def test_gpus_are_for_models_that_use_them(tiny_artifact, tmp_path, platform, given):
    DeployModel(tiny_artifact, platform, **given).plan()
    int8 = copied(tiny_artifact, tmp_path / "int8", engine="int8")
    with pytest.raises(DeployError, match="this model is int8, and runs on CPUs"):
        DeployModel(int8, platform, **given).plan()


def test_an_endpoint_that_is_asked_again_and_again_keeps_no_connection(monkeypatch):
    asked, closed = [], []
    monkeypatch.setattr(Client, "predict", lambda client, rows, model=None: asked.append(client))
    monkeypatch.setattr(Client, "close", lambda client: closed.append(client))
    for one in (ray.Deployment("http://127.0.0.1", KEY, "tiny", ExitStack()), kubernetes.Deployment("http://127.0.0.1", KEY, "tiny", None)):
        one.predict(ROWS)
    assert asked == closed
    assert len(asked) == 2
