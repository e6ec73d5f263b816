"""The endpoint on Ray Serve: one deployment that holds the models, behind Serve's HAProxy."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from lc_ray import artifact
from lc_ray.errors import ServeError
from lc_ray.serve import auth, front, predictions, rollout
from lc_ray.serve.access import STDERR
from lc_ray.serve.protocols import _messages
from lc_ray.serve.rollout import Served, State
from lc_ray.serving import ServeSpec, TlsSpec

NAME = "lc_ray"
_REPLICA = "lc_ray.serve.replica.Replica"  # by its name: only replicas import the engines, which takes seconds
# Requests that Serve admits above what the endpoint does, which answers health and rejections itself while its queue is full.
_ROOM = 64
# Ports that neither Ray gives to its workers nor a system to outgoing connections: they are still free when Serve, which takes seconds, listens.
_ANY, _TRIES = range(20_000, 32_768), 16
_MESSAGE = 16 * 2**20  # bytes of a gRPC answer, or of a request where it may have more
_REGISTER = f"{_messages.__name__}.{_messages.register.__name__}"
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}


class Given(NamedTuple):
    """What a replica is made of.

    Attributes:
        source: the folder of the endpoint's state, where one machine serves alone; or the state itself; or the artifacts' folders.
        spec: limits, batching and replicas.
        keys: names of the API keys by their digests; none means that no key is needed.
        variables: of the replica's environment; Serve's own processes must have the same of Serve's settings.
        digests: that artifacts in folders must have, if that is known.
    """

    source: str | State | tuple[str, ...]
    spec: ServeSpec
    keys: Mapping[str, str]
    variables: Mapping[str, str]
    digests: tuple[str, ...] = ()


def application(
    source: str | State | tuple[str, ...], spec: ServeSpec, keys: Mapping[str, str], variables: Mapping[str, str], digests: tuple[str, ...] = ()
) -> Any:
    """The Serve application of artifacts.

    Args:
        source: what is served, see `Given`. Every node must reach it.
        spec: limits, batching and replicas.
        keys: API keys by name, of which Ray is given digests only; none means that no key is needed.
        variables: of the replicas' environment.
        digests: that artifacts in folders must have, if that is known.
    """
    return bound(Given(source, _absolute(spec), auth.digests(keys), variables, digests))


def bound(given: Given) -> Any:
    """The Serve application of replicas that are given this."""
    spec = given.spec
    least, most = spec.replicas.min, spec.replicas.max
    admitted = spec.queue + spec.batch.max + _ROOM
    scaling = {
        "min_replicas": least,
        "initial_replicas": max(1, least),  # so that a model that can't be served is found at once
        "max_replicas": most,
        "target_ongoing_requests": spec.batch.max,
        "downscale_delay_s": spec.replicas.idle,
    }
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=admitted,
        max_queued_requests=admitted,  # counts those that are just arriving too, so less would refuse bursts that the endpoint can take
        backpressure_config={"retry_after_s": 1},
        max_constructor_retry_count=1,
        max_surge_percent=100,  # else the only replica would go before the one that takes its place has come
        graceful_shutdown_timeout_s=spec.timeout,
        ray_actor_options={"num_cpus": spec.replicas.cpu, "num_gpus": spec.replicas.gpu, "runtime_env": {"env_vars": dict(given.variables)}},
        logging_config=LoggingConfig(**_QUIET),
        **({"num_replicas": most} if least == most else {"autoscaling_config": scaling}),
    )
    return deployment(_REPLICA).bind(given)


def _absolute(spec: ServeSpec) -> ServeSpec:
    """With paths of logs as they are from here: replicas run elsewhere."""
    access = str(Path(spec.access_log).resolve()) if spec.access_log not in (None, STDERR) else spec.access_log
    log = spec.log and spec.log.model_copy(update={"path": str(Path(spec.log.path).resolve())})
    return spec.model_copy(update={"access_log": access, "log": log})


def start(paths: Sequence[str | Path], spec: ServeSpec, keys: Mapping[str, str]) -> str:
    """Serve artifacts on the connected Ray cluster.

    On a cluster of one node the artifacts are kept with the endpoint's state, see rollout.py. On others the replicas are given the state, and read
    the artifacts where they are.

    Args:
        paths: the artifacts' folders or URIs, which every node can reach.
        spec: address, limits, batching and replicas. Port 0 means any that is free.
        keys: API keys by name; none means that no key is needed.

    Returns:
        The endpoint's URL, once it answers.

    Raises:
        ArtifactError: no artifact there.
        ServeError: see `check` and `predictions.check`; or the replica can't start.
    """
    models = rollout.served(paths)
    predictions.check(spec.log, [artifact.read(path, verify=False).manifest for path in paths])
    with rollout.starting():
        return _started(paths, models, spec, keys)


def _started(paths: Sequence[str | Path], models: Served, spec: ServeSpec, keys: Mapping[str, str]) -> str:
    port = check(spec)
    url = f"{'https' if spec.tls else 'http'}://{'127.0.0.1' if spec.host == '0.0.0.0' else spec.host}:{port}"
    certificate = {"ssl_certfile": str(Path(spec.tls.certificate).resolve()), "ssl_keyfile": str(Path(spec.tls.key).resolve())} if spec.tls else {}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = {"CPU": spec.replicas.max * spec.replicas.cpu, "GPU": spec.replicas.max * spec.replicas.gpu}
    alone = len(nodes) == 1 and all(nodes[0].get(name, 0.0) >= amount for name, amount in needs.items())  # else an autoscaler may bring more
    try:
        folder = rollout.begin(port, address(), url, models) if alone else None
        fronted = front.variables(folder) if folder and not spec.tls and front.there() else {}
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": spec.host, "port": port} | certificate,
            grpc_options={"port": spec.grpc_port, "grpc_servicer_functions": [_REGISTER], "enable_reflection": False} if spec.grpc_port else None,
            logging_config=LoggingConfig(**_QUIET),
            controller_options={"runtime_env": {"env_vars": environment(spec) | _side_ports() | fronted}},
        )
        source = str(folder) if folder else State(address=address(), url=url, models=models)
        serve.run(application(source, spec, keys, environment(spec)), name=NAME, route_prefix="/")
        if folder:
            rollout.note(folder, answers=True)
    except BaseException as error:
        told = _why(error) if isinstance(error, RuntimeError) else str(error)
        stop()
        if isinstance(error, RuntimeError | TimeoutError | RayError):
            fix = "" if isinstance(error, RuntimeError) else "is the machine very busy?"
            raise ServeError(f"the endpoint can't start: {told}", ", ".join(map(str, paths)), fix) from None
        raise
    return url


def _why(error: RuntimeError) -> str:
    """What has become of the replicas, of which Serve's own error tells nothing; where there are none, that error, without a traceback."""
    told = ""
    with contextlib.suppress(RayError, RayServeException, KeyError):
        told = reason(serve.status().applications[NAME].deployments[NAME].message)
    return told or reason(str(error))


def reason(told: str) -> str:
    """What Serve tells, or of a traceback in it the error, whose further lines are indented."""
    return re.sub(r"^[\w.]+: ", "", re.split(r"\n(?=\S)", told.strip())[-1])


def stop() -> None:
    """Answer what was accepted, then close the endpoint, if there is one; and Serve, if it has no other application."""
    with contextlib.suppress(RayServeException):
        serve.delete(NAME, _blocking=False)
    while NAME in serve.status().applications:  # at most `serve.timeout`, after which Serve ends its replicas
        time.sleep(0.1)
    if not serve.status().applications:
        serve.shutdown()
    rollout.end(address())


def check(spec: ServeSpec) -> int:
    """The port to serve at.

    Raises:
        ServeError: it is in use, the connected cluster serves already, or TLS can't be had with these files.
    """
    if ":" in spec.host:
        raise ServeError("Ray Serve's proxies have no addresses of IPv6", spec.host, "give serve.host one of IPv4; 0.0.0.0 is all")
    if spec.tls:
        _certified(spec.tls)
    port = _listens(spec.host, spec.port, "choose another serve.port, 0 for any that is free, or another serve.host")
    if spec.grpc_port:
        _listens(spec.host, spec.grpc_port, "choose another serve.grpc_port or serve.host")
    if ray.is_initialized() and serves():
        raise ServeError("Ray Serve runs on this cluster already", fix="stop it first: `serve shutdown`")
    return port


def serves() -> bool:
    """Whether Ray Serve runs on the connected Ray."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def address() -> str:
    """Of the connected Ray."""
    return str(ray.get_runtime_context().gcs_address)


def environment(spec: ServeSpec) -> dict[str, str]:
    """Settings of Serve's own processes, which read them when they start.

    HAProxy in front and direct ingress cost 0.4 ms a request where Serve's Python proxy costs 8 ms (2 cores, one connection).
    """
    fast = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    fast["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] = str(max(spec.max_body, _MESSAGE))  # read before its key is, and 2 GiB otherwise
    fast["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] = "2"  # the third that fails has HAProxy started anew: with the usual 10, after half a minute
    fast["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "20"  # of which it has three: on a busy machine it is not up after the usual 5, and killed
    # HAProxy has 4,096 connections: without this, whoever opens them and asks nothing would keep all others out for an hour.
    fast["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] = str(math.ceil(spec.timeout) + 1)  # by then who is slow to ask has been told so
    fast["RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE"] = "1"  # else warnings wait for 999 others to be written, and are lost with the replica
    if spec.tls or not front.there():  # which has no TLS here
        return fast | {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    # Its metrics are lines that a Python process reads, 0.1 to 0.3 ms of a core for each request; replicas then count the same themselves.
    return fast | {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0"}


def _certified(tls: TlsSpec) -> None:
    """See that files are a certificate and its key: Serve would tell nobody, and not listen."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError) as error:
        fix = "give PEM files as serve.tls.certificate and serve.tls.key, the key without a password"
        raise ServeError(f"no certificate and its key: {error}", f"{tls.certificate}, {tls.key}", fix) from None


def _side_ports() -> dict[str, str]:
    """Serve's other ports, where another cluster on this machine has the usual ones: it would share them unnoticed."""
    usual = {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500, "RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
    usual["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"] = 9500
    return {name: str(_free("0.0.0.0", 0)) for name, port in usual.items() if not _is_free("0.0.0.0", port)}


def _listens(host: str, port: int, fix: str) -> int:
    try:
        try:
            return _free(host, port)
        except OSError:
            if not front.freed(port):
                raise
            return _free(host, port)
    except OSError as error:
        raise ServeError(f"can't listen: {error.strerror}", f"{host}:{port}", fix) from None


def _free(host: str, port: int) -> int:
    """The port itself, or any if it is 0; OSError if another process has it.

    Serve sets SO_REUSEPORT, with which two servers share a port unnoticed. This socket does not set it, so it is refused.
    """
    port = port or next((one for one in random.sample(_ANY, _TRIES) if _is_free(host, one)), 0)
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    try:
        return _free(host, port) == port
    except OSError:
        return False
