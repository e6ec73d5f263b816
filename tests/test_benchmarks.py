"""What the benchmarks refuse to measure, and to call passed."""

import sys

import endpoint
import psutil
import pytest
import soak


def test_a_peer_that_never_answers_is_not_measured_and_ended(tmp_path, monkeypatch):
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "silent.py").write_text("import os, time\nprint('here', os.getpid(), flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(endpoint, "HERE", tmp_path)
    monkeypatch.setattr(endpoint, "_TRIES", 3)
    with pytest.raises(RuntimeError, match=r"silent\.py does not answer: here \d+") as told, endpoint.peer(sys.executable, "silent.py", {}, 1):
        pytest.fail("it is measured")
    assert not psutil.pid_exists(int(str(told.value).split()[-1]))


@pytest.mark.parametrize("missing", ["good", "replicas killed", "models replaced"])
def test_a_soak_in_which_something_never_happened_fails(missing):
    found = soak.Soak("http://there", "k", "tiny", [], 0)
    found.seen.update({"good": 9, "replicas killed": 2, "models replaced": 2})
    assert found.failures() == []
    del found.seen[missing]
    assert found.failures() == [f"none at all: {missing}"]


def test_a_soak_takes_no_two_artifacts_that_answer_alike():
    one, other = [{"label": "a"}, {"label": "b"}], [{"label": "a"}, {"label": "c"}]
    assert soak.either(one, other) == [{"a"}, {"b", "c"}]
    with pytest.raises(SystemExit, match="the same labels"):
        soak.either(one, one)
