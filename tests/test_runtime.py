"""A Ray of a run's own, on a machine that is busy."""

import shutil
import subprocess

import pytest
import ray

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


@pytest.mark.parametrize(("errors", "tried"), [([Exception(SLOW)] * 2, 2), ([RuntimeError("no room\nfor it")], 1)])
def test_a_ray_that_can_not_be_started_is_told_and_leaves_nothing(starts, errors, tried):
    servers = starts(*errors)
    with pytest.raises(ClusterError, match=r"no Ray can be started here: (The current node|no room)(.|\n)*busy"):
        runtime.start(1)
    assert [server.wait(10) != 0 for server in servers] == [True] * tried
