"""What figures were measured on, and with which versions."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lc_ray import __version__

_PACKAGES = ("ray", "torch", "transformers", "deepspeed", "openvino", "nncf")


def describe() -> dict[str, Any]:
    """`versions` by package, and `hardware`: processor, cores, memory in bytes, GPUs."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    hardware = {"cpu": names[0] if names else "unknown", "cores": os.cpu_count(), "memory": memory, "gpus": gpus}
    # Of what runs: on a cluster lc_ray may have come with the job, beside another one that is installed, or none.
    versions = {"lc_ray": __version__} | {name: version(name) for name in _PACKAGES}
    return {"versions": versions, "hardware": hardware}
