"""A member of a population that fails for good while the others wait for it."""

import pytest
import ray
from ray import tune

from lc_ray.errors import TrainError
from lc_ray.tune.population import Slots, _InStep, _Lost, _same

pytestmark = pytest.mark.cluster


def test_the_others_go_on_without_it(ray_local, tmp_path):
    slots, told = ray.remote(num_cpus=0)(Slots).remote(1), []

    def member(config):
        import tempfile
        import time
        from pathlib import Path

        if config["member"] == 1:
            ray.get(slots.acquire.remote(1))
            time.sleep(4)
            raise TrainError("the loss became nan")
        done = 0
        if found := tune.get_checkpoint():
            with found.as_directory() as folder:
                done = int(Path(folder, "done").read_text())
        for step in range(done, 3):
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "done").write_text(str(step + 1))
                tune.report({"accuracy": step / 10}, checkpoint=tune.Checkpoint.from_directory(folder))

    step = _InStep("training_iteration", "accuracy", "max", 1, custom_explore_fn=_same, quantile_fraction=0.5, synch=True)
    found = tune.Tuner(
        tune.with_resources(member, {"CPU": 0.1}),
        param_space={"member": tune.grid_search([0, 1])},
        tune_config=tune.TuneConfig(scheduler=step, time_budget_s=60),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0, callbacks=[_Lost(slots, told.append)]),
    ).fit()
    assert [(one.metrics or {}).get("training_iteration") for one in found] == [3, None]
    assert told == [{"event": "lost", "member": 1}]
    ray.get(slots.acquire.remote(0), timeout=10)
