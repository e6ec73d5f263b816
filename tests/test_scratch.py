"""Folders for a while, and what of them processes leave that are killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from lc_ray.scratch import folder_for_a_while

HOLDS = """
import time
from lc_ray.scratch import folder_for_a_while
with folder_for_a_while() as folder:
    (folder / "weights").write_text("...")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A process that has such a folder, and the folder, which is old."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    folder = tmp_path / os.path.basename(process.stdout.readline().strip())
    os.utime(folder, (time.time() - 3600,) * 2)
    yield process, folder
    process.kill()
    process.wait()


def test_what_a_process_that_was_killed_has_left_goes_and_no_other(held):
    process, folder = held
    with folder_for_a_while():
        assert (folder / "weights").exists(), "it is at work"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with folder_for_a_while() as own:
        assert not folder.exists()
        with folder_for_a_while() as another:
            assert own.exists()
    assert not own.exists()
    assert not another.exists()


def test_one_that_is_new_may_not_have_its_lock_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "lc_ray-scratch-new").mkdir()
    with folder_for_a_while():
        assert (tmp_path / "lc_ray-scratch-new").exists()
