import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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
            status, headers, content = (200, {}, {"models": ["tiny"]}) if self.path == "/v1/models" else served.answers.pop(0)
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
    served.answers, served.seen = [], []
    served.url = f"http://127.0.0.1:{served.server_port}"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def naps(monkeypatch):
    slept = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    return slept


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


def test_overload_is_tried_again_after_what_it_asks_for(server, naps):
    server.answers = [(503, {"retry-after": "3"}, {}), (429, {}, {}), (503, {"retry-after": "3600"}, {}), GOOD]
    with Client(server.url, key="k") as endpoint:
        assert endpoint.predict(["good"]) == [{"label": "positive"}]
    assert [asked <= nap <= 1.25 * asked for asked, nap in zip((3, 0.2, 10), naps, strict=True)] == [True] * 3


def test_overload_ends(server, naps):
    server.answers = [(503, {"retry-after": "1"}, {"error": {"code": "overloaded", "message": "queue is full"}})] * 9
    with Client(server.url, key="k") as endpoint, pytest.raises(ServeError, match="queue is full"):
        endpoint.predict(["good"])
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


def test_a_replica_that_dies_over_a_request_is_asked_again(server, naps):
    server.answers = [(502, {}, b"<html>Bad Gateway</html>"), None, (500, {"content-type": "text/plain"}, b"Internal Server Error"), GOOD]
    with Client(server.url, key="k") as endpoint:
        assert endpoint.predict(["good"]) == [{"label": "positive"}]
    assert len(naps) == 3


def test_an_error_that_the_endpoint_explains_is_not_asked_for_again(server, naps):
    server.answers = [(500, {"content-type": "application/json"}, {"error": {"code": "internal", "message": "the endpoint failed"}})]
    with Client(server.url, key="k") as endpoint, pytest.raises(ServeError, match="500: the endpoint failed"):
        endpoint.predict(["good"])
    assert naps == []


def test_nobody_there():
    with Client("http://127.0.0.1:9", key="k") as endpoint, pytest.raises(ServeError, match="can't be reached"):
        endpoint.predict(["good"])


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


def test_both_are_public_names():
    import lc_ray

    assert (lc_ray.Client, lc_ray.AsyncClient) == (Client, AsyncClient)
