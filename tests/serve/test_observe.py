"""What is told of requests: ids, metrics, the access log."""

import copy
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import KEY, ask, room

import lc_ray
from lc_ray.errors import ServeError
from lc_ray.evaluate import drift
from lc_ray.serve import access, auth, background, metrics
from lc_ray.serve.endpoint import Endpoint, Models, asgi
from lc_ray.serve.record import CLIENT_GONE, Record
from lc_ray.serving import ServeSpec

PREDICT = "/v1/models/tiny:predict"
GRAFANA = Path("cluster/grafana")


@pytest.fixture(scope="module")
def models(endpoint, predictor, tiny_language):
    found = endpoint(predictor, rate={"requests": 1000, "per": "1s"})
    made = Models([found, endpoint(tiny_language)], found.spec)
    yield made
    made.observers.close()


@pytest.fixture(scope="module")
def app(models):
    return asgi(models, {auth.digest(KEY): "phone"})


@pytest.fixture(scope="module")
def trained(predictor):
    """The predictor, with statistics of rows of 3 to 5 tokens that were all answered "positive"."""
    made = copy.copy(predictor)
    statistics = {"text.tokens": drift.fit([3.0, 4.0, 5.0] * 100), "answer.label": drift.fit(["positive"] * 300)}
    made.artifact = replace(predictor.artifact, manifest=predictor.artifact.manifest.model_copy(update={"statistics": statistics}))
    return made


@pytest.fixture(scope="module")
def drifted(trained):
    """drifted() → an application that was asked 255 rows of 4 tokens more."""
    found = Endpoint(trained, ServeSpec(batch={"max": 256}))
    models = Models([found], found.spec)
    made = asgi(models, {auth.digest(KEY): ""})

    def more():
        wanted = sum(found.drift.counts()["text.tokens"]) + 255
        assert ask(made, "POST", PREDICT, json={"instances": ["good day"] * 255}).status_code == 200
        while sum(found.drift.counts()["text.tokens"]) < wanted:  # rows are measured once their request is answered
            time.sleep(0.01)
        return made

    yield more
    models.close()


@pytest.fixture
def seen(models, monkeypatch):
    """Records of requests, in order."""
    found = []
    monkeypatch.setattr(models.observers, "background", [type("Sink", (), {"put": staticmethod(found.append)})])
    return found


def samples(text):
    return {(s.name, *sorted(s.labels.items())): s.value for family in text_string_to_metric_families(text) for s in family.samples}


def grown(app, name, work, **labels):
    """By how much a metric's samples that have these labels grow meanwhile."""

    def read():
        found = samples(ask(app, "GET", "/metrics").text)
        return sum(v for (n, *of), v in found.items() if n == name and labels.items() <= dict(of).items())

    last = before = read()
    work()
    end = time.monotonic() + 5
    while ((now := read()) == before or now != last) and time.monotonic() < end:  # a batch is noted just after it is delivered
        last = now
        time.sleep(0.05)
    return now - before


def talk(app, **more):
    body = {"model": "talk", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 1} | more
    return ask(app, "POST", "/v1/chat/completions", json=body)


@pytest.mark.parametrize("given", ["abc-123", "x" * 128, "a b/c"])
def test_an_id_that_a_request_brings_is_its_id(app, seen, given):
    assert ask(app, "GET", "/v1/models", headers={"x-request-id": given}).headers["x-request-id"] == given
    assert seen[0].id == given


@pytest.mark.parametrize("given", ["", "x" * 129, "naïve".encode(), b"a\x01b", None])
def test_all_others_get_one(app, seen, given):
    headers = {} if given is None else {"x-request-id": given}
    answers = [ask(app, "POST", path, headers=headers, json={"instances": ["ok"]}) for path in (PREDICT, "/nothing")]
    answers.append(ask(app, "GET", "/v1/models", key="guess", headers=headers))
    assert [answer.status_code for answer in answers] == [200, 404, 401]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids == [one.id for one in seen]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_a_server_that_echoes_the_id_is_not_repeated(models):
    echoed = asgi(models, {}, echoed=True)
    assert "x-request-id" not in ask(echoed, "GET", "/v1/models", headers={"x-request-id": "abc"}).headers
    assert len(ask(echoed, "GET", "/v1/models", headers={"x-request-id": "x" * 129}).headers["x-request-id"]) == 32


def test_a_failure_is_logged_with_its_id(app, models, monkeypatch, caplog):
    monkeypatch.setattr(models.choose("tiny").worker, "run", None)
    assert ask(app, "POST", PREDICT, headers={"x-request-id": "the-id"}, json={"instances": ["ok"]}).status_code == 500
    assert "request the-id failed" in caplog.text
    assert "Traceback" in caplog.text


def test_a_record_of_a_prediction(app, seen, predictor):
    body = json.dumps({"instances": ["good", "bad", "ok"]})
    answer = ask(app, "POST", PREDICT, content=body)
    (one,) = seen
    assert (one.method, one.route, one.status, one.error) == ("POST", "/v1/models/{name}:predict", 200, "")
    assert (one.model, one.version, one.rows, one.key) == ("tiny", predictor.artifact.digest, 3, "phone")
    assert (one.received, one.sent) == (len(body), len(answer.content))
    stages = one.stages()
    assert set(stages) == {"queue", "prepare", "infer", "total"}
    assert all(seconds >= 0 for seconds in stages.values())
    assert sum(stages.values()) <= 2 * stages["total"] + 1e-6
    assert all(one.began <= began <= ended <= one.ended for _, began, ended in one.spans)


def test_a_record_of_an_error(app, seen):
    ask(app, "POST", PREDICT, json={"instances": ["good", 5]})
    ask(app, "POST", "/v1/models/nobody:predict", json={"instances": []})
    ask(app, "GET", "/v1/models", key="guess")
    ask(app, "GET", "/nothing", key="guess")
    ask(app, "DELETE", PREDICT, key="guess")
    predict = "/v1/models/{name}:predict"
    assert [(one.status, one.error, one.model, one.key, one.route) for one in seen] == [
        (400, "invalid_instance", "tiny", "phone", predict),
        (404, "unknown_model", "", "phone", predict),
        (401, "unauthorized", "", "", "/v1/models"),
        (401, "unauthorized", "", "", ""),
        (401, "unauthorized", "", "", predict),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_record_of_an_answer_of_a_language_model(app, seen, stream):
    told = talk(app, stream=stream, stream_options={"include_usage": True} if stream else None).text
    usage = json.loads(told.split("data: ")[-2] if stream else told)["usage"]
    (one,) = seen
    assert (one.model, one.tokens_in, one.tokens_out) == ("talk", usage["prompt_tokens"], usage["completion_tokens"])
    assert 0 < one.first_token <= one.stages()["total"]
    assert {"queue", "infer"} <= set(one.stages())


def test_requests_are_counted_by_what_is_routed_and_never_by_what_is_asked(app, predictor):
    labels = {"route": "/v1/models/{name}:predict", "model": "tiny", "version": predictor.artifact.digest, "status": "200"}
    assert grown(app, "lc_ray_requests_total", lambda: ask(app, "POST", PREDICT, json={"instances": ["ok"]}), **labels) == 1
    for path, route in (("/secret-path", ""), ("/v1/models/secret-model", "/v1/models/{name}")):
        assert grown(app, "lc_ray_requests_total", lambda path=path: ask(app, "GET", path), route=route, model="", version="", status="404") == 1
    assert "secret" not in ask(app, "GET", "/metrics").text


@pytest.mark.parametrize("stage", ["queue", "prepare", "infer", "total"])
def test_stages_are_histograms_of_what_models_ran(app, stage):
    def work():
        ask(app, "POST", PREDICT, json={"instances": ["ok", "good"]})
        ask(app, "GET", "/v1/models/tiny")
        ask(app, "GET", "/healthz")

    assert grown(app, "lc_ray_request_seconds_count", work, stage=stage) == 1


def test_batches_and_tokens(app):
    rows = {"instances": ["ok"] * 5}
    assert grown(app, "lc_ray_batch_rows_sum", lambda: ask(app, "POST", PREDICT, json=rows), model="tiny") == 5
    said = []
    told = grown(app, "lc_ray_tokens_total", lambda: said.append(talk(app).json()), model="talk", kind="answer")
    assert told == said[0]["usage"]["completion_tokens"] > 0
    assert grown(app, "lc_ray_first_token_seconds_count", lambda: talk(app), model="talk") == 1


def test_what_is_served_and_what_it_costs(app, models):
    found = samples(ask(app, "GET", "/metrics").text)
    about = [dict(labels) for (name, *labels) in found if name == "lc_ray_model_info"]
    assert [(one["model"], one["version"], one["task"], one["engine"]) for one in about] == [
        (e.name, e.version, e.predictor.artifact.manifest.task["kind"], "none") for e in (models.choose("tiny"), models.choose("talk"))
    ]
    assert found[("lc_ray_queue_depth", ("model", "tiny"), ("version", models.choose("tiny").version))] == 0
    assert found[("process_resident_memory_bytes",)] > 2**20


def test_drift_is_told_of_many_rows_and_not_of_few(drifted, trained, predictor):
    def told(rows):
        end = time.monotonic() + 10
        while True:  # a batch is noted just after it is delivered
            about = ask(app, "GET", "/v1/models/tiny/drift").json()
            assert list(about["versions"]) == [trained.artifact.digest]
            found = about["versions"][trained.artifact.digest]
            if {one["rows"] for one in found.values()} == {rows} or time.monotonic() > end:
                return found
            time.sleep(0.01)

    app = drifted()
    few = told(255)
    assert few["text.tokens"]["psi"] is None
    assert (few["text.tokens"]["rows"], few["text.tokens"]["needed"]) == (255, drift.LEAST)
    assert "lc_ray_drift_psi{" not in ask(app, "GET", "/metrics").text
    assert drifted() is app
    many = told(510)
    positive = predictor.predict(["good day"])[0]["label"] == "positive"
    assert many["text.tokens"]["psi"] > 0.25
    assert {b["bin"]: (b["training"], b["now"]) for b in many["text.tokens"]["bins"]}["3 to 4"] == (200, 510)
    assert {b["bin"]: b["now"] for b in many["answer.label"]["bins"]} == {"positive": 510 * positive, "others": 510 * (not positive)}
    found = samples(ask(app, "GET", "/metrics").text)
    told_of = {dict(labels)["feature"]: value for (name, *labels), value in found.items() if name == "lc_ray_drift_psi"}
    assert told_of == pytest.approx({name: many[name]["psi"] for name in many})


def test_a_model_without_statistics_has_no_drift(app, predictor):
    assert ask(app, "GET", "/v1/models/tiny/drift").json() == {"model": "tiny", "versions": {predictor.artifact.digest: {}}}
    assert ask(app, "GET", "/v1/models/nobody/drift").status_code == 404


def test_of_versions_that_are_replaced_nothing_stays(endpoint, predictor, second_artifact):
    def told():
        return {dict(labels).get("version") for (_, *labels) in samples(ask(app, "GET", "/metrics").text)} - {None, ""}

    versions = [endpoint(predictor), Endpoint(lc_ray.load(second_artifact, threads=1), ServeSpec())]
    models = Models(versions[:1], versions[0].spec)
    app = asgi(models, {})
    for served in (versions[0], versions[1], versions[1], versions[0]):
        models.replace({"tiny": {served: 1.0}})
        assert ask(app, "POST", PREDICT, json={"instances": ["ok"]}).status_code == 200
        assert served.version in told()
    models.replace({"tiny": {versions[0]: 1.0}})
    assert versions[1].version not in told()
    labels = {"route": "/v1/models/{name}:predict", "model": "tiny", "version": versions[0].version, "status": "200"}
    assert grown(app, "lc_ray_requests_total", lambda: ask(app, "POST", PREDICT, json={"instances": ["ok"]}), **labels) == 1


def test_waiting_requests_are_the_queues_depth(endpoint, predictor):
    batcher = endpoint(predictor, queue=7).worker
    batcher._left = 3
    found = {metric.name: metric for metric in metrics.collect([endpoint(predictor, queue=7)])}
    batcher._left = 0
    assert found["lc_ray_queue_depth"].samples[0].value == 3


def test_metrics_need_a_key_and_no_allowance(endpoint, predictor):
    found = endpoint(predictor, rate={"requests": 1, "per": "1h"})
    app = asgi(Models([found], found.spec), {auth.digest(KEY): ""})
    assert ask(app, "GET", "/metrics", key="guess").status_code == 401
    assert [ask(app, "GET", "/metrics").status_code for _ in range(3)] == [200] * 3
    assert [ask(app, "GET", "/v1/models").status_code for _ in range(2)] == [200, 429]


def test_replicas_are_merged_each_under_its_name():
    metrics.count(Record(route="/merged", status=200))
    one = metrics.REGISTRY.collect()
    text = generate_latest(metrics.Replicas({"b": one, "a": list(metrics.REGISTRY.collect())})).decode()
    assert text.count("# TYPE lc_ray_requests_total counter") == 1
    assert "_created" not in text
    found = [dict(labels) for (name, *labels) in samples(text) if name == "lc_ray_requests_total" and dict(labels)["route"] == "/merged"]
    assert [labels["replica"] for labels in found] == ["a", "b"]


def test_the_dashboard_shows_metrics_that_exist(app, drifted):
    ask(app, "POST", PREDICT, json={"instances": ["ok"]})
    talk(app)
    metrics.dropped("access", 1)
    text = ask(app, "GET", "/metrics").text + "".join(ask(drifted(), "GET", "/metrics").text for _ in range(2))
    exposed = {name: {n for n, _ in labels} for (name, *labels) in samples(text)}
    dashboard = json.loads((GRAFANA / "lc_ray.json").read_text("utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    used = [name for query in asked for name in re.findall(r"\b(?:lc_ray|process)_\w+", query)]
    assert len(used) > len(dashboard["panels"])
    assert set(used) - exposed.keys() == set()
    by = {label for query in asked for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    assert by - {"le", "replica"} - set().union(*exposed.values()) == set()


def test_the_scrape_example_is_that_of_the_endpoint():
    (job,) = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text("utf-8"))["scrape_configs"]
    assert "credentials_file" in job["authorization"]
    assert "metrics_path" not in job, "/metrics is Prometheus's own default"


def test_the_access_log_has_a_line_for_each_request(endpoint, predictor, tmp_path):
    found, file = endpoint(predictor), tmp_path / "access.jsonl"
    replicas = [Models([found], found.spec.model_copy(update={"access_log": str(file)})) for _ in range(2)]
    apps = [asgi(models, {auth.digest(KEY): "phone"}) for models in replicas]
    answers = [ask(apps[i % 2], "POST", PREDICT, json={"instances": ["ok"] * i}) for i in range(6)]
    for models in replicas:
        models.observers.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["id"]: line["rows"] for line in lines} == {answer.headers["x-request-id"]: i for i, answer in enumerate(answers)}
    line = next(line for line in lines if line["rows"] == 1)
    assert line["time"].endswith("+00:00")
    assert (line["key"], line["status"], line["version"]) == ("phone", 200, found.version)
    assert set(line["milliseconds"]) == {"prepare", "queue", "infer", "total"}
    assert KEY not in file.read_text()
    assert file.stat().st_mode & 0o007 == 0


def test_the_access_log_goes_on_in_a_new_file_once_it_is_moved(tmp_path):
    log = access.Log(str(tmp_path / "log"))
    log.write([Record(id="a")])
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.write([Record(id="b")])
    assert [json.loads((tmp_path / name).read_text())["id"] for name in ("log.1", "log")] == ["a", "b"]


def test_half_a_line_on_a_full_disk_spoils_no_other(tmp_path):
    log, file = access.Log(str(tmp_path / "log")), tmp_path / "log"
    log.write([Record(id="0")])
    with room(file.stat().st_size + 50), pytest.raises(OSError, match="No space left"):
        log.write([Record(id="1")])
    log.write([Record(id="2"), Record(id="3")])
    first, half, *rest = file.read_text().splitlines()
    assert [json.loads(line)["id"] for line in (first, *rest)] == ["0", "2", "3"]
    assert len(half) == 50


def test_an_access_log_that_cant_be_is_refused_before_anything_is_lost(tmp_path):
    access.Log(str(tmp_path / "new" / "folder" / "log")).write([Record()])
    assert json.loads((tmp_path / "new" / "folder" / "log").read_text())
    for path in (tmp_path, tmp_path / "new" / "folder" / "log" / "of a file"):
        with pytest.raises(ServeError, match=f"{path}: no access log can be written"):
            access.Log(str(path))


def test_replicas_lines_come_out_of_the_process_that_serves():
    reading, writing = os.pipe()
    with access.relayed("-", writing) as path:
        for name in ("a", "b"):
            access.Log(path).write([Record(id=name)] * 2)
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:
        assert [json.loads(line)["id"] for line in lines] == ["a", "a", "b", "b"]
    assert not Path(path).exists()
    with access.relayed(None) as path:
        assert path is None


def test_a_client_that_hangs_up_is_no_success():
    assert access.line(Record())["status"] == CLIENT_GONE == 499


def test_what_comes_too_fast_or_cant_be_written_is_dropped_and_counted(caplog):
    def lost():
        return metrics.REGISTRY.get_sample_value("lc_ray_dropped_total", {"log": "test"}) or 0

    done, before = [], lost()
    slow = background.Background("test", done.extend, most=3)
    for number in range(5):
        slow.put(number)
    slow.close()
    assert done[:3] == [0, 1, 2]
    assert len(done) + lost() - before == 5

    def fail(items):
        raise OSError("no space left")

    before, full = lost(), background.Background("test", fail)
    full.put(1)
    full.close()
    full.put(2)
    assert lost() - before == 2
    assert "no space left" in caplog.text


def test_what_cant_be_written_takes_nothing_else_with_it(tmp_path, caplog):
    before = metrics.REGISTRY.get_sample_value("lc_ray_dropped_total", {"log": "one by one"}) or 0
    log = background.Background("one by one", access.Log(str(tmp_path / "log")).write)
    with log._lock:  # so that all are written together
        log._items.extend((Record(id=one), 1) for one in ("a", "b", b"no JSON", "c", b"nor this", "d"))
    log.close()
    assert [json.loads(line)["id"] for line in (tmp_path / "log").read_text().splitlines()] == ["a", "b", "c", "d"]
    assert metrics.REGISTRY.get_sample_value("lc_ray_dropped_total", {"log": "one by one"}) == before + 2
    assert "one by one: 2 lost: Object of type bytes" in caplog.text
