"""The Ray that a run uses: the one it is given, or a local one that it starts and stops."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from lc_ray.train.plan import Resources

# A segment is short beside a training run: poll its workers often enough that starting and ending it is not the larger part.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is for the whole run, not for Tune to end its part well
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_DATA_CPUS = 1  # beside the workers, so that Ray Data can read while all of them train


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Connect to the Ray of `RAY_ADDRESS`, keep one that is already connected, or start a local one and stop it afterwards.

    Args:
        cpus: of a local Ray; all cores, and one for reading data, if not given.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address, **quiet)
    else:
        ray.init("local", num_cpus=cpus or (os.cpu_count() or 1) + _DATA_CPUS, include_dashboard=False, **quiet)
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Resources]:
    """What each node can give to training workers."""
    local = os.environ.get("RAY_ADDRESS") is None
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            cpu = have.get("CPU", 0.0) - (_DATA_CPUS if local else 0)
            found.append(Resources(cpu, have.get("GPU", 0.0), int(have.get("memory", 0)), int(have.get("object_store_memory", 0))))
    return found
