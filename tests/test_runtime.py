"""A Ray of a run's own, on a machine that is busy; or the one that is there."""

import ctypes
import shutil
import signal
import socket
import subprocess
import time
from unittest.mock import MagicMock

import pytest
import ray
from ray._private import services, worker

from lc_ray import runtime
from lc_ray.errors import ClusterError

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """starts(*errors): Ray's attempts to start fail with these, each leaving a server, and then do not; all servers that there were."""
    (tmp_path / "raylet").symlink_to(shutil.which("sleep"))
    servers = []

    def starts(*errors):
        left = list(errors)

        def init(**_):
            servers.append(subprocess.Popen([tmp_path / "raylet", "60"]))
            if left:
                raise left.pop(0)

        monkeypatch.setattr(ray, "init", init)
        return servers

    yield starts
    for server in servers:
        server.kill()
        server.wait()


def test_a_ray_that_takes_too_long_to_start_is_tried_once_more(starts):
    servers = starts(Exception(SLOW))
    runtime.start(1)
    first, second = servers
    assert first.wait(10) != 0
    assert second.poll() is None


def test_logs_of_a_ray_of_our_own_have_little_room_unless_somebody_says_how_much(monkeypatch):
    environment = {"RAY_ROTATION_BACKUP_COUNT": "3"}
    monkeypatch.setattr(runtime.os, "environ", environment)
    monkeypatch.setattr(runtime, "attach", MagicMock())
    runtime.start(1)
    assert int(environment["RAY_ROTATION_MAX_BYTES"]) <= 2**24
    assert environment["RAY_ROTATION_BACKUP_COUNT"] == "3"


@pytest.mark.parametrize(("errors", "tried"), [([Exception(SLOW)] * 2, 2), ([RuntimeError("no room\nfor it")], 1)])
def test_a_ray_that_can_not_be_started_is_told_and_leaves_nothing(starts, errors, tried):
    servers = starts(*errors)
    with pytest.raises(ClusterError, match=r"no Ray can be started here: (The current node|no room)(.|\n)*busy"):
        runtime.start(1)
    assert [server.wait(10) != 0 for server in servers] == [True] * tried


@pytest.mark.parametrize(
    ("error", "remedy"),
    [(OSError("AF_UNIX path length cannot exceed 107 bytes: /a/b"), "RAY_TMPDIR to a folder with a"), (PermissionError(13, "no", "/x"), "HOME")],
)
def test_a_folder_that_ray_can_not_use_is_no_busy_machine(starts, error, remedy):
    starts(error)
    with pytest.raises(ClusterError, match=remedy):
        runtime.start(1)


@pytest.mark.parametrize(
    ("running", "noted", "connected"),
    [
        (["here"], None, True),
        (["here"], "127.0.0.1:9", True),
        (["here", "127.0.0.1:9"], "here", True),
        (["here", "127.0.0.1:9"], None, r"several run on this machine, at 127\.0\.0\.1:\d+, 127"),
        ([], None, "none runs on this machine"),
        ([], "127.0.0.1:9", "none runs on this machine"),
        (["127.0.0.1:9"], None, "refused"),
    ],
)
def test_auto_is_the_one_ray_of_this_machine(monkeypatch, running, noted, connected):
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: frozenset(here if one == "here" else one for one in running))
        monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: here if noted == "here" else noted)
        monkeypatch.setattr(ray, "init", (init := MagicMock()))
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        monkeypatch.setattr(worker, "_worker_logs_enabled", True)
        if connected is True:
            runtime._connect(None)
        else:
            with pytest.raises(ClusterError, match=rf"RAY_ADDRESS=auto: no Ray can be reached: .*{connected}(.|\n)*set RAY_ADDRESS to the address"):
                runtime._connect(None)
        assert init.called == (connected is True)


def test_of_a_worker_that_dies_ray_writes_nothing_between_what_is_for_programs(monkeypatch, capsys):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def tell(text):  # as Ray's thread does
        worker.print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        return capsys.readouterr().out

    with runtime.session():
        assert tell("A worker died or was killed") == ""
    assert "no such thing" in tell("There is no such thing"), "of a Ray that is not ours it goes on"


def test_signals_of_a_jvm_stay_its_own_also_where_no_ray_is_found(monkeypatch):
    def handler():
        found = ctypes.create_string_buffer(runtime._SIGACTION)
        ctypes.CDLL(None).sigaction(signal.SIGBUS, None, found)
        return found.raw[: ctypes.sizeof(ctypes.c_void_p)]  # of the struct, its first field

    def init():
        signal.signal(signal.SIGBUS, lambda *_: None)
        raise ConnectionError

    monkeypatch.setattr(runtime.storage, "jvm", lambda: True)
    known, before = signal.getsignal(signal.SIGBUS), handler()
    try:
        with pytest.raises(ConnectionError), runtime._handlers():
            init()
        assert handler() == before
    finally:
        signal.signal(signal.SIGBUS, known or signal.SIG_DFL)


@pytest.mark.parametrize("has_one", [True, False])
def test_a_program_that_ends_well_by_sigterm_still_does(has_one):
    def ours(number, frame):
        pass

    def rays(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, ours if has_one else signal.SIG_DFL)
    try:
        with runtime._handlers():
            ray._private.utils.set_sigterm_handler(rays)
            assert signal.getsignal(signal.SIGTERM) == (ours if has_one else rays), "also while it connects"
            signal.signal(signal.SIGTERM, rays)  # as its C++ does, of which Python knows nothing
        assert signal.getsignal(signal.SIGTERM) == (ours if has_one else rays)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_ray_of_which_a_process_has_ended_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "own", lambda: True)
    for name in runtime._SERVERS:
        (tmp_path / name).symlink_to(shutil.which("sleep"))
    servers = [subprocess.Popen([tmp_path / name, "60"]) for name in runtime._SERVERS]
    try:
        assert not runtime.broken()
        servers[0].kill()
        deadline = time.monotonic() + 10
        while not runtime.broken():
            assert time.monotonic() < deadline
        monkeypatch.setattr(runtime, "own", lambda: False)
        assert not runtime.broken(), "what others have started is theirs"
    finally:
        for server in servers:
            server.kill()
            server.wait()


@pytest.mark.parametrize("background", [False, True])
def test_what_waits_for_a_broken_ray_is_interrupted(monkeypatch, background):
    monkeypatch.setattr(runtime, "_LOOKS", 0.5)
    monkeypatch.setattr(runtime, "broken", lambda: True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    wakes, start = signal.getsignal(signal.SIGUSR1), time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), runtime.watched() as lost:
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert lost.is_set()
    assert time.monotonic() - start < 5
    assert signal.getsignal(signal.SIGUSR1) == wakes
