"""What tests share. Whatever costs seconds to make is made once per session."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

WORDS = """a all bad best day flight good great had hate i is it late love my never no not ok on service so that the this time very
was we worst you"""
LABELS = ["negative", "neutral", "positive"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests with Ray that begin after the time that whoever runs them has, in seconds since 1970."""
    if "cluster" in item.keywords and time.time() > float(os.environ.get("LC_RAY_TESTS_UNTIL", "inf")):
        pytest.skip("no time is left: this machine is slow; run `make test`")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray for the session, with room for two members of two workers whatever the machine has."""
    from lc_ray import runtime

    with runtime.session(cpus=5):
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `model.base`: a random BERT of 2 layers and a WordPiece tokenizer that knows `WORDS` and all letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_base")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    signs = list(".,!?@#'\"-:;()")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*specials, *signs, *letters, *(f"##{c}" for c in letters), *WORDS.split()]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(str(folder))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape), add_pooling_layer=False).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 480 rows whose label follows from one word, so that a tiny model learns it."""
    telling = {"negative": "hate", "neutral": "ok", "positive": "love"}
    filler = [w for w in WORDS.split() if w not in telling.values()]
    random = Random(0)
    lines = ["text,label"]
    for i in range(480):
        label = LABELS[i % 3]
        words = [telling[label], *random.choices(filler, k=random.randint(2, 9))]
        random.shuffle(words)
        lines.append(f"{' '.join(words)},{label}")
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_job(tiny_base: Path, tiny_rows: Path) -> dict[str, Any]:
    """A whole job at its smallest: a population of 2, pruned after half of the training, int8."""
    return {
        "name": "tiny",
        "model": {"base": str(tiny_base)},
        "data": {"train": str(tiny_rows), "validation": "96 rows", "inputs": [{"column": "text", "max_length": 16}], "target": "label"},
        "train": {"epochs": 8, "segments": 2, "batch_size": 16, "learning_rate": 3e-3, "workers": {"count": 2, "cpu": 1}},
        "prune": {"parameters": 0.4, "start": 0.5, "calibration": 64},
        "search": {"population": 2, "quantile": 0.5, "genes": {"train.learning_rate": {"log_uniform": [1e-3, 6e-3]}}},
        "quantize": {"calibration": 64},
        "evaluate": {"rounds": 1},
        "accept": {"max_drop": 1.0, "min_speedup": 0.0},
    }


@pytest.fixture(scope="session")
def tiny_artifact(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained artifact of `tiny_base` with one text column, "text", and `LABELS`."""
    import torch
    from artifacts import save

    from lc_ray.models import load
    from lc_ray.spec import InputSpec, ModelSpec
    from lc_ray.tasks.classification import Task

    torch.manual_seed(0)
    inputs, task = [InputSpec(column="text", base=str(tiny_base), max_length=32)], Task(LABELS)
    model = load.pretrained(ModelSpec(base=str(tiny_base)), inputs, task)
    return save(tmp_path_factory.mktemp("artifacts") / "tiny", model, task, inputs).path


@pytest.fixture(scope="session")
def second_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in another version."""
    from artifacts import copied

    return copied(tiny_artifact, tmp_path_factory.mktemp("second") / "model", lineage={"second": True})


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """SageMaker's control plane, S3 and autoscaling, on this machine; its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """An empty account with a bucket, for boto3; the settings that a deployment needs there."""
    import boto3
    import httpx

    from lc_ray.deploy import _aws

    httpx.post(f"{moto_server}/moto-api/reset")
    account = {"ENDPOINT_URL": moto_server, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-west-2"}
    for name, value in account.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    _aws.client.cache_clear()
    boto3.client("s3").create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    image, role = "123456789012.dkr.ecr.us-west-2.amazonaws.com/lc_ray:1", "arn:aws:iam::123456789012:role/lc_ray"
    yield {"image": image, "role": role, "bucket": "models"}
    _aws.client.cache_clear()


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a bucket that refuses whatever is asked of it."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        do_GET = do_POST = do_PUT = do_HEAD

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield f"s3://refusing-{server.server_port}"
        server.shutdown()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for Vertex AI behind real HTTP, to which Google's clients turn."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform
    from serving import served
    from vertex_ai import VertexAI

    stand_in = VertexAI()
    with served(stand_in.app) as place:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{place}")
        aiplatform.init(api_endpoint=f"http://{place}", api_transport="rest", credentials=AnonymousCredentials())
        yield stand_in


@pytest.fixture
def lc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """lc(arguments...) → (exit code, stdout, stderr)."""
    from lc_ray import cli

    def lc(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["lc-ray", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return lc
