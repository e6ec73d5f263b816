"""The endpoint without a cluster: its ASGI application called in this process."""

import asyncio
import functools
import gc
import gzip
import json
import zlib

import httpx
import pytest

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serve.http import loads
from lc_ray.serving import ServeSpec

PREDICT = "/v1/models/tiny:predict"


@pytest.fixture
def call(predictor):
    """call(method, path, ...) → response; `limits` are of ServeSpec."""
    made = []

    def call(method, path, limits=None, key="secret", during=None, **request):
        endpoint = Endpoint(predictor, ServeSpec(**(limits or {})))
        made.append(endpoint)
        if during:
            during(endpoint)

        async def main():
            transport = httpx.ASGITransport(asgi(Models([endpoint], endpoint.spec), {auth.digest("secret"): "test"}))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"authorization": f"Bearer {key}"}) as client:
                return await client.request(method, path, **request)

        return asyncio.run(main())

    yield call
    for endpoint in made:
        endpoint.close()


def error(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert "Traceback" not in response.text
    return response.json()["error"]


def test_predictions_equal_the_predictors(call, predictor):
    texts = ["good flight", "the worst day ever, so late. " * 5, "ok"]
    response = call("POST", PREDICT, json={"instances": [texts[0], {"text": texts[1]}, texts[2]], "parameters": {}})
    answer = response.json()
    assert response.status_code == 200
    assert (answer["model"], answer["version"]) == ("tiny", predictor.artifact.digest)
    for got, expected in zip(answer["predictions"], predictor.predict(texts), strict=True):
        assert got["label"] == expected["label"]
        assert got["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_no_instances_no_predictions(call):
    assert call("POST", PREDICT, json={"instances": []}).json()["predictions"] == []


def test_models(call):
    assert call("GET", "/v1/models").json()["models"] == ["tiny"]
    about = call("GET", "/v1/models/tiny").json()
    assert about["ready"] is True
    (column,) = about["inputs"]
    assert (column["column"], column["modality"]) == ("text", "text")
    assert not column.keys() & {"base", "weights"}
    assert about["task"]["labels"] == ["negative", "neutral", "positive"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_key(call, path):
    assert call("GET", path, key="").status_code == 200


@pytest.mark.parametrize(("method", "path"), [("POST", PREDICT), ("GET", "/v1/models"), ("GET", "/v1/models/tiny")])
def test_all_else_needs_a_key(call, method, path):
    assert error(call(method, path, key="guess", json={"instances": ["x"]}), 401)["code"] == "unauthorized"


def test_not_ready_once_the_batcher_is_gone(call):
    def stop(endpoint):
        endpoint.close()
        endpoint.worker._thread.join(5)

    assert error(call("GET", "/readyz", during=stop), 503)["code"] == "not_ready"


@pytest.mark.parametrize(
    ("instances", "where", "message"),
    [
        (["good", "", "bad"], "instances.1.text", "empty"),
        (["good", {"text": 5}], "instances.1.text", "int"),
        ([{"txet": "good"}], "instances.0", "text"),
        ([None], "instances.0.text", "null"),
        ([["good"]], "instances.0.text", "list"),
        ("good", "instances", "list"),
        ({"text": "good"}, "instances", "list"),
    ],
)
def test_bad_instances_are_named(call, instances, where, message):
    found = error(call("POST", PREDICT, json={"instances": instances}), 400)
    assert found["where"] == where
    assert message in found["message"]


DEEP = b'{"instances": ' + b"[" * 100 + b"]" * 100 + b"}"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000, DEEP, b"null", b'{"instance": []}', b'{"instances": [], "parameters": {"k": 1}}']
)
def test_malformed_requests(call, body):
    error(call("POST", PREDICT, content=body), 400)


def test_unknown_model_lists_the_served(call):
    assert "tiny" in error(call("POST", "/v1/models/large:predict", json={"instances": ["x"]}), 404)["message"]
    assert "tiny" in error(call("GET", "/v1/models/large"), 404)["message"]


def test_a_path_with_a_slash_too_many_leads_nowhere_else(call):
    for method, path in (("GET", "/v1/models/"), ("POST", "/v1/models/tiny:predict/")):
        response = call(method, path, headers={"host": "else.example"})
        assert (response.status_code, response.json()["error"]["message"]) == (404, f"nothing is served at {path}")


def test_unknown_path_and_method(call):
    error(call("GET", "/nothing"), 404)
    response = call("GET", PREDICT)
    error(response, 405)
    assert response.headers["allow"] == "POST"


def test_body_limit(call):
    async def endless():
        for _ in range(100):
            yield b" " * 100

    limits = {"max_body": "1KiB"}
    error(call("POST", PREDICT, limits, json={"instances": ["x" * 2000]}), 413)
    error(call("POST", PREDICT, limits, content=endless()), 413)
    assert call("POST", PREDICT, limits, json={"instances": ["x" * 500]}).status_code == 200


GOOD = b'{"instances": ["good flight"]}'
gzipped = functools.partial(gzip.compress, mtime=0)  # as names of tests have what is sent
EMPTY = gzipped(b"")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzipped(GOOD)),
        ("GZip", b"".join(gzipped(GOOD[i : i + 5]) for i in range(0, len(GOOD), 5)) + EMPTY),
        ("deflate", zlib.compress(GOOD)),
        ("identity", GOOD),
    ],
)
def test_compressed_bodies(call, encoding, body):
    async def bytewise():
        for byte in body:
            yield bytes([byte])

    expected = call("POST", PREDICT, content=GOOD).json()["predictions"]
    for content in (body, bytewise()):
        response = call("POST", PREDICT, content=content, headers={"content-encoding": encoding})
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][0]["label"] == expected[0]["label"]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("gzip", GOOD, 400, "malformed_body"),
        ("gzip", zlib.compress(GOOD), 400, "malformed_body"),
        ("gzip", gzipped(GOOD)[:-1], 400, "malformed_body"),
        ("gzip", gzipped(GOOD) + b"more", 400, "malformed_body"),
        ("gzip", b"", 400, "malformed_body"),
        ("gzip", gzipped(b"{"), 400, "malformed_json"),
        ("gzip", gzipped(GOOD + b" " * 2000), 413, "body_too_large"),
        ("gzip", gzipped(GOOD) + gzipped(b" " * 1000), 413, "body_too_large"),
        ("gzip", EMPTY * 100, 413, "body_too_large"),
        ("br", GOOD, 415, "unsupported_encoding"),
        ("gzip, gzip", gzipped(gzipped(GOOD)), 415, "unsupported_encoding"),
    ],
)
def test_compressed_bodies_that_are_refused(call, encoding, body, status, code):
    found = error(call("POST", PREDICT, {"max_body": "1KiB"}, content=body, headers={"content-encoding": encoding}), status)
    assert found["code"] == code
    assert status == 413 or code == "malformed_json" or found["where"] == "content-encoding"


def test_instances_limit(call):
    assert error(call("POST", PREDICT, {"max_instances": 2}, json={"instances": ["x"] * 3}), 413)["code"] == "too_many_instances"


def test_timeout(call):
    def stall(endpoint):
        endpoint.close()

    assert error(call("POST", PREDICT, {"timeout": "100ms"}, during=stall, json={"instances": ["x"]}), 504)["code"] == "timeout"


def test_full_queue_says_when_to_try_again(call):
    def fill(endpoint):
        endpoint.worker.queue = 0

    response = call("POST", PREDICT, during=fill, json={"instances": ["x"]})
    assert error(response, 503)["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


def test_failure_inside_shows_nothing(call):
    def breaks(endpoint):
        endpoint.worker.run = None

    found = error(call("POST", PREDICT, during=breaks, json={"instances": ["x"]}), 500)
    assert "NoneType" not in json.dumps(found)


def test_no_cycles_are_looked_for_while_json_is_read():
    """In millions of empty lists that takes several times as long as to read them, and all other requests wait."""
    passes = []
    gc.callbacks.append(lambda phase, about: passes.append(phase))
    try:
        assert len(loads("[" + "[]," * 100_000 + "[]]")) == 100_001
        with pytest.raises(ValueError, match="nested"):
            loads("[" * 100_000)
    finally:
        gc.callbacks.pop()
    assert passes == []
    assert gc.isenabled()
