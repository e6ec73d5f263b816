"""The Open Inference Protocol, spoken by Triton's own client over real HTTP and by hand in this process."""

import base64
import functools
import json

import numpy as np
import pytest
from serving import KEY, LABELS, ask, served
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi

HEADERS = {"authorization": f"Bearer {KEY}"}  # copied for each call: Triton's client adds a length that it would send with the next too
INFER = "/v2/models/tiny/infer"
TEXTS = ["good flight", "the worst day ever, so late. é"]


@pytest.fixture(scope="module")
def app(predictor, fused, endpoint):
    endpoints = [endpoint(predictor), endpoint(fused)]
    return asgi(Models(endpoints, endpoints[0].spec), {auth.digest(KEY): "test"})


@pytest.fixture(scope="module")
def client(app):
    with served(app) as place, triton.InferenceServerClient(place) as client:
        yield client


def tensor(name, values, kind, binary=True):
    made = triton.InferInput(name, list(np.shape(values)), kind)
    made.set_data_from_numpy(np.array(values, object if kind == "BYTES" else triton.triton_to_np_dtype(kind)), binary_data=binary)
    return made


def close(result, expected):
    labels = [label if isinstance(label, str) else label.decode() for label in result.as_numpy("label")]
    assert labels == [answer["label"] for answer in expected]
    odds = np.array([list(answer["probabilities"].values()) for answer in expected])
    np.testing.assert_allclose(result.as_numpy("probabilities"), odds, atol=1e-5)
    assert [json.loads(a)["label"] for a in result.as_numpy("answer")] == [answer["label"] for answer in expected]


def test_triton_finds_the_server_and_its_models(client, predictor):
    assert client.is_server_live(HEADERS)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata(HEADERS)["extensions"] == ["binary_tensor_data"]
    assert client.is_model_ready("tiny", headers=dict(HEADERS))
    assert not client.is_model_ready("large", headers=dict(HEADERS))
    about = client.get_model_metadata("tiny", predictor.artifact.digest, HEADERS)
    assert about["versions"] == [predictor.artifact.digest]
    assert about["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in about["outputs"]] == [
        ("answer", "BYTES", [-1]),
        ("label", "BYTES", [-1]),
        ("probabilities", "FP64", [-1, 3]),
    ]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("column", [False, True])
def test_triton_is_told_what_the_predictor_says(client, predictor, binary, column):
    values = [[text] for text in TEXTS] if column else TEXTS
    names = ("answer", "label", "probabilities")
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    result = client.infer("tiny", [tensor("text", values, "BYTES", binary)], outputs=asked, request_id="r-1", headers=dict(HEADERS))
    close(result, predictor.predict(TEXTS))
    found = result.get_response()
    assert (found["id"], found["model_name"], found["model_version"]) == ("r-1", "tiny", predictor.artifact.digest)
    assert json.loads(result.get_output("probabilities")["parameters"]["labels"]) == LABELS


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_triton_may_compress(client, predictor, algorithm, binary):
    inputs = [tensor("text", TEXTS, "BYTES", binary)]
    close(client.infer("tiny", inputs, headers=dict(HEADERS), request_compression_algorithm=algorithm), predictor.predict(TEXTS))


def test_triton_gets_all_outputs_unless_it_asks(client, predictor):
    inputs = [tensor("text", TEXTS, "BYTES")]
    close(client.infer("tiny", inputs, headers=dict(HEADERS)), predictor.predict(TEXTS))
    only = client.infer("tiny", inputs, outputs=[triton.InferRequestedOutput("label")], headers=dict(HEADERS))
    assert [o["name"] for o in only.get_response()["outputs"]] == ["label"]


def test_triton_sends_files_and_numbers(client, fused, png, wav):
    rows = [{"text": t, "photo": png, "sound": wav, "price": p} for t, p in zip(TEXTS, (3.5, -1.0), strict=True)]
    columns = {"text": "BYTES", "photo": "BYTES", "sound": "BYTES", "price": "FP64"}
    inputs = [tensor(name, [row[name] for row in rows], kind) for name, kind in columns.items()]
    close(client.infer("fused", inputs, headers=dict(HEADERS)), fused.predict(rows))
    coded = tensor("photo", [base64.b64encode(png).decode()] * 2, "BYTES", binary=False)
    close(client.infer("fused", [inputs[0], coded], headers=dict(HEADERS)), fused.predict([{"text": t, "photo": png} for t in TEXTS]))
    lacking = [tensor("text", TEXTS, "BYTES"), tensor("photo", [png, b""], "BYTES"), tensor("price", [np.nan, 2.0], "FP64")]
    expected = fused.predict([{"text": TEXTS[0], "photo": png}, {"text": TEXTS[1], "price": 2.0}])
    close(client.infer("fused", lacking, headers=dict(HEADERS)), expected)


def test_triton_shows_the_error(client):
    with pytest.raises(InferenceServerException, match=r"inputs\.text\.1: empty text"):
        client.infer("tiny", [tensor("text", ["good", " "], "BYTES")], headers=dict(HEADERS))
    with pytest.raises(InferenceServerException, match="key"):
        client.infer("tiny", [tensor("text", TEXTS, "BYTES")])


DEEP = functools.reduce(lambda inner, _: [inner], range(90), "good")


def text(**changes):
    return {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good"]} | changes


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [5]}, "inputs"),
        ({"inputs": [text(name="txet")]}, "inputs.txet"),
        ({"inputs": [text(shape=[2])]}, "inputs.text"),
        ({"inputs": [text(shape=[-1])]}, "inputs.text"),
        ({"inputs": [text(shape=[True])]}, "inputs.text"),
        ({"inputs": [text(shape=[1, 1, 1])]}, "inputs.text"),
        ({"inputs": [text(shape=[])]}, "inputs.text"),
        ({"inputs": [text(shape=[9] * 1_000_000)]}, "inputs.text"),
        ({"inputs": [text(datatype="STRING")]}, "inputs.text"),
        ({"inputs": [text(data=[5])]}, "inputs.text"),
        ({"inputs": [text(data="good")]}, "inputs.text"),
        ({"inputs": [text(datatype="INT32", data=[True])]}, "inputs.text"),
        ({"inputs": [text(datatype="INT32", data=[5])]}, "inputs.text.0"),
        ({"inputs": [text(parameters={"binary_data_size": 10})]}, "inputs.text"),
        ({"inputs": [text(parameters={"binary_data_size": "10"})]}, "inputs.text"),
        ({"inputs": [text(parameters=[])], "outputs": [{"name": "lable"}]}, "outputs"),
        ({"inputs": [text()], "outputs": 5}, "outputs"),
        ({"inputs": [text()], "outputs": {}}, "outputs"),
        ({"inputs": [text()], "outputs": 0}, "outputs"),
        ({"inputs": [text(), text()]}, "inputs.text"),
        ({"inputs": [text()], "outputs": [{"name": "answer"}] * 2}, "outputs"),
        ({"inputs": [text(data=["good"] * 1000 + [DEEP])]}, "inputs.text"),
    ],
)
def test_malformed_requests_are_named(app, content, where):
    response = ask(app, "POST", INFER, json=content)
    assert response.status_code == 400, response.text
    assert response.json()["where"] == where


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT32", 1.5), ("INT32", 1.0), ("UINT8", 999), ("UINT8", -1), ("INT64", 2**63), ("INT8", 10**400), ("FP32", "1")]
)
def test_numbers_that_are_not_of_their_type(app, datatype, value):
    price = {"name": "price", "datatype": datatype, "shape": [1], "data": [value]}
    response = ask(app, "POST", "/v2/models/fused/infer", json={"inputs": [price]})
    assert (response.status_code, response.json()["where"]) == (400, "inputs.price")
    assert datatype in response.json()["error"]


@pytest.mark.parametrize(("datatype", "value"), [("INT8", -128), ("UINT64", 2**64 - 1), ("FP32", 3), ("FP64", 1.5)])
def test_numbers_of_their_type(app, datatype, value):
    price = {"name": "price", "datatype": datatype, "shape": [1], "data": [value]}
    assert ask(app, "POST", "/v2/models/fused/infer", json={"inputs": [price]}).status_code == 200


@pytest.mark.parametrize("shape", [[1000], [10**300] * 8])
def test_more_instances_than_a_request_may_have(app, shape):
    response = ask(app, "POST", INFER, json={"inputs": [text(shape=shape)]})
    assert response.status_code == 413
    assert response.json()["code"] == "too_many_instances"


@pytest.mark.parametrize("identity", [r'"\ud800"', "NaN", "5", "null"])
def test_an_id_that_cant_be_repeated(app, identity):
    body = json.dumps({"id": "?", "inputs": [text()]}).replace('"?"', identity)
    response = ask(app, "POST", "/v2/models/tiny/infer", content=body)
    assert response.status_code == 400
    assert response.json()["where"] == "id"


@pytest.mark.parametrize(
    ("length", "size", "tail"),
    [
        *(("x", 8, b""), ("99999", 8, b""), (None, 8, b"\4\0\0\0good"), ("-1", 8, b"")),
        *(("", 9, b"\5\0\0\0good"), ("", 8, b"\4\0\0\0goodness"), ("", 2, b"\0\0")),
    ],
)
def test_malformed_binary_requests(app, length, size, tail):
    head = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}]}).encode()
    headers = {} if length is None else {"inference-header-content-length": length or str(len(head))}
    assert ask(app, "POST", INFER, content=head + tail, headers=headers).status_code == 400


def test_limits_and_unknown_models(app, predictor):
    assert ask(app, "POST", INFER, json={"inputs": [text(shape=[257], data=["x"] * 257)]}).status_code == 413
    assert ask(app, "POST", "/v2/models/large/infer", json={"inputs": [text()]}).status_code == 404
    assert ask(app, "POST", "/v2/models/tiny/versions/0/infer", json={"inputs": [text()]}).status_code == 404
    known = f"/v2/models/tiny/versions/{predictor.artifact.digest}"
    assert ask(app, "POST", f"{known}/infer", json={"inputs": [text()]}).status_code == 200
    assert ask(app, "GET", f"{known}/ready").json()["ready"] is True


@pytest.mark.parametrize("path", ["/v2", "/v2/models/tiny", "/v2/models/tiny/ready"])
def test_all_but_health_needs_a_key(app, path):
    assert ask(app, "GET", path, key="guess").status_code == 401
