import asyncio
import json
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import served
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from lc_ray import client
from lc_ray.client import AsyncClient, Client
from lc_ray.errors import ServeError


@pytest.fixture
def server():
    """A real HTTP server that plays back `answers`: (status, headers, content)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers.get("content-length", 0))
            served.seen.append((self.path, self.headers.get("authorization"), self.rfile.read(length)))
            if self.path != "/v1/models" and served.answers[0] is None:  # break off
                served.answers.pop(0)
                self.close_connection = True
                self.connection.close()
                return
            status, headers, content = (200, {}, served.models) if self.path == "/v1/models" else served.answers.pop(0)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.answers, served.seen, served.models = [], [], {"models": ["tiny"]}
    served.url = f"http://127.0.0.1:{served.server_port}"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def naps(monkeypatch):
    slept = []

    async def nap(seconds):
        slept.append(seconds)

    monkeypatch.setattr(client.time, "sleep", slept.append)
    monkeypatch.setattr(client.asyncio, "sleep", nap)
    return slept


@pytest.fixture(params=[Client, AsyncClient])
def predict(request):
    """predict(url, rows, ...of the client) → what either client answers."""

    def predict(url, rows=("good",), **options):
        options = {"key": "k"} | options
        if request.param is Client:
            with Client(url, **options) as endpoint:
                return endpoint.predict(list(rows))

        async def main():
            async with AsyncClient(url, **options) as endpoint:
                return await endpoint.predict(list(rows))

        return asyncio.run(main())

    return predict


GOOD = (200, {}, {"predictions": [{"label": "positive"}]})


def test_predict(server):
    server.answers = [GOOD, GOOD]
    with Client(server.url + "/", key="k") as endpoint:
        assert endpoint.predict(["good"]) == endpoint.predict(["good"]) == [{"label": "positive"}]
    assert [path for path, _, _ in server.seen] == ["/v1/models", "/v1/models/tiny:predict", "/v1/models/tiny:predict"]
    assert all(key == "Bearer k" for _, key, _ in server.seen)
    assert json.loads(server.seen[1][2]) == {"instances": ["good"]}


def test_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("LC_RAY_API_KEY", "from env")
    server.answers = [GOOD]
    with Client(server.url) as endpoint:
        endpoint.predict(["good"])
    assert server.seen[-1][1] == "Bearer from env"


def test_this_machine_is_asked_past_a_proxy(server, predict, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers = [GOOD]
    assert predict(server.url) == [{"label": "positive"}]


def test_overload_is_tried_again_after_what_it_asks_for(server, naps, predict):
    date = formatdate(time.time() + 8, usegmt=True)
    server.answers = [(503, {"retry-after": "3"}, {}), (429, {}, {}), (503, {"retry-after": date}, {}), (503, {"retry-after": "soon"}, {}), GOOD]
    assert predict(server.url) == [{"label": "positive"}]
    least = (3, 0.2, 6, 0.8)  # a date has whole seconds, of which some have gone
    assert [low <= nap <= 1.25 * max(low, asked) for low, asked, nap in zip(least, (3, 0.2, 8, 0.8), naps, strict=True)] == [True] * 4


def test_who_asks_for_a_long_wait_is_not_asked_again(server, naps, predict):
    server.answers = [(429, {"retry-after": "60"}, {"error": {"code": "rate_limited", "message": "10 requests in 60 s"}})]
    with pytest.raises(ServeError, match="429: 10 requests in 60 s"):
        predict(server.url)
    assert naps == []


def test_an_endpoint_that_is_starting_is_asked_again(server, naps, predict):
    server.answers = [(404, {"content-type": "text/plain"}, b"Path '/v1/models/tiny:predict' not found."), GOOD]
    assert predict(server.url) == [{"label": "positive"}]
    assert len(naps) == 1


def test_no_answer_in_time(predict):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServeError, match=r"no answer within 0\.2 s"):
        predict(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)


def test_overload_ends(server, naps, predict):
    server.answers = [(503, {"retry-after": "1"}, {"error": {"code": "overloaded", "message": "queue is full"}})] * 9
    with pytest.raises(ServeError, match="queue is full"):
        predict(server.url)
    assert len(naps) == 4
    assert len(set(naps)) > 1


def test_errors_carry_the_endpoints_words(server):
    server.answers = [(400, {}, {"error": {"code": "invalid_instance", "message": "empty text", "where": "instances.3.text"}})]
    with Client(server.url, key="k") as endpoint, pytest.raises(ServeError, match="empty text") as caught:
        endpoint.predict(["", "", "", ""])
    assert caught.value.where == "instances.3.text"


@pytest.mark.parametrize("content", [b"<html>Bad Gateway</html>", b"[]", b'{"error": "x"}', b""])
def test_errors_of_others(server, content):
    server.answers = [(501, {}, content)]
    with Client(server.url, key="k") as endpoint, pytest.raises(ServeError, match="501"):
        endpoint.predict(["good"])


def test_a_replica_that_dies_over_a_request_is_asked_again(server, naps, predict):
    server.answers = [(502, {}, b"<html>Bad Gateway</html>"), None, (500, {"content-type": "text/plain"}, b"Internal Server Error"), GOOD]
    assert predict(server.url) == [{"label": "positive"}]
    assert len(naps) == 3


def test_replicas_that_die_over_a_request_again_and_again_end_it(server, naps, predict):
    server.answers = [None] * 9
    with pytest.raises(ServeError, match=r"can't be reached: .*disconnected"):
        predict(server.url)
    assert len(naps) == 4
    assert len(server.answers) == 4


def test_an_error_that_the_endpoint_explains_is_not_asked_for_again(server, naps, predict):
    server.answers = [(500, {"content-type": "application/json"}, {"error": {"code": "internal", "message": "the endpoint failed"}})]
    with pytest.raises(ServeError, match="500: the endpoint failed"):
        predict(server.url)
    assert naps == []


def test_nobody_there():
    with Client("http://127.0.0.1:9", key="k") as endpoint, pytest.raises(ServeError, match="can't be reached"):
        endpoint.predict(["good"])


@pytest.mark.parametrize("url", ["http://host:port", "http://127.0.0.1:80\n", "http://a..b"])
def test_a_url_that_is_none(predict, url):
    with pytest.raises(ServeError, match=r"not a URL|can't be reached") as caught:
        predict(url)
    assert caught.value.where == url


@pytest.mark.parametrize("key", ["ü", "two\nlines"])
def test_a_key_that_no_request_can_carry_is_not_told(predict, key):
    with pytest.raises(ServeError, match="the API key has characters") as caught:
        predict("http://127.0.0.1:9", key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(("cell", "told"), [(b"png", "bytes"), (float("nan"), "float values"), ("\udcff", "surrogates"), ([], "Circular")])
def test_instances_that_no_json_can_be_made_of(server, predict, cell, told):
    if isinstance(cell, list):
        cell.append(cell)
    with pytest.raises(ServeError, match=rf"can't be sent: .*{told}"):
        predict(server.url, [cell])
    assert [path for path, _, _ in server.seen] == ["/v1/models"]


@pytest.mark.parametrize("content", [b"<html>Welcome</html>", b"\xff", b"[]", b"{}", b"null", b'{"models": []}', b'{"models": null}'])
def test_answers_of_what_is_no_endpoint(server, predict, content):
    server.models = content
    with pytest.raises(ServeError, match="none of an endpoint's") as caught:
        predict(server.url)
    assert caught.value.where == server.url
    server.models, server.answers = {"models": ["tiny"]}, [(200, {}, content)]
    with pytest.raises(ServeError, match="none of an endpoint's"):
        predict(server.url)


def test_an_answer_that_can_not_be_unpacked(server, predict):
    server.answers = [(200, {"content-encoding": "gzip"}, b"no gzip")]
    with pytest.raises(ServeError, match=r"can't be reached: .*decompressing"):
        predict(server.url)


def test_a_model_can_be_named(server):
    server.answers = [GOOD]
    with Client(server.url, key="k") as endpoint:
        endpoint.predict(["good"], model="large one")
    assert [path for path, _, _ in server.seen] == ["/v1/models/large%20one:predict"]


def test_async(server):
    async def main():
        async with AsyncClient(server.url, key="k") as endpoint:
            assert await endpoint.predict(["good"]) == await endpoint.predict(["good"], model="large") == [{"label": "positive"}]
            with pytest.raises(ServeError, match="empty text"):
                await endpoint.predict([""])
        async with AsyncClient("http://127.0.0.1:9", key="k") as endpoint:
            with pytest.raises(ServeError, match="can't be reached"):
                await endpoint.predict(["good"])

    server.answers = [(429, {"retry-after": "0"}, {}), GOOD, GOOD, (400, {}, {"error": {"code": "invalid_instance", "message": "empty text"}})]
    asyncio.run(main())
    assert len(server.seen) == 5
    assert all(key == "Bearer k" for _, key, _ in server.seen)


def test_one_after_another_event_loop_uses_a_client():
    async def answer(request):
        return JSONResponse({"predictions": [request.client.port]})

    with served(Starlette(routes=[Route("/v1/models/tiny:predict", answer, methods=["POST"])])) as place:
        client = AsyncClient(f"http://{place}", key="k")

        async def twice():
            return [await client.predict(["good"], "tiny") for _ in range(2)]

        connections = [port for _ in range(2) for [port] in asyncio.run(twice())]
        assert len(set(connections)) == 2, "a loop keeps its connection, and no other uses it"
        with asyncio.Runner() as runner:
            runner.run(client.predict(["good"], "tiny"))
            runner.run(client.close())


def test_both_are_public_names():
    import lc_ray

    assert (lc_ray.Client, lc_ray.AsyncClient) == (Client, AsyncClient)
