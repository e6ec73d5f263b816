"""What an endpoint serves, on disk."""

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ask

from lc_ray import artifact
from lc_ray.errors import ArtifactError, ServeError
from lc_ray.serve import app, auth, rollout, run
from lc_ray.serve.replica import Replica
from lc_ray.serve.rollout import State, Version
from lc_ray.serving import ServeSpec


def state(**models):
    known = {name: tuple(Version(path=f"/{digest}", digest=digest, weight=weight) for digest, weight in found) for name, found in models.items()}
    return State(address="there", url="http://there", models=known)


def shares(found, name="m"):
    return {v.digest: pytest.approx(v.weight) for v in found.models[name]}


def begun(*about):
    """The folder of an endpoint that answers."""
    folder = rollout.begin(*about)
    rollout.note(folder, answers=True)
    return folder


def test_of_a_strangers_artifact_nothing_is_kept_but_what_its_manifest_lists(tiny_artifact, tmp_path):
    given, secret = tmp_path / "given", tmp_path / "secret"
    shutil.copytree(tiny_artifact, given)
    secret.mkdir()
    (secret / "key").write_text("x")
    (given / "processor" / "more").symlink_to(secret)
    (given / "up").symlink_to(given)
    _, kept = rollout.keep(tmp_path / "state", given)
    assert artifact.read(kept.path).digest == artifact.read(tiny_artifact).digest
    there = {str(file.relative_to(kept.path)) for file in Path(kept.path).rglob("*") if not file.is_dir()}
    assert there == {*artifact.read(tiny_artifact).manifest.files, "manifest.json"}


def test_rollout_replaces_and_canaries_share():
    first = state(m=[("a", 1.0)])
    canary = rollout.rolled(first, "m", Version(path="/b", digest="b", weight=0.1))
    assert shares(canary) == {"a": 0.9, "b": 0.1}
    more = rollout.rolled(canary, "m", Version(path="/c", digest="c", weight=0.5))
    assert shares(more) == {"a": 0.45, "b": 0.05, "c": 0.5}
    assert shares(rollout.rolled(canary, "m", Version(path="/b", digest="b", weight=0.3))) == {"a": 0.7, "b": 0.3}
    assert shares(rollout.rolled(canary, "m", Version(path="/b", digest="b"))) == {"b": 1.0}
    assert rollout.rolled(first, "m", first.models["m"][0]) is first, "what changes nothing is no step to go back"


def test_rollback_goes_back_one_by_one_and_says_when_there_is_no_more():
    found = state(m=[("a", 1.0)], other=[("x", 1.0)])
    for digest, weight in (("b", 0.2), ("b", 1.0), ("c", 1.0)):
        found = rollout.rolled(found, "m", Version(path=f"/{digest}", digest=digest, weight=weight))
    seen = []
    for _ in range(3):
        found = rollout.rolled_back(found, "m")
        seen.append({v.digest for v in found.models["m"]})
    assert seen == [{"b"}, {"a", "b"}, {"a"}]
    with pytest.raises(ServeError, match="nothing was served as 'm' before"):
        rollout.rolled_back(found, "m")
    assert list(rollout.without(found, "m").models) == ["other"]
    for change in (rollout.rolled_back, rollout.without):
        with pytest.raises(ServeError, match=r"no model 'n' is served\n.*served: m, other"):
            change(found, "n")


def test_new_name_is_served_besides_but_not_as_a_canary_of_nothing():
    found = rollout.rolled(state(m=[("a", 1.0)]), "n", Version(path="/x", digest="x"))
    assert list(found.models) == ["m", "n"]
    with pytest.raises(ServeError, match="no other version of 'n'"):
        rollout.rolled(state(m=[("a", 1.0)]), "n", Version(path="/x", digest="x", weight=0.5))


def test_kept_artifacts_outlive_their_folder_and_go_when_nothing_can_go_back_to_them(home, addresses, tiny_artifact, second_artifact, tmp_path):
    mine = tmp_path / "model"
    shutil.copytree(tiny_artifact, mine)
    folder = begun(8123, addresses[0], "http://there:8123", rollout.served([mine]))
    assert rollout.find() == rollout.find(8123) == folder
    kept = rollout.read(folder).models["tiny"][0]
    (mine / artifact.WEIGHTS).write_bytes(b"as copied over it")
    assert artifact.read(kept.path).digest == kept.digest
    shutil.rmtree(mine)
    assert artifact.read(kept.path).digest == kept.digest
    name, new = rollout.keep(folder, second_artifact)
    rollout.write(folder, rollout.rolled(rollout.read(folder), name, new))
    assert Path(kept.path).exists()
    rollout.write(folder, rollout.read(folder).model_copy(update={"before": {}}))
    assert not Path(kept.path).exists()
    rollout.end(addresses[0])
    assert rollout.running() == []
    with pytest.raises(ServeError, match="no endpoint that one machine"):
        rollout.find()


def test_altered_artifact_is_not_rolled_out(home, tiny_artifact, tmp_path):
    mine = tmp_path / "model"
    shutil.copytree(tiny_artifact, mine)
    (mine / artifact.WEIGHTS).write_bytes(b"other")
    folder = rollout.begin(8123, "there", "http://there", rollout.served([tiny_artifact]))
    with pytest.raises(ArtifactError, match="altered"):
        rollout.keep(folder, mine)


def test_an_endpoint_is_there_once_it_answers(home, addresses, tiny_artifact):
    folder = rollout.begin(8123, addresses[0], "http://a:8123", rollout.served([tiny_artifact]))
    assert rollout.running() == []
    with pytest.raises(ServeError, match="no endpoint"):
        rollout.find(8123)
    rollout.note(folder, answers=True)
    assert rollout.find() == folder
    assert [state.url for state in rollout.running()] == ["http://a:8123"]


def test_endpoints_start_one_after_the_other_whatever_home_they_have(tmp_path):
    command = [sys.executable, "-c", "from lc_ray.serve import rollout\nprint('here', flush=True)\nwith rollout.starting():\n    print('begun')"]
    with rollout.starting():
        other = subprocess.Popen(command, env=os.environ | {"XDG_STATE_HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "here\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
    assert other.communicate(timeout=60)[0] == "begun\n"


def test_an_endpoint_that_takes_long_to_start_keeps_no_other_from_it(home, monkeypatch):
    monkeypatch.setattr(rollout, "_STARTS", 0.2)
    with rollout.starting(), rollout.starting():
        pass


def test_state_that_can_not_be_kept(tiny_artifact, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with rollout.starting(), pytest.raises(ServeError, match="set XDG_STATE_HOME"):
        rollout.begin(8123, "there", "http://there", rollout.served([tiny_artifact]))


def test_a_full_disk_is_told_and_nothing_half_written_left(home, tiny_artifact, second_artifact, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = rollout.begin(8123, "there", "http://there", rollout.served([tiny_artifact]))
    before = sorted(folder.rglob("*"))
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "copyfile", full)
        with pytest.raises(ServeError, match=r"kept: (\[Errno \d+\] )?No space left on device\n") as told:
            rollout.keep(folder, second_artifact)
    assert told.value.where == str(folder)
    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(ServeError, match=r"kept: No space left on device\n"):
            rollout.keep(folder, second_artifact)
        with pytest.raises(ServeError, match=r"kept: No space left on device\n"):
            rollout.write(folder, rollout.read(folder))
    assert sorted(folder.rglob("*")) == before
    rollout.keep(folder, second_artifact)


def test_an_endpoint_whose_state_can_not_be_read_hides_no_other(home, addresses, tiny_artifact):
    folder = begun(8123, addresses[0], "http://there:8123", rollout.served([tiny_artifact]))
    for name, text in (("8122-a", '{"addr": "of an older field"}'), ("8124-b", "")):
        (rollout.root() / name).mkdir()
        (rollout.root() / name / "state.json").write_text(text)
    assert rollout.running() == [rollout.read(folder)]
    assert rollout.of(addresses[0]) == rollout.find() == folder
    with pytest.raises(ServeError, match="no endpoint"):
        rollout.find(8122)


def test_several_endpoints_need_a_port(home, addresses, tiny_artifact):
    made = [begun(port, at, f"http://a:{port}", rollout.served([tiny_artifact])) for port, at in zip((8123, 8124), addresses, strict=True)]
    with pytest.raises(ServeError, match="several endpoints run here\n  → give --port: 8123, 8124"):
        rollout.find()
    assert [rollout.find(8123), rollout.find(8124)] == made


def test_endpoints_of_one_port_at_other_addresses_have_nothing_in_common(home, addresses, tiny_artifact, second_artifact):
    one, two = (
        begun(8123, at, f"http://{host}:8123", rollout.served([path]))
        for at, host, path in zip(addresses, ("127.0.0.1", "127.0.0.2"), (tiny_artifact, second_artifact), strict=True)
    )
    assert rollout.read(one).models != rollout.read(two).models
    rollout.end(addresses[1])
    assert [state.url for state in rollout.running()] == ["http://127.0.0.1:8123"]


def test_endpoints_that_were_killed_are_not_there_and_make_room(home, addresses, tiny_artifact):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        killed = begun(8123, f"127.0.0.1:{gone.getsockname()[1]}", "http://a:8123", rollout.served([tiny_artifact]))
    before = begun(8124, addresses[0], "http://a:8124", rollout.served([tiny_artifact]))
    assert not killed.exists()
    again = begun(8125, addresses[0], "http://a:8125", rollout.served([tiny_artifact]))
    assert not before.exists(), "one Ray has one endpoint: what another at its address has left is not of this one"
    assert rollout.of(addresses[0]) == rollout.find() == again


def test_a_start_that_failed_leaves_nothing(home, addresses, tiny_artifact, tmp_path):
    shutil.copytree(tiny_artifact, tmp_path / "altered")
    (tmp_path / "altered" / artifact.WEIGHTS).write_bytes(b"other")
    with pytest.raises(ArtifactError):
        rollout.begin(8123, addresses[0], "http://a:8123", rollout.served([tiny_artifact, tmp_path / "altered"]))
    rollout.end(addresses[0])
    assert not list(rollout.root().iterdir())


@pytest.mark.parametrize(("error", "runs"), [(ConnectionRefusedError(), False), (TimeoutError(), True), (OSError(errno.EHOSTUNREACH, ""), True)])
def test_only_what_is_refused_does_not_run(monkeypatch, error, runs):
    def refuse(*_):
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert rollout.runs("there:6379") is runs
    assert not rollout.runs("there")


def test_an_address_of_ipv6_is_asked(monkeypatch, addresses):
    asked = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: asked.append(place) or connect(("127.0.0.1", place[1]), timeout))
    assert rollout.runs(f"[::1]:{addresses[0].rpartition(':')[2]}")
    assert asked[0][0] == "::1"


def test_an_endpoint_that_was_killed_is_not_shown(home, tiny_artifact):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        begun(8123, f"127.0.0.1:{gone.getsockname()[1]}", "http://a:8123", rollout.served([tiny_artifact]))
        assert len(rollout.running()) == 1
    assert rollout.running() == []


def test_replicas_take_other_keys_that_are_told_and_stay_closed_all_the_while(home, addresses, tiny_artifact, tmp_path, monkeypatch):
    folder = begun(8123, addresses[0], "http://a:8123", rollout.served([tiny_artifact]))
    monkeypatch.setattr(app, "address", lambda: addresses[0])
    file = tmp_path / "keys"

    def statuses(replica):
        asyncio.run(replica.check_health())
        return [ask(replica.protocols, "GET", "/v1/models", key).status_code for key in ("old", "kept", "new", "none")]

    given = app.Given(str(folder), ServeSpec(), auth.digests({"a": "old", "b": "kept"}), {})
    made = Replica.__bases__[0]  # without what Serve puts around it
    replica = made(given)
    assert statuses(replica) == [200, 200, 401, 401]
    file.write_text("b:kept\nc:new")
    assert run._rekeyed(file) == f"keys from {file}: 2"
    assert statuses(replica) == statuses(made(given)) == [401, 200, 200, 401]
    file.write_text("")
    assert "the keys stay as they are" in run._rekeyed(file)
    assert statuses(replica) == [401, 200, 200, 401]
