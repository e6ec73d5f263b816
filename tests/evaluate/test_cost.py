from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from lc_ray.evaluate import cost


class Clock:
    """Seconds that pass as a test says."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Fake:
    """A predictor that takes a known time per row by the clock, and notes its calls."""

    def __init__(self, folder, name, seconds, calls, shapes=((3, 4), (5,))):
        folder = folder / name
        folder.mkdir()
        safetensors.numpy.save_file({str(i): np.zeros(s, np.float32) for i, s in enumerate(shapes)}, folder / "model.safetensors")
        self.artifact = SimpleNamespace(path=folder, bytes=123)
        self.name, self.seconds, self.calls = name, seconds, calls

    def outputs(self, prepared, batch_size=32):
        count = len(prepared["_size"])
        self.calls.append((self.name, batch_size, tuple(prepared["text.input_ids"])))
        cost.time.now += self.seconds(len(self.calls)) * count
        return np.zeros((count, 3), np.float32)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(cost, "_SECONDS", 1.0)
    monkeypatch.setattr(cost, "time", Clock())
    return cost.time


def rows(count):
    return {"text.input_ids": list(range(count)), "_size": [1] * count}


def test_times_are_those_of_the_model(tmp_path):
    calls = []
    pair = {"slow": Fake(tmp_path, "slow", lambda n: 4e-3, calls), "fast": Fake(tmp_path, "fast", lambda n: 1e-3, calls)}
    found = cost.measure(pair, rows(64), 8, 3)
    for name, milliseconds in (("slow", 4), ("fast", 1)):
        assert found[name]["latency_ms"] == found[name]["latency_p95_ms"] == pytest.approx(milliseconds)
        assert found[name]["throughput"] == pytest.approx(1000 / milliseconds)


def test_every_model_gets_the_same_rows_in_turns(tmp_path):
    calls = []
    pair = {name: Fake(tmp_path, name, lambda n: 1e-3, calls) for name in ("a", "b")}
    cost.measure(pair, rows(40), 8, 4)
    given = {name: [call[1:] for call in calls if call[0] == name] for name in pair}
    assert given["a"] == given["b"]
    turns = [name for i, (name, *_) in enumerate(calls) if i == 0 or calls[i - 1][0] != name]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(turns) >= 2 * 2 * 4, "each round times latency and throughput of a beside those of b"


def test_one_disturbed_round_does_not_count(tmp_path):
    calls = []
    disturbed = range(60, 95)
    model = {"a": Fake(tmp_path, "a", lambda n: 2e-2 if n in disturbed else 1e-3, calls)}
    found = cost.measure(model, rows(20), 4, 9)
    assert len(calls) > 2 * disturbed.stop, "most rounds must be undisturbed"
    assert found["a"]["latency_ms"] == found["a"]["latency_p95_ms"] == pytest.approx(1)


def test_the_time_taken_is_bounded_for_slow_models(tmp_path, clock):
    model = {"a": Fake(tmp_path, "a", lambda n: 5e-3, [])}
    cost.measure(model, rows(2000), 16, 2)
    assert clock.now < 5


def test_one_row_is_enough(tmp_path):
    found = cost.measure({"a": Fake(tmp_path, "a", lambda n: 1e-3, [])}, rows(1), 32, 1)
    assert found["a"]["throughput"] > 0


def test_parameters_and_bytes_are_read_not_guessed(tmp_path):
    found = cost.measure({"a": Fake(tmp_path, "a", lambda n: 1e-4, [], ((3, 4), (5,), ()))}, rows(2), 2, 1)
    assert found["a"]["parameters"] == 3 * 4 + 5 + 1
    assert found["a"]["bytes"] == 123
