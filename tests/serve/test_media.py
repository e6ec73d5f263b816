"""Pictures and sounds of requests: decoded a row at a time, beside all else, and no more than a request may have."""

import asyncio
import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile
from artifacts import save
from jsonschema import Draft202012Validator
from PIL import Image
from serving import KEY, LABELS, ask

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi
from lc_ray.serve.http import HttpError

PREDICT = "/v1/models/fused:predict"


@pytest.fixture
def slow(fused, endpoint, monkeypatch):
    """slow(...limits of ServeSpec) → an endpoint that takes a tenth of a second to decode a row, and the texts of those that it decoded."""

    def make(**limits):
        served, seen, decode = endpoint(fused, **limits), [], fused.decode

        def slowly(row):
            time.sleep(0.1)
            seen.append(row["text"])
            return decode(row)

        monkeypatch.setattr(fused, "decode", slowly)
        return served, seen

    return make


@pytest.fixture
def one_decoder(monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr("lc_ray.serve.endpoint._decoders", pool)
        yield


def test_a_request_that_is_out_of_time_stops_at_its_next_row(slow):
    served, decoded = slow(timeout="250ms")
    app = asgi(Models([served], served.spec), {auth.digest(KEY): "test"})
    assert ask(app, "POST", PREDICT, json={"instances": [{"text": "good"}] * 20}).status_code == 504
    time.sleep(0.5)
    assert len(decoded) <= 3


def test_requests_take_turns(slow, one_decoder):
    served, decoded = slow()

    async def main():
        await asyncio.gather(served.predict([{"text": "long"}] * 4), served.predict([{"text": "short"}]))

    asyncio.run(main())
    assert decoded.index("short") <= 1


def test_decoding_holds_up_nothing_else(fused, endpoint, monkeypatch):
    """Neither the event loop nor the threads that other models use."""
    served, go = endpoint(fused), threading.Event()
    decode = fused.decode
    monkeypatch.setattr(fused, "decode", lambda row: go.wait(10) and decode(row))

    async def main():
        asked = [asyncio.ensure_future(served.predict([{"text": "good"}])) for _ in range(64)]
        await asyncio.sleep(0.1)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "answered"), 2) == "answered"
        finally:
            go.set()
        assert len(await asyncio.gather(*asked)) == 64

    asyncio.run(main())


def picture(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def sound(seconds, channels=1):
    file = io.BytesIO()
    soundfile.write(file, [[0.5] * channels] * int(seconds * 16_000), 16_000, format="FLAC")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([{"photo": picture(200, 100)}] * 2 + [{"photo": picture(100, 100)}], "instances.2.photo"),
        ([{"photo": picture(300, 100)}, {"sound": sound(0.75)}], "instances.1.sound"),
        ([{"sound": sound(0.75, 4)}], "instances.0.sound"),
    ],
)
def test_what_files_of_a_request_may_have_together(fused, endpoint, rows, where):
    served = endpoint(fused, max_media=40_000)
    app = asgi(Models([served], served.spec), {auth.digest(KEY): "test"})
    response = ask(app, "POST", PREDICT, json={"instances": rows})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "media_too_large")
    assert response.json()["error"]["where"] == where
    assert "40000 pixels and samples" in response.json()["error"]["message"]
    assert ask(app, "POST", PREDICT, json={"instances": rows[:-1]}).status_code == 200


def test_what_is_too_large_is_not_decoded(fused, endpoint, monkeypatch):
    served, photo = endpoint(fused, max_media=40_000), picture(400, 101)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was"))
    with pytest.raises(HttpError) as caught:
        asyncio.run(served.predict([{"photo": photo}]))
    assert caught.value.status_code == 413


@pytest.fixture(scope="module")
def seeing(fused, tmp_path_factory):
    """A model of a photo alone."""
    import lc_ray
    from lc_ray.models import load
    from lc_ray.spec import ModelSpec
    from lc_ray.tasks.classification import Task

    inputs, task = [fused.columns["photo"].spec.model_copy(update={"optional": False})], Task(LABELS)
    model = load.pretrained(ModelSpec(), inputs, task)
    return lc_ray.load(save(tmp_path_factory.mktemp("artifacts") / "seeing", model, task, inputs).path, threads=1)


def test_the_one_file_of_an_instance(seeing, endpoint, png):
    """As TensorFlow Serving and Vertex AI have it."""
    app = asgi(Models([endpoint(seeing)], endpoint(seeing).spec), {auth.digest(KEY): "test"})
    coded, expected = base64.b64encode(png).decode(), seeing.predict([{"photo": png}])[0]["probabilities"]
    whole = {"photo": {"b64": coded}}
    schema = ask(app, "GET", "/openapi.json").json()["components"]["schemas"]["seeing.Instance"]
    for row in (coded, {"b64": coded}, whole):
        Draft202012Validator(schema).validate(row)
        response = ask(app, "POST", "/v1/models/seeing:predict", json={"instances": [row]})
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][0]["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert ask(app, "POST", "/v1/models/seeing:predict", json={"instances": [{"b46": coded}]}).json()["error"]["where"] == "instances.0"
