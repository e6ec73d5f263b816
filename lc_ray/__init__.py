"""lc_ray: from labelled data to a small, fast endpoint, on one Ray cluster, from one job file."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lc_ray.api import (
        AudioModel,
        AutoHyperparameterOptimizer,
        DeployModel,
        ImageModel,
        LangChain,
        MultimodalModel,
        PruneModel,
        QuantizeModel,
        evaluate_model,
    )
    from lc_ray.client import AsyncClient, Client
    from lc_ray.pipeline import RunResult, run
    from lc_ray.predictor import Predictor, load
    from lc_ray.spec import JobSpec

# What Ray prints however quiet it is asked to be, and means nothing here. It reads this once, when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "graceful_shutdown failed|worker processes have been started")

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AudioModel",
    "AutoHyperparameterOptimizer",
    "Client",
    "DeployModel",
    "ImageModel",
    "JobSpec",
    "LangChain",
    "MultimodalModel",
    "Predictor",
    "PruneModel",
    "QuantizeModel",
    "RunResult",
    "evaluate_model",
    "load",
    "run",
]

_HOME = {
    "AsyncClient": "client",
    "Client": "client",
    "JobSpec": "spec",
    "Predictor": "predictor",
    "load": "predictor",
    "RunResult": "pipeline",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import lc_ray` is quick and needs neither torch nor Ray."""
    if name not in __all__:
        raise AttributeError(f"module 'lc_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lc_ray.{_HOME.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
