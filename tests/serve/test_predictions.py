"""The prediction log."""

import asyncio
import base64
import hashlib
import json
import shutil

import pytest
from artifacts import save
from serving import KEY, LABELS, ask, room

from lc_ray.errors import ServeError
from lc_ray.models import load
from lc_ray.serve import app, auth, metrics, rollout, update
from lc_ray.serve.endpoint import Models, asgi
from lc_ray.serve.observe import Observers
from lc_ray.serve.predictions import Predictions
from lc_ray.serve.record import Predicted, Record
from lc_ray.serve.replica import Replica
from lc_ray.serving import ServeSpec
from lc_ray.spec import InputSpec, ModelSpec
from lc_ray.tasks.classification import Task


def logged(folder):
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]


def test_rows_with_their_answers_but_no_pictures_and_nothing_redacted(fused, endpoint, png, wav, tmp_path):
    found = endpoint(fused, log={"path": str(tmp_path / "log"), "redact": ["price"]})
    models = Models([found], found.spec)
    application = asgi(models, {auth.digest(KEY): ""})
    row = {"text": "good", "photo": base64.b64encode(png).decode(), "sound": None, "price": 5, "ssn": "123-45-6789"}
    asked = ask(application, "POST", "/v1/models/fused:predict", json={"instances": [row, {"text": "bad"}]}, headers={"x-request-id": "abc"})
    form = ask(application, "POST", "/v1/models/fused:predict", files={"sound": wav})
    assert ask(application, "POST", "/v1/models/fused:predict", json={"instances": [{"text": 5}]}).status_code == 400
    models.observers.close()
    first, second, third = logged(tmp_path / "log")
    assert first["row"] == {"text": "good", "photo": {"sha256": hashlib.sha256(png).hexdigest(), "bytes": len(png)}, "sound": None}
    assert second["row"] == {"text": "bad"}
    assert third["row"] == {"sound": {"sha256": hashlib.sha256(wav).hexdigest(), "bytes": len(wav)}}
    assert [one["answer"] for one in (first, second, third)] == asked.json()["predictions"] + form.json()["predictions"]
    assert (first["id"], first["model"], first["version"]) == ("abc", "fused", fused.artifact.digest)
    assert first["time"].endswith("+00:00")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_left_out_is_not_in_the_answer_that_repeats_it(tiny_language, endpoint, tmp_path, stream):
    found = endpoint(tiny_language, log={"path": str(tmp_path), "redact": ["prompt"]})
    models = Models([found], found.spec)
    body = {"model": "talk", "prompt": "qQzZ", "max_tokens": 5, "seed": 1, "echo": True, "logprobs": 1, "stream": stream}
    told = ask(asgi(models, {}), "POST", "/v1/completions", json=body)
    models.observers.close()
    (line,) = logged(tmp_path)
    assert "prompt" not in line["row"]
    (choice,) = line["answer"]["choices"]
    assert (len(choice["logprobs"]["tokens"]), choice["logprobs"]["text_offset"][0]) == (5, 0)
    if not stream:
        (whole,) = told.json()["choices"]
        assert whole["text"] == "qQzZ" + choice["text"]
        assert whole["logprobs"]["tokens"][-5:] == choice["logprobs"]["tokens"]
    assert "qQzZ" not in json.dumps(line)


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_language_model_was_asked_and_said(tiny_language, endpoint, tmp_path, stream):
    found = endpoint(tiny_language, log={"path": str(tmp_path), "redact": ["user"]})
    models = Models([found], found.spec)
    body = {"model": "talk", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 1, "user": "somebody", "stream": stream}
    told = ask(asgi(models, {}), "POST", "/v1/chat/completions", json=body)
    models.observers.close()
    (line,) = logged(tmp_path)
    assert line["row"]["messages"] == body["messages"]
    assert "user" not in line["row"]
    said = line["answer"]["choices"][0]["message"]["content"]
    if stream:
        events = [json.loads(event) for event in told.text.split("data: ")[1:-1]]
        assert said == "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    else:
        assert line["answer"]["choices"] == told.json()["choices"]


def test_a_share_of_the_requests(predictor, endpoint, tmp_path):
    found = endpoint(predictor, log={"path": str(tmp_path), "sample": 0.5})
    models = Models([found], found.spec)
    for number in range(200):
        seen = Record(id=str(number))
        seen.predicted = Predicted(["ok"], [{}], ["text"], ())
        models.observers(seen)
    models.observers.close()
    assert 60 < len(logged(tmp_path)) < 140  # 6 standard deviations of 100


def test_a_column_alone_has_its_name_and_bytes_are_text(tmp_path):
    log = Predictions(ServeSpec(log={"path": str(tmp_path)}).log)
    log.write([(Record(), Predicted(["ok", b"caf\xc3\xa9", {"text": "no"}], [{}, {}, {"image": "data:image/png;base64,AAAA"}], ["text"], ()))])
    assert [line["row"] for line in logged(tmp_path)] == [{"text": "ok"}, {"text": "café"}, {"text": "no"}]
    assert logged(tmp_path)[2]["answer"] == {"image": {"sha256": hashlib.sha256(bytes(3)).hexdigest(), "bytes": 3}}


def test_a_sentence_that_looks_like_a_file_is_kept(tmp_path):
    log = Predictions(ServeSpec(log={"path": str(tmp_path)}).log)
    said = [{"text": "data: a plural"}, {"text": "data:image/png;base64,not base64"}, {"text": "next"}]
    log.write([(Record(), Predicted(["ok"], [answer], ["text"], ())) for answer in said])
    assert [line["answer"] for line in logged(tmp_path)] == said


def test_large_files_are_followed_by_others(tmp_path):
    log = Predictions(ServeSpec(log={"path": str(tmp_path)}).log, largest=1000)
    for number in range(30):
        log.write([(Record(id=str(number)), Predicted(["ok"], [{}], ["text"], ()))])
    log.close()
    files = list(tmp_path.glob("*.jsonl"))
    assert len(files) > 3
    assert all(file.stat().st_size < 1500 for file in files)
    assert {line["id"] for line in logged(tmp_path)} == {str(number) for number in range(30)}
    assert all(file.stat().st_mode & 0o007 == 0 for file in files)


def test_a_full_disk_and_a_file_that_is_removed_spoil_no_other_line(tmp_path):
    log = Predictions(ServeSpec(log={"path": str(tmp_path / "log")}).log)

    def write(number):
        log.write([(Record(id=str(number)), Predicted(["ok"], [{}], ["text"], ()))])

    write(0)
    with room(150), pytest.raises(OSError, match="No space left"):
        write(1)
    write(2)
    lines = [line for file in (tmp_path / "log").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)["id"] for line in lines if line.endswith("}")) == ["0", "2"]
    shutil.rmtree(tmp_path / "log")
    write(3)
    assert [line["id"] for line in logged(tmp_path / "log")] == ["3"]


def test_what_waits_is_bounded_by_its_bytes(tmp_path):
    observers = Observers(ServeSpec(log={"path": str(tmp_path)}))
    before = metrics.REGISTRY.get_sample_value("lc_ray_dropped_total", {"log": "predictions"}) or 0
    seen = Record(received=2**27)
    seen.predicted = Predicted(["ok"], [{}], ["text"], ())
    observers(seen)
    observers.close()
    assert logged(tmp_path) == []
    assert metrics.REGISTRY.get_sample_value("lc_ray_dropped_total", {"log": "predictions"}) == before + 1


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServeError, match=r"serve\.log\.path"):
        Observers(ServeSpec(log={"path": str(tmp_path / "file")}))


def test_a_column_to_be_left_out_must_be_there(fused, tiny_artifact, tmp_path):
    log = {"path": str(tmp_path), "redact": ["price", "prise"]}
    with pytest.raises(ServeError, match=r"serve\.log\.redact: no column 'prise'; there are: .*price"):
        app.start([tiny_artifact, fused.artifact.path], ServeSpec(log=log), {})


def test_a_version_in_which_what_is_left_out_has_another_name_is_not_rolled_out(tiny_base, tiny_artifact, tmp_path):
    inputs, task = [InputSpec(column="words", base=str(tiny_base), max_length=32)], Task(LABELS)
    model = load.pretrained(ModelSpec(base=str(tiny_base)), inputs, task)
    renamed, other = (save(tmp_path / name, model, task, inputs).path for name in ("tiny", "other"))
    same = rollout.served([tiny_artifact])
    spec = ServeSpec(log={"path": str(tmp_path / "log"), "redact": ["text"]})
    replica = Replica.__bases__[0](app.Given((str(tiny_artifact),), spec, {}, {}))  # without what Serve puts around it
    for wanted in (rollout.served([renamed]), rollout.served([tiny_artifact, renamed])):
        with pytest.raises(ServeError, match=r"not all versions of 'tiny' have the column 'text'"):
            asyncio.run(replica.load(wanted))
        asyncio.run(replica.adopt(same))
    asyncio.run(replica.adopt(same | rollout.served([other])))
    asyncio.run(replica.adopt(rollout.served([other])))
    assert replica.models.names() == ["other"], "a model that goes takes nothing with it"
    state = rollout.State(address="a:1", url="http://a", models=same)  # as several machines serve
    with pytest.raises(ServeError, match=r"not all versions of 'tiny' have the column 'text'"):
        update._redeploy(app.Given(state, spec, {}, {}), state.model_copy(update={"models": rollout.served([renamed])}))
