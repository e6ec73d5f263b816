"""`python -m lc_ray.serve.container`: what a platform starts in the image, told by its environment where the model is.

    SageMaker    unpacked in /opt/ml/model; port SAGEMAKER_BIND_TO_PORT or 8080
    Vertex AI    at AIP_STORAGE_URI; port AIP_HTTP_PORT

Requests need a key, LC_RAY_API_KEY, unless LC_RAY_KEYLESS is 1, as `lc-ray deploy` says to platforms that let nobody through to the container
but those whom they know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ray._private.accelerators import NvidiaGPUAcceleratorManager

from lc_ray.errors import LcRayError, ServeError
from lc_ray.serve import auth
from lc_ray.serve.run import serve_forever
from lc_ray.serving import ReplicasSpec, ServeSpec

_LARGEST = 10 * 2**20  # bytes that Vertex AI lets through; SageMaker's protocol has a limit of its own


def place(environment: Mapping[str, str]) -> str:
    """The model's folder, or its URI."""
    return environment.get("AIP_STORAGE_URI") or "/opt/ml/model"


def spec(environment: Mapping[str, str]) -> ServeSpec:
    """The endpoint: one replica that has the whole machine, or one for each of its GPUs.

    Raises:
        ServeError: the port is none.
    """
    port = environment.get("AIP_HTTP_PORT") or environment.get("SAGEMAKER_BIND_TO_PORT") or "8080"
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 2**16):
        raise ServeError(f"no port: {port}", "AIP_HTTP_PORT, SAGEMAKER_BIND_TO_PORT")
    cores, gpus = len(os.sched_getaffinity(0)), NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    copies = max(1, gpus)
    replicas = ReplicasSpec(min=copies, max=copies, cpu=max(1, cores // copies), gpu=min(1, gpus))
    return ServeSpec(host="0.0.0.0", port=int(port), max_body=_LARGEST, replicas=replicas)


def main() -> None:
    """Serve until SIGTERM."""
    try:
        serve_forever([place(os.environ)], spec(os.environ), keyless=os.environ.get(auth.KEYLESS) == "1")
    except LcRayError as error:
        sys.exit(f"error {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
