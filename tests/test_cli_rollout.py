"""rollout, rollback and endpoints, as a user meets them on the command line."""

import json
import os
import socket
import time
from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import pytest
from artifacts import copied

from lc_ray import artifact, cli_cluster, cli_rollout
from lc_ray.cluster.jobs import Job
from lc_ray.errors import ServeError
from lc_ray.serve import rollout


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """kept(port, text): this machine has an endpoint of that state, of which nothing runs unless there is an address."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that what the command sets is undone
    monkeypatch.delenv("RAY_AUTH_MODE")

    def kept(port, text=None, address="127.0.0.1:9"):
        folder = rollout.root() / f"{port}-x"
        folder.mkdir(parents=True)
        state = {"address": address, "url": "http://there", "models": {"tiny": [{"path": "/tiny", "digest": "d1"}]}}
        (folder / "state.json").write_text(json.dumps(state) if text is None else text)

    return kept


@pytest.mark.parametrize(
    ("weight", "message"),
    [("much", "much"), ("0%", "more than 0 and at most 100%"), ("101%", "--weight"), ("nan", "--weight"), ("-1", "--weight")],
)
def test_a_weight_that_is_none(lc, kept, tiny_artifact, weight, message):
    code, _, err = lc("rollout", tiny_artifact, "--weight", weight)
    assert code == 1
    assert message in err


def test_what_is_no_artifact_is_told_before_ray_is_looked_for(lc, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    code, _, err = lc("rollout", tmp_path)
    assert code == 1
    assert "not an artifact" in err


@pytest.mark.parametrize("command", ["rollout", "rollback"])
def test_an_endpoint_that_was_killed_is_told_at_once(lc, kept, tiny_artifact, command):
    kept(8123)
    start = time.monotonic()
    code, _, err = lc(command, tiny_artifact if command == "rollout" else "tiny")
    assert code == 1
    assert "no endpoint that one machine serves alone runs here" in err
    assert time.monotonic() - start < 20


def test_clients_are_told_of_other_columns_and_labels(lc, kept, tiny_artifact, monkeypatch, tmp_path):
    from lc_ray.serve import update
    from lc_ray.serve.rollout import State, Version, version

    manifest = artifact.read(tiny_artifact).manifest
    task, inputs = manifest.task | {"labels": ["negative", "neutral", "fine"]}, [manifest.inputs[0] | {"column": "body"}]
    other = copied(tiny_artifact, tmp_path / "other", task=task, inputs=inputs)
    kept_state = State(address="there", url="http://there", models={"tiny": (Version(path=str(tiny_artifact), digest="old"),)})
    monkeypatch.setattr(cli_rollout, "_connected", lambda port: nullcontext())
    monkeypatch.setattr(update, "changing", lambda: nullcontext((kept_state, version, lambda state: None)))
    kept(8123)
    code, _, err = lc("rollout", other)
    assert code == 0
    assert "columns of 'tiny' differ: text before, body in this version instead" in err
    assert "labels of 'tiny' differ: positive before, fine in this version instead" in err
    assert "tasks" not in err
    assert "differ" not in lc("rollout", tiny_artifact)[2]
    gone = kept_state.model_copy(update={"models": {"tiny": (Version(path=str(tmp_path / "gone"), digest="old"),)}})
    monkeypatch.setattr(update, "changing", lambda: nullcontext((gone, version, lambda state: None)))
    assert lc("rollout", other)[0] == 0


def test_a_model_is_taken_away_but_not_the_only_one(lc, kept, monkeypatch):
    from lc_ray.serve import update
    from lc_ray.serve.rollout import State

    kept_state = State(address="there", url="http://there", models={"tiny": (), "other": ()}, before={"tiny": ((),)})
    put = []

    @contextmanager
    def changing():
        yield (put or [kept_state])[-1], None, put.append

    monkeypatch.setattr(cli_rollout, "_connected", lambda port: nullcontext())
    monkeypatch.setattr(update, "changing", changing)
    assert lc("rollback", "tiny", "--remove")[0] == 0
    assert put == [kept_state.model_copy(update={"models": {"other": ()}, "before": {}})]
    assert "no model 'tiny' is served" in lc("rollback", "tiny", "--remove")[2]
    code, _, err = lc("rollback", "other", "--remove")
    assert code == 1
    assert "http://there: 'other' is the endpoint's only model" in err
    assert len(put) == 1


def test_endpoints_are_shown_but_those_that_can_not_be_read(lc, kept):
    assert "no endpoint runs here" in lc("endpoints")[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        for port, text in ((8122, '{"addr": "of an older field"}'), (8123, None), (8124, "")):
            kept(port, text, f"127.0.0.1:{server.getsockname()[1]}")
        code, out, _ = lc("endpoints", "--json")
    assert code == 0
    assert json.loads(out) == [{"url": "http://there", "models": {"tiny": {"d1": 1.0}}}]


def test_names_are_shown_whole_in_a_narrow_terminal(lc, kept, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    id, there = "customer-support-ticket-routing-production-c6424c76", MagicMock()
    there.all.return_value = [Job(id, "tiny", "key", "SUCCEEDED", "", 1.0, 2.0, "node")]
    monkeypatch.setattr(cli_cluster, "_jobs", lambda name, address: there)
    assert id in lc("jobs", "list")[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept(8123, None, f"127.0.0.1:{server.getsockname()[1]}")
        assert "http://there" in lc("endpoints")[1]


@pytest.mark.parametrize(
    ("address", "arguments", "mode"),
    [(None, (), "token"), ("there:6379", (), None), ("there:6379", ("--port", "8123"), "token")],
)
def test_only_endpoints_of_this_machine_are_told_a_token_unasked(lc, kept, monkeypatch, address, arguments, mode):
    from lc_ray.serve import update

    @contextmanager
    def changing():
        raise ServeError(f"mode {os.environ.get('RAY_AUTH_MODE')}")
        yield

    monkeypatch.setattr(cli_rollout, "_connected", lambda port: nullcontext())
    monkeypatch.setattr(update, "changing", changing)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"mode {mode}" in lc("rollback", "tiny", *arguments)[2]
