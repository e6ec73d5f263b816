"""What SageMaker and Vertex AI ask of a container."""

import base64
import json

import pytest
from serving import KEY, ask

from lc_ray.errors import ServeError
from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi, settings

VERTEX = {"AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2", "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict"}


@pytest.fixture(scope="module")
def text(predictor, endpoint):
    found = endpoint(predictor)
    return asgi(Models([found], found.spec, settings(VERTEX | {"HOME": "/nowhere"})), {auth.digest(KEY): "test"})


@pytest.fixture(scope="module")
def fusion(fused, endpoint):
    return asgi(Models([endpoint(fused)], endpoint(fused).spec), {auth.digest(KEY): "test"})


def invoke(app, body, kind=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | ({"content-type": kind} if kind else {})
    return ask(app, "POST", "/invocations", content=body, headers=headers)


def same(response, expected):
    assert response.status_code == 200, response.text
    for got, wanted in zip(response.json()["predictions"], expected, strict=True):
        assert got["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"instances": ["good day", "so late, \\u00e9"]}', None),
        (b'{"instances": ["good day", {"text": "so late, \\u00e9"}]}', "application/json; charset=utf-8"),
        ('good day\n"so late, é"\n'.encode(), "text/csv"),
        ('\ufefftext\r\ngood day\r\n"so late, é"\r\n'.encode(), "text/csv"),
        ('good day\n"so late, é"\n\n\r\n'.encode(), "text/csv; charset=UTF-8"),
        ('good day\n"so late, é"\n'.encode("iso-8859-1"), 'text/csv; charset="iso-8859-1"'),
    ],
)
def test_rows_in_any_type_are_the_same(text, predictor, body, kind):
    same(invoke(text, body, kind, accept="text/html;q=0.5, application/json"), predictor.predict(["good day", "so late, é"]))


def test_a_body_is_the_one_instance(text, fusion, predictor, fused, png, wav):
    same(invoke(text, "so late, é".encode(), "text/plain"), predictor.predict(["so late, é"]))
    same(invoke(text, "so late, é".encode("iso-8859-1"), "text/plain; charset=ISO-8859-1"), predictor.predict(["so late, é"]))
    for kind in ("image/png", "application/x-image"):
        same(invoke(fusion, png, kind), fused.predict([{"photo": png}]))
    same(invoke(fusion, wav, "audio/wav"), fused.predict([{"sound": wav}]))
    same(invoke(fusion, b"price,text\n3.5,good day\n", "text/csv"), fused.predict([{"price": 3.5, "text": "good day"}]))
    coded = base64.b64encode(png).decode()
    same(invoke(fusion, b'{"instances": [{"photo": "%s"}]}' % coded.encode(), "application/json"), fused.predict([{"photo": png}]))


@pytest.mark.parametrize(
    ("body", "kind", "headers"),
    [
        (b'"good day"\n{"text": "so late, \\u00e9"}\n', "application/jsonlines", {}),
        (b'{"text": "good day"}\r\n"so late, \xc3\xa9"', "Application/JSONLines; charset=utf-8", {"accept": "*/*"}),
        (b'good day\n"so late, \xc3\xa9"\n', "text/csv", {"accept": "application/jsonlines"}),
    ],
)
def test_lines_of_json_as_batch_transform_joins_them(text, predictor, body, kind, headers):
    response = invoke(text, body, kind, **headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonlines"), response.text
    assert response.text.endswith("}\n")
    for line, wanted in zip(response.text.splitlines(), predictor.predict(["good day", "so late, é"]), strict=True):
        assert json.loads(line)["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


def test_of_lines_of_json_all_answers_come_as_one_where_that_is_accepted(text, predictor):
    same(invoke(text, b'"good day"', "application/jsonlines", accept="application/json"), predictor.predict(["good day"]))
    assert invoke(text, b"", "application/jsonlines").text == ""


@pytest.mark.parametrize(("body", "place"), [(b'"a"\n{"text"\n', "instances.1"), (b'"a"\n\n"b"', "instances.1"), (b'"a"\n3', "instances.1.text")])
def test_a_line_that_can_not_be_used_is_told(text, body, place):
    response = invoke(text, body, "application/jsonlines")
    assert (response.status_code, response.json()["error"]["where"]) == (400, place)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"x", "image/png", 415),
        (b"x", "application/x-npy", 415),
        (b"\xff\xfe", "text/plain", 400),
        (b"\xff\xfe", "text/csv", 400),
        (b"x", "text/plain; charset=punycode", 415),
        (b"x", "text/csv; charset=utf-7", 415),
        (b'"a', "text/csv", 400),
        (b"a,b\n", "text/csv", 400),
        (b"{}", "application/json", 400),
        (b'{"instances": ["x"], "parameters": {"k": 1}}', "application/json", 400),
        (b" " * (10 * 2**20 + 1), "text/plain", 413),
    ],
)
def test_bodies_that_are_refused(text, body, kind, status):
    assert invoke(text, body, kind).status_code == status


def test_a_type_that_is_not_taken_is_told_with_those_that_are(text, fusion):
    takes = "application/json, application/jsonlines, multipart/form-data, text/csv, text/plain"
    for app, kinds in ((text, takes), (fusion, f"{takes}, image/*, audio/*")):
        assert invoke(app, b"{}", "application/x-npy").json()["error"]["message"].endswith(f"does not take application/x-npy but {kinds}")


def test_a_chat_is_a_text_too(tiny_language, endpoint):
    app = asgi(Models([endpoint(tiny_language)], endpoint(tiny_language).spec), {auth.digest(KEY): "test"})
    expected = tiny_language.predict(["Hello"])
    for body, kind in ((b"Hello", "text/plain"), (b"Hello\n", "text/csv")):
        assert invoke(app, body, kind).json()["predictions"] == expected


@pytest.mark.parametrize(("body", "line"), [(b"good\nbad\n\nx\n", 3), (b"\ntext\ngood\n", 1), (b'text\n"so\n\nlate"\n\r\n\r\nx', 5)])
def test_a_blank_line_of_csv_is_no_row(text, body, line):
    response = invoke(text, body, "text/csv")
    assert (response.status_code, response.json()["error"]["message"]) == (400, f"line {line} is blank")


def test_a_cell_of_csv_may_be_as_large_as_a_body(fusion, fused, png):
    row = b"photo,text\n" + base64.b64encode(png) + b"," + b"good " * 40_000
    same(invoke(fusion, row, "text/csv"), fused.predict([{"photo": png, "text": "good " * 40_000}]))


def test_only_json_is_answered(text):
    assert invoke(text, b"good", "text/plain", accept="text/csv").status_code == 406


def test_a_body_may_have_more_than_the_native_limit(text, predictor):
    same(invoke(text, b'{"instances": ["good day"]}' + b" " * 2**21), predictor.predict(["good day"]))


def test_of_several_models_one_is_named(predictor, fused, endpoint):
    app = asgi(Models([endpoint(predictor), endpoint(fused)], endpoint(fused).spec), {auth.digest(KEY): "test"})
    assert invoke(app, b"good", "text/plain").status_code == 400
    assert invoke(app, b"good", "text/plain", x_amzn_sagemaker_target_model="fused").json()["model"] == "fused"


def test_health_needs_no_key_and_answers_do(text):
    for path in ("/ping", VERTEX["AIP_HEALTH_ROUTE"]):
        assert ask(text, "GET", path, key="").status_code == 200
    for path in ("/invocations", VERTEX["AIP_PREDICT_ROUTE"]):
        assert ask(text, "POST", path, key="", json={"instances": ["x"]}).status_code == 401


def test_vertex(text, predictor):
    response = ask(text, "POST", VERTEX["AIP_PREDICT_ROUTE"], json={"instances": ["good day", {"text": "so late"}]})
    same(response, predictor.predict(["good day", "so late"]))
    assert response.json().keys() == {"predictions"}
    assert ask(text, "POST", VERTEX["AIP_PREDICT_ROUTE"], json=[]).status_code == 400
    assert ask(text, "POST", VERTEX["AIP_PREDICT_ROUTE"], json={"instance": []}).status_code == 400


def test_vertex_is_not_there_unless_its_routes_are_given(fusion):
    assert ask(fusion, "GET", VERTEX["AIP_HEALTH_ROUTE"]).status_code == 404
    assert ask(fusion, "POST", VERTEX["AIP_PREDICT_ROUTE"], json={"instances": []}).status_code == 404


@pytest.mark.parametrize("path", ["predict", "/{name}"])
def test_a_route_that_is_none(predictor, endpoint, path):
    with pytest.raises(ServeError, match="AIP_PREDICT_ROUTE"):
        asgi(Models([endpoint(predictor)], endpoint(predictor).spec, {"AIP_PREDICT_ROUTE": path}), [])
