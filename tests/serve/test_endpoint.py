"""The endpoint on a real local Ray Serve, called over HTTP."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

import lc_ray
from lc_ray import pipeline, spec
from lc_ray.client import Client
from lc_ray.errors import ArtifactError, ServeError
from lc_ray.models.batches import prepare
from lc_ray.serve import app
from lc_ray.serving import ServeSpec

pytestmark = pytest.mark.cluster
KEY = "a key for tests"
PREDICT = "/v1/models/tiny:predict"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def access_log(tmp_path_factory):
    return tmp_path_factory.mktemp("access") / "log"


@pytest.fixture(scope="module")
def grpc_port():
    return app._free("127.0.0.1", 0)


@pytest.fixture(scope="module")
def url(ray_local, tiny_artifact, access_log, grpc_port):
    limits = {"queue": 8, "batch": {"max": 8, "wait": "5ms"}, "timeout": "90s", "replicas": {"min": 2, "max": 2}}
    yield app.start([tiny_artifact], ServeSpec(port=0, grpc_port=grpc_port, access_log=str(access_log), **limits), {"test": KEY})
    app.stop()


@pytest.fixture(scope="module")
def predictor(tiny_artifact):
    return lc_ray.load(tiny_artifact, threads=1)


def test_predictions_equal_the_predictors(url, predictor):
    texts = ["good flight", "the worst day ever, so late. " * 5, "ok"]
    with Client(url, KEY) as client:
        for got, expected in zip(client.predict(texts), predictor.predict(texts), strict=True):
            assert got["label"] == expected["label"]
            assert got["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_no_key_no_answer(url):
    assert httpx.post(url + PREDICT, json={"instances": ["good"]}).status_code == 401
    with Client(url, "guess") as client, pytest.raises(ServeError, match="valid key"):
        client.predict(["good"])


def test_grpc_answers_the_same(url, grpc_port, predictor):
    texts = ["good flight", "so late"]
    asked = triton.InferInput("text", [2], "BYTES")
    asked.set_data_from_numpy(np.array(texts, object))
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        assert client.is_server_ready()
        found = client.infer("tiny", [asked], headers=HEADERS)
        for headers, model, code in ((None, "tiny", "UNAUTHENTICATED"), (HEADERS, "large", "NOT_FOUND")):
            with pytest.raises(InferenceServerException) as error:
                client.infer(model, [asked], headers=headers)
            assert error.value.status() == f"StatusCode.{code}"
        asked.set_data_from_numpy(np.array(["x" * 17 * 2**20, ""], object))
        with pytest.raises(InferenceServerException, match="larger than max") as error:
            client.infer("tiny", [asked], headers=HEADERS)
        assert error.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    expected = predictor.predict(texts)
    assert [label.decode() for label in found.as_numpy("label")] == [answer["label"] for answer in expected]
    np.testing.assert_allclose(found.as_numpy("probabilities"), [list(answer["probabilities"].values()) for answer in expected], atol=1e-5)


def test_serve_knows_no_key(url):
    from ray import serve

    assert KEY not in str(serve.status()) + str(app.application(["somewhere"], ServeSpec(), {"test": KEY}, {})._bound_deployment.init_args)


def test_metrics_and_the_access_log_are_of_all_replicas_whichever_answers(url, access_log):
    def counted():
        found = {}
        for family in text_string_to_metric_families(httpx.get(url + "/metrics", headers=HEADERS).text):
            for sample in family.samples:
                if sample.name == "lc_ray_requests_total" and sample.labels["route"] == "/v1/models/{name}:predict":
                    found[sample.labels["replica"]] = found.get(sample.labels["replica"], 0) + sample.value
        return found

    def logged():
        lines = [json.loads(line) for line in access_log.read_text().splitlines()] if access_log.exists() else []
        return {line["id"]: line for line in lines}

    before, ids = sum(counted().values()), []
    for number in range(40):  # each on a connection of its own, so that both replicas have some
        answer = httpx.post(url + PREDICT, json={"instances": ["good"]}, headers=HEADERS | {"x-request-id": f"request-{number}"})
        ids.append(answer.headers["x-request-id"])
    assert ids == [f"request-{number}" for number in range(40)]
    scrapes = [counted() for _ in range(4)]
    assert all(scrape == scrapes[0] and len(scrape) == 2 for scrape in scrapes)
    assert sum(scrapes[0].values()) - before == 40
    end = time.monotonic() + 30
    while not set(ids) <= logged().keys() and time.monotonic() < end:
        time.sleep(0.1)
    assert {(logged()[one]["key"], logged()[one]["status"], logged()[one]["rows"]) for one in ids} == {("test", 200, 1)}
    assert httpx.get(url + "/v1/models/tiny/drift", headers=HEADERS).json()["versions"]


def test_bad_instances_leave_their_neighbours_alone(url, predictor):
    expected = predictor.predict(["good day"])[0]["label"]

    def ask(number):
        with httpx.Client(base_url=url, headers=HEADERS) as client:
            texts = ["good day"] if number % 4 else ["good day", ""]
            return [(number, client.post(PREDICT, json={"instances": texts})) for _ in range(10)]

    with ThreadPoolExecutor(16) as pool:
        answers = [answer for some in pool.map(ask, range(16)) for answer in some]
    for number, response in answers:
        if response.status_code == 503:  # a slow machine may fill the queue of 8
            continue
        if number % 4:
            assert response.json()["predictions"][0]["label"] == expected
        else:
            assert response.status_code == 400
            assert response.json()["error"]["where"] == "instances.1.text"
    assert sum(response.status_code == 503 for _, response in answers) < len(answers) // 2


def test_busy_endpoint_answers_health_and_turns_away_what_it_cant_queue(url):
    long = {"instances": ["the worst day ever, so late. " * 5] * 256}
    with ThreadPoolExecutor(40) as pool:
        tasks = [pool.submit(httpx.post, url + PREDICT, json=long, headers=HEADERS, timeout=90) for _ in range(40)]
        waits = []
        while not all(task.done() for task in tasks):
            start = time.perf_counter()
            assert httpx.get(url + "/healthz", timeout=10).status_code == 200
            waits.append(time.perf_counter() - start)
        responses = [task.result() for task in tasks]
    refused = [r for r in responses if r.status_code == 503]
    assert {r.status_code for r in responses} == {200, 503}
    assert all(int(r.headers["retry-after"]) >= 1 and r.json()["error"]["code"] == "overloaded" for r in refused)
    assert sorted(waits)[len(waits) // 2] < 1


def test_what_fails_in_a_replica_is_in_its_log(url):
    handle = serve.get_app_handle(app.NAME)
    handle.broadcast("tell", "__setattr__", ("choose", None)).results()  # as if the endpoint had a defect
    answer = httpx.post(url + PREDICT, json={"instances": ["good"]}, headers=HEADERS | {"x-request-id": "the-failed-one"})
    handle.broadcast("tell", "__delattr__", ("choose",)).results()
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["x-request-id"]) == (500, "internal", "the-failed-one")
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    (log,) = [text for file in logs.glob(f"replica_{app.NAME}_*") if "the-failed-one" in (text := file.read_text("utf-8"))]
    assert "request the-failed-one failed" in log
    assert "'NoneType' object is not callable" in log
    assert httpx.post(url + PREDICT, json={"instances": ["good"]}, headers=HEADERS).status_code == 200


def test_second_endpoint_is_refused_before_anything_starts(url, tiny_artifact):
    with pytest.raises(ServeError, match="already"):
        app.start([tiny_artifact], ServeSpec(port=0), {"test": KEY})


def ended(job, tiny_artifact, predictor):
    """What a run does at its end."""

    class Data:
        def rows(self, split, limit):
            return prepare({"text": ["good flight"]}, predictor.columns)

    return pipeline._ask(spec.parse(job), tiny_artifact, Data())


def test_a_run_on_a_cluster_that_serves_already_leaves_the_endpoint_alone(url, tiny_artifact, tiny_job, predictor):
    found = ended(tiny_job, tiny_artifact, predictor)
    assert (found["question"], found["milliseconds"]) == ("good flight", None)
    assert found["answer"]["label"] == predictor.predict(["good flight"])[0]["label"]
    assert httpx.get(url + "/v1/models", headers=HEADERS).status_code == 200


def test_runs_that_end_at_once_serve_one_after_the_other(url, tiny_artifact, tiny_job, predictor, monkeypatch):
    told = []

    def start(*given):
        told.append("start")
        time.sleep(0.5)

    for name, fake in (("serves", lambda: False), ("start", start), ("stop", lambda: told.append("stop"))):
        monkeypatch.setattr(app, name, fake)
    monkeypatch.setattr(pipeline, "Client", lambda *_, **options: nullcontext(predictor))
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(ended, tiny_job, tiny_artifact, predictor) for _ in range(2)]
        assert all(task.result()["milliseconds"] > 0 for task in tasks)
    assert told == ["start", "stop"] * 2


def test_a_run_does_not_fail_at_its_end_over_where_its_model_will_be_served(url, tiny_artifact, tiny_job, predictor, monkeypatch):
    asked = []
    elsewhere = {"host": "10.1.2.3", "port": 443, "tls": {"certificate": "of_that_host.pem", "key": "of_that_host.key"}}
    strict = {"rate": {"requests": 1}, "max_body": 1, "timeout": "1ms", "log": {"path": "/nothing", "redact": ["name"]}}
    monkeypatch.setattr(app, "serves", lambda: False)
    monkeypatch.setattr(app, "start", lambda models, spec, keys: asked.append(spec))
    monkeypatch.setattr(app, "stop", lambda: None)
    monkeypatch.setattr(pipeline, "Client", lambda *_, **options: nullcontext(predictor))
    ended(tiny_job | {"serve": elsewhere | strict | {"replicas": {"cpu": 64, "gpu": 1}}}, tiny_artifact, predictor)
    (spec,) = asked
    assert (spec.host, spec.port, spec.tls, spec.rate, spec.log) == ("127.0.0.1", 0, None, None, None)
    assert (spec.max_body >= 2**20, spec.timeout > 1) == (True, True)
    assert (spec.replicas.cpu <= ray.cluster_resources()["CPU"], spec.replicas.gpu) == (True, 0.0)


def test_port_in_use(tiny_artifact):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for ports in ({"port": port}, {"port": 0, "grpc_port": port}):
            with pytest.raises(ServeError, match=f"{port}: can't listen"):
                app.check(ServeSpec(**ports))


def test_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        app.start([tmp_path], ServeSpec(port=0), {"test": KEY})


def test_stop_answers_what_was_accepted_and_closes_the_port(url):
    """Last, as it ends the endpoint of this module."""
    long = {"instances": ["the worst day ever, so late. " * 5] * 256}
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(httpx.post, url + PREDICT, json=long, headers=HEADERS, timeout=90) for _ in range(4)]
        time.sleep(0.3)
        app.stop()
        assert [task.result().status_code for task in tasks] == [200] * 4
    parts = urlsplit(url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname, parts.port), timeout=2).close()
