"""Models that are replaced while requests go on."""

import asyncio
import gc
import json
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
import ray
from artifacts import copied
from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import ApplicationStatus
from serving import KEY, ask, asking

import lc_ray
from lc_ray import DeployModel, artifact, cli_rollout
from lc_ray.deploy import ray as platform
from lc_ray.errors import ServeError
from lc_ray.serve import app, auth, rollout, update
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serve.rollout import Version
from lc_ray.serving import ServeSpec

PREDICT = "/v1/models/tiny:predict"


def test_versions_answer_by_their_weight_and_when_asked_for(predictor, second_artifact):
    spec = ServeSpec()
    old, new = Endpoint(predictor, spec), Endpoint(lc_ray.load(second_artifact, threads=1), spec)
    models = Models([old], spec)
    served = asgi(models, {auth.digest(KEY): "test"})
    models.replace({"tiny": {old: 0.7, new: 0.3}})
    counts = Counter(ask(served, "POST", PREDICT, json={"instances": ["ok"]}).json()["version"] for _ in range(100))
    assert set(counts) == {old.version, new.version}
    assert counts[old.version] > counts[new.version]
    asked = ask(served, "POST", f"/v1/models/tiny/versions/{new.version}:predict", json={"instances": ["ok"]}).json()
    assert asked["version"] == new.version
    assert ask(served, "GET", "/v1/models/tiny").json()["versions"] == {old.version: 0.7, new.version: 0.3}
    models.close()


def test_replaced_endpoint_answers_what_it_has_and_is_gone(predictor):
    spec = ServeSpec(batch={"wait": "50ms"})

    async def main():
        models = Models([Endpoint(predictor, spec)], spec)
        old = weakref.ref(models.choose())
        thread = old().worker._thread
        asked = [asyncio.create_task(models.choose().predict(["ok"])) for _ in range(4)]
        await asyncio.sleep(0)
        models.replace({"tiny": {Endpoint(predictor, spec): 1.0}})
        answers = await asyncio.gather(*asked)
        del asked
        models.close()
        return answers, old, thread

    answers, old, thread = asyncio.run(main())
    assert all(len(answer) == 1 for answer in answers)
    gc.collect()
    assert old() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_stream_goes_on_while_its_model_is_replaced(tiny_language):
    spec = ServeSpec()
    models = Models([Endpoint(tiny_language, spec)], spec)
    app = asgi(models, {})
    body = {"model": "talk", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200, "stream": True, "logit_bias": {"1": -100}}

    async def main():
        ends = asyncio.get_running_loop().time() + 60
        sent, received = [], [{"type": "http.request", "body": json.dumps(body).encode()}]

        async def receive():
            if received:
                return received.pop()
            await asyncio.sleep(3600)

        async def send(message):
            sent.append(message.get("body", b""))

        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
        answering = asyncio.create_task(app(scope, receive, send))
        while not any(b"content" in part for part in sent):
            assert asyncio.get_running_loop().time() < ends
            await asyncio.sleep(0.01)
        old = weakref.ref(models.choose())
        models.replace({"talk": {Endpoint(tiny_language, spec): 1.0}})
        await answering
        return b"".join(sent).decode(), old

    told, old = asyncio.run(main())
    models.close()
    assert told.rstrip().endswith("data: [DONE]")
    assert "error" not in told
    gc.collect()
    assert old() is None


@pytest.mark.cluster
def test_model_is_replaced_under_load_without_a_failed_request(home, ray_local, tiny_artifact, second_artifact, tmp_path):
    url = app.start([tiny_artifact], ServeSpec(port=0, timeout="90s"), {"test": KEY})
    try:
        first, second = (artifact.read(path).digest for path in (tiny_artifact, second_artifact))
        folder = rollout.find()
        with asking(url, KEY) as ask_until:
            for weight, versions in ((0.5, {first, second}), (1.0, {second})):
                name, new = rollout.keep(folder, second_artifact, weight)
                update.replace(folder, rollout.rolled(rollout.read(folder), name, new))
                ask_until(versions)
            update.replace(folder, rollout.rolled_back(rollout.read(folder), "tiny"))
            ask_until({first, second})
            broken = rollout.read(folder)
            missing = Version(path=str(tmp_path / "nothing"), digest="nothing")
            with pytest.raises(ServeError, match=r"what was served goes on: .*not an artifact"):
                update.replace(folder, rollout.rolled(broken, "tiny", missing))
            assert rollout.read(folder) == broken
    finally:
        app.stop()
    assert rollout.running() == []


class Unread(RuntimeError):
    """An engine's error, as Ray wraps it."""

    def __str__(self):
        return 'ray::ServeReplica.handle_request()\n  File "replica.py", line 1\nRuntimeError: Exception from core.cpp:84:\nIt can\'t be read'


@pytest.mark.parametrize(
    ("error", "told", "why"),
    [
        (KeyboardInterrupt, KeyboardInterrupt, None),
        (Unread, ServeError, r"goes on: It can't be read$"),
        (ServeError, ServeError, r"goes on: x\n  → y$"),
    ],
)
def test_of_a_rollout_that_is_given_up_nothing_stays(home, addresses, tiny_artifact, second_artifact, monkeypatch, error, told, why):
    folder = rollout.begin(8000, addresses[0], "http://127.0.0.1:8000", rollout.served([tiny_artifact]))
    was, calls = rollout.read(folder), []

    class Replicas:
        def broadcast(self, method, models):
            calls.append((method, models))
            self.results = {"load": self.interrupted, "adopt": list}[method]
            return self

        def interrupted(self):
            raise error("x", fix="y") if error is ServeError else error

    monkeypatch.setattr(serve, "get_app_handle", lambda name: Replicas())
    name, new = rollout.keep(folder, second_artifact)
    with pytest.raises(told, match=why):
        update.replace(folder, rollout.rolled(was, name, new))
    assert calls[1:] == [("adopt", was.models)], "replicas let go of what they have loaded"
    assert rollout.read(folder) == was
    assert [one.name for one in (folder / "models").iterdir()] == [artifact.read(tiny_artifact).digest]


@pytest.mark.parametrize(("status", "loads"), [("RUNNING", True), ("RUNNING", False), ("UNHEALTHY", False)])
def test_where_no_replica_runs_one_finds_what_cant_be_loaded(home, addresses, tiny_artifact, second_artifact, monkeypatch, status, loads):
    folder = rollout.begin(8000, addresses[0], "http://127.0.0.1:8000", rollout.served([tiny_artifact]))
    was, replicas = rollout.read(folder), []
    name, new = rollout.keep(folder, second_artifact)
    wanted = rollout.rolled(was, name, new)

    class Replicas:
        given = property(lambda self: self)

        def remote(self):
            return self

        def result(self, timeout_s):
            replicas.append(was.models)
            if len(replicas) < 3:
                raise TimeoutError

        def broadcast(self, method, models):
            if not replicas:
                raise DeploymentUnavailableError(DeploymentID(app.NAME, app.NAME))
            if method == "load" and models == wanted.models and not loads:
                raise ValueError("it can't be loaded")
            return SimpleNamespace(results=list)

    applications = {app.NAME: SimpleNamespace(status=ApplicationStatus(status))}
    monkeypatch.setattr(serve, "get_app_handle", lambda name: Replicas())
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    if status == "RUNNING" and not loads:
        with pytest.raises(ServeError, match=r"what was served goes on: it can't be loaded"):
            update.replace(folder, wanted)
        assert rollout.read(folder) == was
    else:
        update.replace(folder, wanted)
        assert rollout.read(folder) == wanted, "also where none can start with what is served now"


@serve.deployment
class Theirs:
    def __call__(self) -> str:
        return "still here"


@pytest.mark.cluster
def test_versions_and_models_come_and_go_beside_another_application(home, ray_local, tiny_artifact, second_artifact, fused, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    first = DeployModel(tiny_artifact, "ray", replicas={"cpu": 0}).deploy()
    try:
        theirs = serve.run(Theirs.options(ray_actor_options={"num_cpus": 0}).bind(), name="theirs", route_prefix="/theirs")
        assert first.predict(["good flight"])[0]["label"] == lc_ray.load(tiny_artifact).predict(["good flight"])[0]["label"]
        second = DeployModel(second_artifact, "ray").deploy()
        assert second.url == first.url
        about = httpx.get(f"{second.url}/v1/models/tiny", headers={"authorization": f"Bearer {second.key}"}).json()
        assert about["version"] == artifact.read(second_artifact).digest
        other = DeployModel(fused.artifact.path, "ray").deploy()
        second.delete()
        with pytest.raises(ServeError, match="no model 'tiny'"):
            second.predict(["good flight"])
        with pytest.raises(ServeError, match="no model 'tiny' is served"):
            platform.delete(artifact.read(tiny_artifact), platform.Settings())
        other.delete()
        assert theirs.remote().result() == "still here"
        assert list(serve.status().applications) == ["theirs"]
    finally:
        serve.shutdown()


@pytest.mark.cluster
@pytest.mark.parametrize("begin", [update.tidy, lambda: None])
def test_what_a_run_that_was_killed_has_served_ends_before_another_serves(ray_local, monkeypatch, begin):
    told = []

    def killed():
        raise KeyboardInterrupt

    with monkeypatch.context() as as_before:
        as_before.setattr(app, "stop", killed)
        with pytest.raises(KeyboardInterrupt), update.passing():
            told.append("served")
    monkeypatch.setattr(app, "stop", lambda: told.append("ended"))
    begin()
    with update.alone(), update.passing():
        told.append("another")
    update.tidy()
    assert told == ["served", "ended", "another", "ended"]


@pytest.mark.cluster
def test_where_several_machines_serve_too(home, ray_local, tiny_artifact, second_artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    other = copied(tiny_artifact, tmp_path / "other", name="other")
    broken = copied(tiny_artifact, tmp_path / "broken", weights=b"nothing")
    with monkeypatch.context() as several:
        several.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {}}] * 2)
        first = DeployModel(tiny_artifact, "ray", replicas={"cpu": 0}, timeout="90s").deploy()
    try:
        assert rollout.running() == []
        old, new = (artifact.read(path).digest for path in (tiny_artifact, second_artifact))
        with asking(first.url, first.key, clients=2) as ask_until:
            ask_until({old})
            with ThreadPoolExecutor() as pool:  # one waits for the other, and takes nothing of it away
                besides, second = pool.map(lambda path: DeployModel(path, "ray").deploy(), (other, second_artifact))
            ask_until({new})
            assert besides.url == second.url == first.url
            assert besides.predict(["good flight"])[0]["label"] == first.predict(["good flight"])[0]["label"]
            with pytest.raises(ServeError, match="what was served goes on: Error while deserializing") as told:
                DeployModel(broken, "ray").deploy()
            assert "Traceback" not in str(told.value)
            ask_until({new})
            besides.delete()
            with pytest.raises(ServeError, match="no model 'other'"):
                besides.predict(["good flight"])
            ask_until({new})
            with monkeypatch.context() as connected:
                connected.setenv("RAY_ADDRESS", app.address())
                cli_rollout.rollback(second.name)
            ask_until({old})
        assert [set(shares) for shares in rollout.weights(update.served().models).values()] == [{old}]
        second.delete()
        assert not app.serves()
    finally:
        serve.shutdown()
