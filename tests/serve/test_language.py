"""Language models asked as any other model is: by rows, with parameters."""

import asyncio
import json

import pytest
from serving import KEY, ask
from talking import collect

from lc_ray.serve import auth, language
from lc_ray.serve.endpoint import Models, asgi, settings
from lc_ray.serve.generation import Ask, Piece

CHATS = [[{"role": "user", "content": text}] for text in ("Hello", "a", "xyz" * 30, "0123456789")]
NATIVE, INFER, VERTEX = "/v1/models/talk:predict", "/v2/models/talk/infer", "/vertex:predict"


@pytest.fixture(scope="module")
def served(tiny_language, endpoint):
    return endpoint(tiny_language, batch={"max": 4}, queue=2)


@pytest.fixture(scope="module")
def app(served):
    return asgi(Models([served], served.spec, settings({"AIP_PREDICT_ROUTE": VERTEX})), {auth.digest(KEY): ""})


def native(app, chats=CHATS, path=NATIVE, **parameters):
    return ask(app, "POST", path, json={"instances": chats, "parameters": parameters})


def open_inference(app, chats=CHATS, **parameters):
    data = [json.dumps(chat) for chat in chats]
    body = {"inputs": [{"name": "chat", "datatype": "BYTES", "shape": [len(data)], "data": data}], "parameters": parameters}
    return ask(app, "POST", INFER, json=body)


def texts(response):
    assert response.status_code == 200, response.text
    found = response.json()
    return [one["text"] for one in found["predictions"]] if "predictions" in found else found["outputs"][1]["data"]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_rows_are_answered_as_by_the_predictor(app, tiny_language, monkeypatch, temperature):
    monkeypatch.setattr(tiny_language.task, "temperature", temperature)
    expected = [answer["text"] for answer in tiny_language.predict(CHATS)]
    assert texts(native(app)) == texts(native(app, path=VERTEX)) == texts(native(app, path="/invocations")) == texts(open_inference(app)) == expected
    assert len(set(expected)) == len(expected)
    assert texts(native(app, [])) == []


def test_parameters(app, tiny_language):
    whole = texts(native(app, temperature=1, seed=3, max_new_tokens=20))
    for call in (native, open_inference):
        assert texts(call(app, temperature=1, seed=3, max_tokens=20)) == whole
        assert texts(call(app, temperature=1, seed=4, max_tokens=20)) != whole
        assert texts(call(app, temperature=1, seed=3, max_tokens=20, top_p=0.1)) != whole
        short = texts(call(app, temperature=1, seed=3, max_tokens=5))
        assert short != whole
        assert all(text.startswith(part.rstrip("\N{REPLACEMENT CHARACTER}")) for text, part in zip(whole, short, strict=True))
        stop = whole[0][3:5]
        assert texts(call(app, CHATS[:1], temperature=1, seed=3, max_tokens=20, stop=stop)) == [whole[0][: whole[0].index(stop)]]


@pytest.mark.parametrize(
    ("parameters", "where", "message"),
    [
        ({"best": 1}, "parameters.best", "not known"),
        ({"temperature": 3}, "parameters.temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, "parameters.max_tokens", "greater than"),
        ({"max_new_tokens": 640}, "parameters.max_new_tokens", "reads 640 tokens"),
        ({"stop": [1]}, "parameters.stop.0", "string"),
    ],
)
def test_parameters_that_are_refused(app, parameters, where, message):
    for call in (native, open_inference):
        response = call(app, **parameters)
        assert response.status_code == 400
        assert message in response.text
    error = native(app, **parameters).json()["error"]
    assert error["where"] == where
    assert native(app, path="/invocations", **parameters).status_code == 400
    assert ask(app, "POST", NATIVE, json={"instances": CHATS, "parameters": [1]}).json()["error"]["where"] == "parameters"


def test_parameters_of_the_open_inference_protocol(app):
    own = {"timeout": 1000, "priority": 1, "sequence_id": 5, "sequence_start": True, "sequence_end": True, "binary_data_output": False}
    assert texts(open_inference(app, **own)) == texts(native(app))
    assert native(app, priority=1).status_code == 400
    assert open_inference(app, best=1).json()["error"] == "parameters.best: this field is not known here"


def test_bad_rows_are_named(app):
    assert native(app, [CHATS[0], []]).json()["error"]["where"] == "instances.1.chat"


def test_rows_of_a_request_wait_as_one(app, served):
    """A request with more rows than may wait or run at a time is answered, if none waits before it."""
    assert len(texts(native(app, CHATS * 3))) == 12
    before, served.worker.spec = served.worker.spec, served.worker.spec.model_copy(update={"queue": 0})
    try:
        response = native(app)
    finally:
        served.worker.spec = before
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")


def test_what_was_answered_is_measured(served):
    seen = []
    rows = [{"chat": chat} for chat in CHATS]
    answers = asyncio.run(language.answers(served.worker, rows, None, lambda *told: seen.append(told)))
    ((prepared, told),) = seen
    assert told == answers
    assert len(prepared["_size"]) == len(CHATS)


@pytest.mark.parametrize("turns", range(5))
def test_who_hangs_up_just_as_a_piece_comes_waits_no_more(served, monkeypatch, turns):
    jobs = []
    monkeypatch.setattr(served.generator, "submit", jobs.append)

    async def main():
        waiting = asyncio.ensure_future(collect(served.generator, Ask([1], 2)))
        await asyncio.sleep(0.01)
        jobs[0].send(Piece(0, "a", ()))
        for _ in range(turns):  # of the event loop, in each of which the piece gets further
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting], timeout=1)
        assert waiting.cancelled()
        assert jobs[0].cancelled, "no more is made"

    asyncio.run(main())
