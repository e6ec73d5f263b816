"""What a segment that fails is told as, without a cluster."""

import dataclasses
from types import SimpleNamespace

import pytest
import ray.train
from ray.exceptions import RayActorError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError
from test_segment import segment

from lc_ray.errors import ModelError, TrainError
from lc_ray.storage import StoragePath
from lc_ray.train import trainer


@pytest.fixture
def fails(monkeypatch, tmp_path):
    """Runs a segment whose worker raises an error."""

    def run(error):
        def fit():
            raise WorkerGroupError(f"[Rank 0]\nTraceback\n{error}", {0: error})

        monkeypatch.setattr(trainer, "TorchTrainer", lambda *args, **options: SimpleNamespace(fit=fit))
        with pytest.raises(TrainError) as found:
            trainer.run_segment(dataclasses.replace(segment(), store=StoragePath(str(tmp_path))), lambda event: None, own=False)
        return found.value

    return run


def test_what_would_fail_again_is_not_tried_again():
    told = []
    restarts = trainer._Restarts(segment(), told.append)
    with pytest.raises(ray.train.ControllerError) as found:
        restarts.after_exception(None, {0: RuntimeError("of another worker"), 1: ModelError("no such layer")})
    assert isinstance(found.value.controller_failure, ModelError)
    assert told == []


def test_why_workers_start_again_is_told():
    told = []
    restarts = trainer._Restarts(segment(), told.append)
    died = WorkerHealthCheckFailedError("a health check failed", RayActorError())
    for error in (RuntimeError("Connection\nreset by peer"), died, OSError("the third")):
        restarts.after_exception(None, {1: error})
    assert [(event["event"], event["reason"]) for event in told] == [("restart", "reset by peer"), ("restart", "a worker died")]


def test_a_worker_that_died_is_told_without_rays_paragraph(fails):
    error = fails(WorkerHealthCheckFailedError("a health check failed", RayActorError()))
    assert error.what == "a worker died, as it does when its machine runs out of memory"
    assert "train.accumulate" in error.fix


def test_an_error_of_the_code_is_kept_in_full(fails):
    error = fails(ZeroDivisionError("division by zero"))
    assert error.what == "training failed: division by zero"
    assert "Traceback" in StoragePath(error.fix.split()[-1]).read_text()


@pytest.mark.parametrize("kind", [trainer.TorchTrainer, trainer._OwnTrainer])
def test_workers_of_an_own_ray_are_not_given_up_for_another_rays_word(kind):
    callbacks = kind(lambda: None)._create_default_callbacks()
    assert (PlacementGroupCleanerCallback in map(type, callbacks)) == (kind is trainer.TorchTrainer)
