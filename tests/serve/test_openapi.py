"""The description of the endpoint, against the endpoint."""

import base64
import re

import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator
from serving import KEY, ask
from starlette.routing import Match

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi, settings

VERTEX = {"AIP_HEALTH_ROUTE": "/health/vertex", "AIP_PREDICT_ROUTE": "/predict/vertex"}
OPENAI = {("post", "/v1/chat/completions"), ("post", "/v1/completions")}


@pytest.fixture(scope="module")
def app(predictor, fused, tiny_language, endpoint):
    """Every route that there is."""
    found = [endpoint(one) for one in (predictor, fused, tiny_language)]
    return asgi(Models(found, found[0].spec, settings(VERTEX)), {auth.digest(KEY): "test"})


@pytest.fixture(scope="module")
def plain(predictor, endpoint):
    """Without a language model, and with a limited rate."""
    return asgi(Models([endpoint(predictor)], endpoint(predictor, rate={"requests": 1000}).spec), {auth.digest(KEY): "test"})


@pytest.fixture(scope="module")
def description(app):
    return ask(app, "GET", "/openapi.json").json()


@pytest.fixture(scope="module")
def fits(description):
    """fits(value, schema): it must, references included."""

    def fits(value, schema):
        Draft202012Validator({"components": description["components"], "allOf": [schema]}).validate(value)

    return fits


def operations(description):
    return [(method, path, told) for path, methods in description["paths"].items() for method, told in methods.items()]


def routes(app):
    return [(method.lower(), route) for route in app.routes for method in route.methods - {"HEAD"}]


def filled(path, told):
    """A path with values in place of its parameters."""
    values = {p["name"]: p["schema"]["enum"][0] for p in told.get("parameters", ()) if p["in"] == "path"}
    return re.sub(r"\{(\w+)\}", lambda name: values[name[1]], path)


def taken(route, method, path):
    return route.matches({"type": "http", "path": path, "method": method.upper()})[0] is Match.FULL


def test_it_is_valid(app, plain):
    for one in (app, plain):
        OpenAPIV31SpecValidator(ask(one, "GET", "/openapi.json").json()).validate()


def test_no_route_is_left_out_and_none_made_up(app, description):
    told = [(method, filled(path, about)) for method, path, about in operations(description)]
    known = routes(app)
    assert [one for one in told if not any(method == one[0] and taken(route, *one) for method, route in known)] == []
    assert [(method, route.path) for method, route in known if not any(method == of and taken(route, of, path) for of, path in told)] == []


def test_without_a_language_model_its_routes_are_not_described(plain):
    told = [(method, filled(path, about)) for method, path, about in operations(ask(plain, "GET", "/openapi.json").json())]
    silent = {(method, route.path) for method, route in routes(plain) if not any(method == of and taken(route, of, path) for of, path in told)}
    assert silent == OPENAI


def test_needs_a_key_where_it_says_so(app, description):
    assert ask(app, "GET", "/openapi.json", key="guess").status_code == 401
    for method, path, told in operations(description):
        status = ask(app, method.upper(), filled(path, told), key="guess").status_code
        assert (status == 401) is ("401" in told["responses"]) is (told.get("security") != []), path


def test_answers_are_as_described(app, description, fits):
    for method, path, told in operations(description):
        if method == "get":
            response = ask(app, "GET", filled(path, told))
            kind = response.headers["content-type"].partition(";")[0]
            assert response.status_code == 200
            fits(response.json() if kind == "application/json" else response.text, told["responses"]["200"]["content"][kind]["schema"])


def test_predictions_are_as_described(app, description, fits, png, wav):
    photo, sound = (base64.b64encode(data).decode() for data in (png, wav))
    row = {"text": "good day", "photo": photo, "sound": f"data:audio/wav;base64,{sound}", "price": 3.5}
    chat = {"role": "user", "content": "Hello"}
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}}
    functions = {"functions": [{"name": "f"}, {"name": "g"}], "tool_choice": allowed}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good day"]}
    known = {
        "/v1/models/tiny:predict": {"instances": ["good day", {"text": "so late"}]},
        "/v1/models/fused:predict": {"instances": [row, {"price": None, "text": "ok"}, {"price": "cheap"}]},
        "/v1/models/talk:predict": {"instances": [[chat], "Hello", {"chat": [chat]}], "parameters": {"max_tokens": 2}},
        "/v2/models/tiny/infer": {"inputs": [tensor], "id": "1", "outputs": [{"name": "label"}, {"name": "probabilities"}]},
        "/v1/chat/completions": {"model": "talk", "messages": [chat, refused], "max_tokens": 2, "logit_bias": {"1": -100}, **functions},
        "/v1/completions": {"model": "talk", "prompt": "Hello", "max_tokens": 0, "echo": True, "logprobs": 1},
    }
    for path, body in known.items():
        told = description["paths"][path]["post"]
        fits(body, told["requestBody"]["content"]["application/json"]["schema"])
        response = ask(app, "POST", path, json=body)
        assert response.status_code == 200, response.text
        fits(response.json(), told["responses"]["200"]["content"]["application/json"]["schema"])


def test_a_form_is_as_described(app, description, png):
    form = description["components"]["schemas"]["fused.Form"]
    assert form["properties"]["photo"] == {"contentMediaType": "image/*"}
    assert form["required"] == []
    assert ask(app, "POST", "/v1/models/fused:predict", files={"photo": png}, data={"text": "good day"}).status_code == 200


def test_errors_are_as_described(app, description, fits):
    for method, path, told in operations(description):
        if method == "post":
            for body in (b"{", b'{"instances": [5], "inputs": 1, "messages": 2}'):
                response = ask(app, "POST", filled(path, told), content=body)
                assert response.status_code == 400, (path, response.text)
                fits(response.json(), told["responses"]["400"]["content"]["application/json"]["schema"])


def test_what_does_not_fit_is_refused_by_both(app, description, fits):
    told = description["paths"]["/v1/models/tiny:predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for body in ({"instances": [{"txet": "good"}]}, {"instances": "good"}, {"instances": [5]}, {"instances": [""]}, {}):
        assert ask(app, "POST", "/v1/models/tiny:predict", json=body).status_code == 400
        with pytest.raises(ValidationError):
            fits(body, told)


def test_limits_say_when_to_try_again(plain):
    told = ask(plain, "GET", "/openapi.json").json()["paths"]["/v1/models/tiny:predict"]["post"]
    assert told["requestBody"]["content"]["application/json"]["schema"]["properties"]["instances"]["maxItems"] == 256
    assert {status for status, about in told["responses"].items() if "Retry-After" in about.get("headers", {})} == {"429", "503"}
    assert {"400", "401", "413", "429", "500", "503", "504"} <= told["responses"].keys()


def test_examples_of_columns_fit_their_schemas(predictor, fused, tiny_language):
    for one in (predictor, fused, tiny_language):
        for modality in one.columns.values():
            Draft202012Validator(modality.SCHEMA).validate(modality.example)
