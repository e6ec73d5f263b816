"""Members of a population that fail while the others wait for them."""

from types import SimpleNamespace

import pytest
from ray import tune

from lc_ray.errors import TrainError
from lc_ray.storage import StoragePath
from lc_ray.train.segment import SegmentResult
from lc_ray.tune.population import Pointer, _InStep, _Lost, _member, _same

pytestmark = pytest.mark.cluster


def test_the_others_go_on_without_it(ray_local, tmp_path):
    told, log = [], tmp_path / "log"

    def note(line):
        with log.open("a") as file:
            file.write(f"{line}\n")

    def member(config):
        import tempfile
        import time
        from pathlib import Path

        if config["member"] == 1:
            time.sleep(4)
            note("member 1")
            raise TrainError("the loss became nan")
        done = 0
        if found := tune.get_checkpoint():
            with found.as_directory() as folder:
                done = int(Path(folder, "done").read_text())
        for step in range(done, 3):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "done").write_text(str(step + 1))
                note(f"member 0, step {step}")
                tune.report({"accuracy": step / 10}, checkpoint=tune.Checkpoint.from_directory(folder))

    step = _InStep("training_iteration", "accuracy", "max", 1, custom_explore_fn=_same, quantile_fraction=0.5, synch=True, seed=0)
    twice = tune.FailureConfig(max_failures=1)
    found = tune.Tuner(
        tune.with_resources(member, {"CPU": 0.1}),
        param_space={"member": tune.grid_search([0, 1])},
        tune_config=tune.TuneConfig(scheduler=step, time_budget_s=60),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0, failure_config=twice, callbacks=[_Lost(told.append)]),
    ).fit()
    assert [(one.metrics or {}).get("training_iteration") for one in found] == [3, None]
    assert told == [{"event": "lost", "member": 1}]
    lines = log.read_text().splitlines()
    assert sorted(lines[:3]) == ["member 0, step 0", "member 1", "member 1"], "it is waited for until it is lost"
    assert lines[3:] == ["member 0, step 1", "member 0, step 2"]


def test_one_that_diverges_becomes_an_heir(ray_local, tmp_path):
    class Diverging:  # member 1, in its second segment
        log, store, job = tmp_path / "log", StoragePath(str(tmp_path)), SimpleNamespace(train=SimpleNamespace(segments=4))

        def post(self, event):
            self.log.open("a").write(f"{event['event']} {event['member']}\n")

        def advance(self, pointer, member):
            number = len(pointer.results) if pointer else 0
            if (member, number) == (1, 1):
                raise TrainError("the loss became nan")
            self.log.open("a").write(f"segment {member} {number} of {pointer.member if pointer else '-'}\n")
            result = SegmentResult(f"{member}-{number}", number, member, None, "", 0.0, {"accuracy": 0.5 + 0.1 * member}, [], {}, None)
            return result, Pointer(member, (*(pointer.results if pointer else ()), result.key), None, 0.0, {})

    told = []
    step = _InStep("training_iteration", "accuracy", "max", 1, custom_explore_fn=_same, quantile_fraction=0.5, synch=True, seed=0)
    found = tune.Tuner(
        tune.with_resources(tune.with_parameters(_member, shared=Diverging(), objective="accuracy"), {"CPU": 0.1}),
        param_space={"member": tune.grid_search([0, 1])},
        tune_config=tune.TuneConfig(scheduler=step, time_budget_s=120),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"), verbose=0, failure_config=tune.FailureConfig(max_failures=1), callbacks=[_Lost(told.append)]
        ),
    ).fit()
    lines = Diverging.log.read_text().splitlines()
    assert not found.errors
    assert lines.count("failed 1") == 1
    assert not told
    assert [line for line in lines if line.startswith("segment 1")] == ["segment 1 0 of -", "segment 1 2 of 0", "segment 1 3 of 1"]
