"""Every command and snippet of the README, run as they stand there; only the model and the size of the training are smaller."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from lc_ray import artifact, family
from lc_ray.section import override

README = Path("README.md").read_text("utf-8")
ROOT = Path.cwd()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_come_first_and_are_targets():
    first = blocks("sh")[0]
    targets = re.findall(r"^make (\w+)", first, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")) if not link.startswith("http")]
    assert links
    assert [str(page.parent / link) for page, link in links if not (page.parent / link).exists()] == []


def test_folders_of_the_table_exist():
    table = README.partition("## How it is built")[2]
    named = [n for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for n in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 10
    assert [n for n in named if not (ROOT / n).exists() and not (ROOT / "lc_ray" / n).exists()] == []


def test_every_task_and_modality_is_in_its_table():
    tables = README.partition("## Tasks and inputs")[2].partition("## What")[0]
    named = {n for row in re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE) for n in re.findall(r"`([^`.]+)`", row)}
    assert named - {"modality"} == {*family.kinds("tasks"), *family.kinds("modalities")}


@pytest.fixture
def folder(tmp_path, tiny_rows, monkeypatch):
    """Where a reader would stand: a home of their own, and reviews.csv."""
    shutil.copy(tiny_rows, tmp_path / "reviews.csv")
    (tmp_path / ".cache").symlink_to(Path.home() / ".cache")  # what DeepSpeed compiled
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "LC_RAY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.cluster
def test_your_own_data(folder, tiny_base):
    _, commands, serve, ask, replace, deploy = blocks("sh")
    port = re.search(r"127\.0\.0\.1:(\d+)", ask)[1]
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
        pytest.skip(f"port {port} is in use")

    init, *others = commands.splitlines()
    sh(init)
    smaller = {"model.base": str(tiny_base), "train.epochs": 4, "train.workers.count": 1, "search": None}
    smaller["accept"] = {"max_drop": 1.0, "min_speedup": 0}
    Path("job.yaml").write_text(yaml.safe_dump(override(yaml.safe_load(Path("job.yaml").read_text("utf-8")), smaller)), "utf-8")
    said = {command.split()[1]: sh(command) for command in others}
    assert "the cluster can place the job" in said["check"]
    assert "accepted" in said["run"]
    assert "throughput" in said["report"]
    assert "accuracy" in said["evaluate"]
    told = sh(deploy)
    assert "create_endpoint(" in told
    assert "kind: RayService" in told

    with subprocess.Popen(["bash", "-c", f"exec {serve}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            wait(f"http://127.0.0.1:{port}/healthz")
            answers = sh(ask)
            first, second = another_version(Path("runs/reviews/model"))
            told = [sh(command) for command in replace.splitlines()]
        finally:
            server.send_signal(signal.SIGINT)
            log = server.communicate(timeout=60)[0]
    assert server.returncode == 0, log
    assert [{v for v in (first, second) if v in said} for said in told] == [{first, second}, {second}, {first, second}, {first, second}]
    predicted, answered = answers.strip().splitlines()
    label = predicted.split()[0]
    assert f'"label":"{label}"' in answered.replace(" ", "")

    (from_python, _) = blocks("python")
    names = {}
    exec(from_python, names)
    assert names["result"].reused


@pytest.mark.cluster
def test_the_article(ray_local, folder, tiny_base, tiny_rows):
    """The article's calls in their order."""
    lines = Path(tiny_rows).read_text("utf-8").splitlines()
    Path("reviews.csv").write_text("\n".join(lines[:401]), "utf-8")
    Path("test.csv").write_text("\n".join([lines[0], *lines[401:]]), "utf-8")
    code = blocks("python")[1]
    for written, smaller in (("bert-base-uncased", str(tiny_base)), ("epochs=10", "epochs=10, population=1, learning_rate=3e-3, batch_size=16")):
        assert written in code
        code = code.replace(written, smaller)
    names = {}
    exec(code, names)
    model, evaluate = names["quantized_model"], names["evaluate_model"]
    assert evaluate(model, "test.csv")["accuracy"] > 0.8
    manifest = model.result.artifact.manifest
    assert manifest.engine == "int8"
    assert manifest.lineage["pruned"] == 0.5
    assert sum(k["after"] for k in manifest.lineage["kept"].values()) < sum(k["before"] for k in manifest.lineage["kept"].values())
    assert names["gpt"].result is None, "a plan that was extended is left as it was"


def another_version(model):
    """Alter an artifact as a later run would; its digests before and after."""
    before = artifact.read(model)
    manifest = before.manifest.model_copy(update={"lineage": before.manifest.lineage | {"later": True}})
    digest = before.digest
    (model / artifact.MANIFEST).write_text(manifest.model_dump_json(), "utf-8")
    record = model.parent / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text("utf-8")) | {"artifact": artifact.read(model).digest}), "utf-8")
    return digest, artifact.read(model).digest


def sh(command):
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wait(url, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.5)
    pytest.fail(f"{url} did not answer within {seconds} s")
