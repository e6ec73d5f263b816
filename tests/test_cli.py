"""The command line as a user meets it: exit codes and messages."""

import base64
import io
import json
import os
import signal
import sys
from unittest.mock import MagicMock, patch

import pytest
import yaml
from serving import room

import lc_ray
from lc_ray import cli_cluster, family, spec
from lc_ray.cluster import submit
from lc_ray.cluster.jobs import Job
from lc_ray.section import override
from lc_ray.storage import names_in, storage_path


@pytest.fixture
def job_file(tiny_job, tmp_path):
    """job_file(**values) → path."""

    def write(**values):
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(override({**tiny_job, "storage": str(tmp_path / "runs")}, values)), "utf-8")
        return file

    return write


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "did you mean 'train'?"),
        ({"data.train": "nothing.csv"}, "nothing.csv: no such file or folder"),
        ({"data.target": "stars"}, "no column 'stars'; there are: text, label"),
        ({"model.base": "./nothing"}, "no such folder"),
        ({"model.base": "package:nothing_there/x"}, "pip install nothing-there"),
        ({"task.kind": "juggling"}, "known kinds: classification"),
        ({"train.workers.count": 64, "train.batch_size": 64}, "need 64 CPUs"),
    ],
)
@pytest.mark.cluster
def test_mistakes_end_with_a_sentence(ray_local, lc, job_file, values, message):
    code, _, err = lc("run", job_file(**values), "--quiet")
    assert code == 1
    assert message in err.replace("\n", " ").replace("  ", " ") or message in err
    assert "Traceback" not in err


def test_version(lc):
    assert lc("--version") == (0, f"lc_ray {lc_ray.__version__}\n", "")


@pytest.mark.parametrize("command", ["run", "check"])
def test_of_what_is_stopped_only_a_run_goes_on(lc, job_file, command):
    with patch("lc_ray.pipeline.run", side_effect=KeyboardInterrupt), patch("lc_ray.preflight.check", side_effect=KeyboardInterrupt):
        code, _, err = lc(command, job_file())
    assert code == 130
    assert "stopped" in err
    assert ("go on where it was" in err) == (command == "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("command", "ending", "told"),
    [("run", "lc_ray.pipeline.run", "go on where it was"), ("submit", "lc_ray.cluster.submit.run", "what was submitted goes on")],
)
def test_what_is_told_to_end_ends_as_by_ctrl_c(lc, job_file, number, command, ending, told):
    def waits(*_, **__):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # another one, as Ray does

    before = signal.signal(number, signal.SIG_DFL)  # which tests that run under nohup do not have
    try:
        with patch(ending, side_effect=waits), patch("lc_ray.cli_cluster._jobs"):
            code, _, err = lc(command, job_file())
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert code == 128 + number
    assert told in err


def test_what_nohup_keeps_running_is_not_ended(lc, job_file):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with patch("lc_ray.pipeline.run", side_effect=lambda *_: signal.raise_signal(signal.SIGHUP) or MagicMock()):
            assert lc("run", job_file(), "--quiet")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_user_without_a_home_is_told_so(lc, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of a container's user without a name
    code, _, err = lc("endpoints")
    assert (code, "no home folder" in err) == (1, True)


def test_a_value_that_is_no_yaml(lc, job_file):
    code, _, err = lc("run", job_file(), "--set", "train.epochs=[")
    assert code == 1
    assert "--set train.epochs=[: not YAML" in err


@pytest.mark.parametrize("given", ["train.epochs", "=3", "train..epochs=3"])
def test_set_needs_a_path_and_a_value(lc, job_file, given):
    code, _, err = lc("run", job_file(), "--set", given)
    assert code == 1
    assert "PATH=VALUE" in err


@pytest.mark.cluster
def test_check(ray_local, lc, job_file):
    code, out, _ = lc("check", job_file())
    assert code == 0
    assert "the cluster can place the job" in out
    code, out, _ = lc("check", job_file(), "--json", "--set", "train.workers.count=64", "--set", "train.batch_size=64")
    assert code == 1
    assert json.loads(out)["slots"] == 0


def test_schema_is_json_schema(lc):
    code, out, _ = lc("schema")
    assert code == 0
    assert json.loads(out)["properties"]["model"]


def test_init_writes_a_valid_job_and_never_over_another(lc, tmp_path):
    file = tmp_path / "job.yaml"
    code, out, _ = lc("init", "classification", "--output", file)
    assert (code, out) == (0, f"wrote {file}; next: lc-ray check {file}\n"), "on a line, to be copied"
    assert spec.read(file).task.kind == "classification"
    assert lc("init")[1] == file.read_text("utf-8")
    code, _, err = lc("init", "-o", file)
    assert code == 1
    assert "exists already" in err
    code, _, err = lc("init", "juggling")
    assert code == 1
    assert "classification" in err


def test_init_tells_a_command_that_can_be_pasted(lc, tmp_path):
    file = tmp_path / "my job.yaml"
    assert lc("init", "--output", file)[1] == f"wrote {file}; next: lc-ray check '{file}'\n"


def test_init_knows_every_task(lc, tmp_path):
    for task in family.kinds("tasks"):
        assert lc("init", task, "--output", tmp_path / f"{task}.yaml")[0] == 0
        assert spec.read(tmp_path / f"{task}.yaml").task.kind == task


def test_predict_from_an_artifact(lc, tiny_artifact, monkeypatch):
    expected = lc_ray.load(tiny_artifact).predict(["good day", "bad"])
    code, out, _ = lc("predict", "--artifact", tiny_artifact, "--json", "good day", "bad")
    assert code == 0
    assert [json.loads(line)["label"] for line in out.splitlines()] == [a["label"] for a in expected]
    monkeypatch.setattr(sys, "stdin", io.StringIO('good day\n{"text": "bad"}\n'))
    assert lc("predict", "--artifact", tiny_artifact, "--json", "-")[1] == out
    code, out, _ = lc("predict", "--artifact", tiny_artifact, "good day", '{"text": "good day"}')
    assert [line.rpartition("  ")[2] for line in out.splitlines()] == ["good day", "{'text': 'good day'}"]
    assert expected[0]["label"] in out
    assert lc("predict", "--artifact", tiny_artifact, "see [/b] :100:")[1].endswith("  see [/b] :100:\n"), "no markup, and no emoji"


def test_an_endpoint_is_asked_for_many_lines_in_parts(lc, monkeypatch):
    asked = []
    monkeypatch.setattr(lc_ray.Client, "predict", lambda self, rows, model: asked.append(len(rows)) or [{"text": row} for row in rows])
    monkeypatch.setattr(sys, "stdin", (f"line {i}\n" if i < 100 or asked else "before any answer\n" for i in range(1000)))
    code, out, _ = lc("predict", "--url", "http://127.0.0.1:9", "--key", "k", "--json", "-")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == [f"line {i}" for i in range(1000)]
    assert max(asked) <= 256


def test_a_key_of_the_environment_may_end_in_a_new_line(lc, monkeypatch):
    monkeypatch.setenv("LC_RAY_API_KEY", "secret\n")
    monkeypatch.setattr(lc_ray.Client, "predict", lambda self, rows, model: [{"text": self._http.headers["authorization"]}])
    code, out, err = lc("predict", "--url", "http://127.0.0.1:9", "--json", "a")
    assert code == 0, err
    assert json.loads(out) == {"text": "Bearer secret"}


def test_files_are_sent_to_the_model_that_is_named(lc, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lc_ray.Client, "predict", lambda self, rows, model: asked.append((rows, model)) or [{"label": "cat"}])
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(file.name.encode())
    code, out, _ = lc("predict", "--url", "http://127.0.0.1:9", "--key", "k", "--model", "pets", "--files", *files)
    assert code == 0
    assert asked == [([base64.b64encode(file.name.encode()).decode()], "pets") for file in files]
    assert [line.split() for line in out.splitlines()] == [["{'label':", "'cat'}", str(file)] for file in files]


def test_pictures_and_sounds_of_answers_are_shown_in_brief_or_written(lc, tiny_artifact, tmp_path, monkeypatch):
    answer = {"image": "data:image/png;base64," + base64.b64encode(bytes(2048)).decode(), "score": 1}
    monkeypatch.setattr(lc_ray.Predictor, "stream", lambda self, rows: (answer for _ in rows))
    assert "<image/png, 2 KiB>" in lc("predict", "--artifact", tiny_artifact, "a")[1]
    code, out, _ = lc("predict", "--artifact", tiny_artifact, "a", "b", "-o", tmp_path / "out", "--json")
    assert code == 0
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(tmp_path / "out" / f"{n}.png") for n in range(2)]
    assert (tmp_path / "out" / "1.png").read_bytes() == bytes(2048)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good"], "either --url or --artifact"),
        (["good", "--url", "http://127.0.0.1:9"], "can't be reached"),
        (["good", "--artifact", "nothing"], "no manifest.json"),
        (["good", "--artifact", "nothing", "--model", "pets"], "give --url"),
        (["good.png", "--artifact", "nothing", "--files"], "can't be read: No such file"),
        (["{oops", "--artifact", "nothing"], "not JSON"),
        (["good", "--url", "http://host:port"], "not a URL"),
        (["good", "--url", "127.0.0.1:8000"], "give one as http://127.0.0.1:8000"),
        (["good", "--url", "ftp://127.0.0.1"], "begins with neither http:// nor https://"),
        (["good", "--url", ""], "begins with neither http:// nor https://"),
        (["good", "--url", "http://127.0.0.1:9", "--key", "ü"], "the API key has characters"),
    ],
)
def test_predict_mistakes(lc, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code, _, err = lc("predict", *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_an_argument_of_other_bytes_than_utf8_is_explained(lc, monkeypatch):
    monkeypatch.setattr(lc_ray.Client, "_send", lambda self, request, *place: "tiny")
    code, _, err = lc("predict", "--url", "http://127.0.0.1:9", "--key", "k", os.fsdecode(b"caf\xe9"))
    assert code == 1
    assert "can't be sent" in err


@pytest.mark.parametrize(("kind", "code"), [("DataError", 1), ("AcceptError", 0)])
def test_of_a_job_that_failed_no_earlier_jobs_result_is_fetched(lc, monkeypatch, tmp_path, kind, code):
    job = Job("tiny-2", "tiny", "key", "FAILED", "", 1.0, 2.0, "node")
    there, brought = MagicMock(), MagicMock(return_value={})
    there.get.return_value = job
    there.said.return_value = json.dumps({"event": "error", "kind": kind, "what": "no rows", "where": "", "fix": ""})
    monkeypatch.setattr(cli_cluster, "_jobs", lambda name, address: there)
    monkeypatch.setattr(submit, "bring", brought)
    ended, out, err = lc("jobs", "fetch", "tiny-2", "-q", "-o", tmp_path)
    assert (ended, out) == (code, "")
    assert ("no rows" in err) == bool(code)
    assert [call.args[3] for call in brought.call_args_list] == ([] if code else [False]), "the refused one's report alone"


def test_evaluate(lc, tiny_artifact, tiny_rows):
    code, out, _ = lc("evaluate", tiny_artifact, tiny_rows, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 480
    assert "accuracy" in lc("evaluate", tiny_artifact, tiny_rows)[1]
    code, _, err = lc("evaluate", tiny_artifact, tiny_rows, "--target", "stars")
    assert code == 1
    assert "no column 'stars'" in err


def test_evaluate_files_as_a_job_reads_them(lc, tiny_artifact, tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"positive,good caf\xe9\nnegative,bad\n")
    code, out, _ = lc("evaluate", tiny_artifact, tmp_path / "rows.csv", "--json", "--set", "columns=[label,text]")
    assert (code, json.loads(out)["rows"], json.loads(out)["rejected"]) == (0, 1, 1)
    settings = ("--set", "columns=[label,text]", "--set", "encoding_errors=windows-1252")
    assert json.loads(lc("evaluate", tiny_artifact, tmp_path / "rows.csv", "--json", *settings)[1])["rows"] == 2
    assert lc_ray.evaluate_model(tiny_artifact, tmp_path / "rows.csv", columns=["label", "text"])["rows"] == 1
    code, _, err = lc("evaluate", tiny_artifact, tmp_path / "rows.csv", "--set", "encoding=latin-1")
    assert code == 1
    assert "encoding: unknown field (did you mean 'encoding_errors'?)" in err
    assert "--set columns=[label,text]" in lc("evaluate", tiny_artifact, tmp_path / "rows.csv")[2]


def test_runs_and_artifacts_of_a_bucket(lc, aws, tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    run = storage_path("s3://models/runs/tiny")
    figures = dict.fromkeys(("parameters", "bytes", "latency_ms", "latency_p95_ms", "throughput"), 1.0)
    model = {"name": "dense", "artifact": "model", "digest": "a" * 64, "metrics": {"accuracy": 0.5}, "cost": figures}
    (run / "record.json").write_text(json.dumps({"name": "tiny", "models": [model]}))
    (run / "model").put(tiny_artifact, names_in(tiny_artifact))
    code, out, err = lc("report", f"{run}/")
    assert (code, out.splitlines()[-1]) == (0, "s3://models/runs/tiny/report.html"), err
    assert "tiny" in (run / "report.html").read_text()
    code, out, err = lc("predict", "--artifact", f"{run}/model", "--json", "good day")
    assert (code, json.loads(out)) == (0, lc_ray.load(tiny_artifact).predict(["good day"])[0]), err


def test_what_a_bucket_refuses_is_told_as_that(lc, refusing):
    code, _, told = lc("report", f"{refusing}/runs/tiny")
    assert code == 1
    assert "ACCESS_DENIED" in told
    assert "no finished run" not in told


def test_a_run_that_may_only_be_read_is_printed(lc, tmp_path):
    figures = dict.fromkeys(("parameters", "bytes", "latency_ms", "latency_p95_ms", "throughput"), 1.0)
    model = {"name": "dense", "artifact": "model", "digest": "a" * 64, "metrics": {"accuracy": 0.5}, "cost": figures}
    (tmp_path / "record.json").write_text(json.dumps({"name": "tiny", "models": [model]}), "utf-8")
    (tmp_path / "report.html").mkdir()  # no file can be written there
    code, out, err = lc("report", tmp_path)
    assert (code, "50.00%" in out) == (1, True), err
    assert f"{tmp_path / 'report.html'}: Is a directory" in err


def test_report_needs_a_run(lc, tmp_path):
    for text in (None, '{"name": '):
        if text:
            (tmp_path / "record.json").write_text(text, "utf-8")
        code, _, err = lc("report", tmp_path)
        assert code == 1
        assert "record.json" in err


def test_a_file_that_can_not_be_written_is_told(lc, tmp_path):
    code, out, err = lc("init", "-o", tmp_path / "nothing" / "job.yaml")
    assert (code, out) == (1, "")
    assert f"{tmp_path / 'nothing' / 'job.yaml'}: No such file or directory" in err


def test_a_full_disk_is_told(lc, tmp_path):
    (tmp_path / "job.yaml").symlink_to("/dev/full")
    with patch("pathlib.Path.exists", return_value=False):
        code, _, err = lc("init", "-o", tmp_path / "job.yaml")
    assert (code, err) == (1, "error LcRayError: No space left on device\n")
    assert not (tmp_path / "job.yaml").is_symlink(), "nothing is in the way of the next attempt"


def test_a_picture_for_which_there_is_no_room_is_named_and_not_there(lc, tmp_path, monkeypatch):
    picture = "data:image/png;base64," + base64.b64encode(bytes(2**16)).decode()
    monkeypatch.setattr("lc_ray.predictor.load", lambda path: MagicMock(stream=lambda rows: ({"image": picture} for _ in rows)))
    with room(1024):
        code, out, err = lc("predict", "--artifact", "model", "7", "--output", tmp_path / "made")
    assert (code, out, err) == (1, "", f"error LcRayError: {tmp_path / 'made' / '0.png'}: File too large\n")
    assert list((tmp_path / "made").iterdir()) == []


def test_unknown_commands_and_options_are_explained(lc):
    for arguments in (["rum"], ["run", "--quite", "x"], ["run"]):
        code, _, err = lc(*arguments)
        assert code == 2
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "batch.maks=3"], "serve.batch.maks: unknown field (known: max, wait, tokens)"),
        (["--set", "log.path=3", "--replicas", "3:1"], "min (3) is more than max (1)"),
        (["--replicas", "x"], "expected a number or MIN:MAX, got 'x'"),
        (["--replicas", "1:"], "expected a number or MIN:MAX, got '1:'"),
        (["--tls-cert", "here"], "both --tls-cert and --tls-key"),
    ],
)
def test_wrong_settings_of_an_endpoint_are_named(lc, tiny_artifact, options, said):
    code, _, err = lc("serve", tiny_artifact, *options)
    assert code == 1
    assert said in err
