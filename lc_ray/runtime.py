"""The Ray that a run uses: the one it is given, or a local one that it starts and stops."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psutil
import ray
from ray._private import services, utils, worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lc_ray import storage
from lc_ray.errors import ClusterError, first_line
from lc_ray.spec import JobSpec, WorkersSpec
from lc_ray.train import plan
from lc_ray.train.plan import Resources, placement

# Runs may be short: poll workers often enough that starting and ending them is not the larger part.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # which nobody reads, and one of which prints that the score of a member that failed is not finite
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is for the whole run, not for Tune to end its part well
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Of a Ray of our own: its dozen logs, which grow by 160 MB a day where an endpoint is idle, would have 3 GiB each before their beginning goes.
_LOGS = {"RAY_ROTATION_MAX_BYTES": str(2**24), "RAY_ROTATION_BACKUP_COUNT": "1"}
_DECIDES, _STARTS = 15.0, 900.0  # seconds in which an autoscaler begins to start nodes, and in which they are there
_SLOW, _SERVERS = "timed out during startup", ("gcs_server", "raylet")  # what Ray says then, and its processes that all others end with
_LOOKS, _ENDS = 5.0, 15.0  # seconds between two looks at whether they are there; seconds in which what waits for them is to end once they are not
_WAKES = signal.SIGUSR1  # whatever waits: of SIGINT, which is for people, processes in the background may hear nothing
_SIGACTION = 1024  # bytes, more than any C library's struct has
_started = False  # by this process, for itself
_sessions = 0  # in the Ray that the first of them has connected
_turn = threading.Lock()
_DATA_CPUS = 1  # beside the workers, so that Ray Data can read while all of them train


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Connect to the Ray of `RAY_ADDRESS`, keep one that is already connected, or start a local one and stop it afterwards.

    What one thread has connected stays until the sessions of all of them have ended.

    Args:
        cpus: of a local Ray; all cores, and one for reading data, if not given.

    Raises:
        ClusterError: no Ray is at `RAY_ADDRESS`, or none can be started.
    """
    global _sessions, _started
    with _turn:
        ours = _sessions > 0 or not ray.is_initialized()  # else the program has connected it, and will end it
        if not ray.is_initialized():
            _connect(cpus)
            _sessions = 0
        _sessions += ours
    try:
        yield
    finally:
        with _turn:
            _sessions -= ours
            if ours and not _sessions:
                _started = False
                ray.shutdown()
                worker._worker_logs_enabled = True


def _connect(cpus: int | None) -> None:
    global _started
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _reach(address)
            attach(address)
        except (OSError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:  # the third of a Ray of another version
            told = " ".join(str(error).split())
            fix = "set RAY_ADDRESS to the address of one, as HOST:6379, or unset it for a Ray of this command alone"
            raise ClusterError(f"no Ray can be reached: {told}", f"RAY_ADDRESS={address}", fix) from None
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # an actor for each start of workers, and nobody takes this machine away
        start(cpus or (os.cpu_count() or 1) + _DATA_CPUS)
        _started = True
    worker._worker_logs_enabled = False  # else it writes of a worker that died to standard output, between what is for programs; we tell of it
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells of each handle and of what ends
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # members that fail are told of as events


def start(cpus: int) -> None:
    """Start a Ray of this process's own. Ray gives it 30 s, in which a busy machine reads its files; then it is tried once more.

    Raises:
        ClusterError: none can be started.
    """
    for name, value in _LOGS.items():
        os.environ.setdefault(name, value)
    for last in (False, True):
        try:
            attach("local", num_cpus=cpus, include_dashboard=False)
            return
        except Exception as error:  # Ray raises nothing narrower
            for left in servers():  # which Ray itself leaves there
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            if last or _SLOW not in str(error):
                raise ClusterError(f"no Ray can be started here: {first_line(error)}", fix=_remedy(error)) from None


def _remedy(error: Exception) -> str:
    """What to do where no Ray can be started."""
    if "AF_UNIX path length" in str(error):
        return "set RAY_TMPDIR to a folder with a short name, such as /tmp"
    if isinstance(error, OSError) and error.filename:
        return "Ray keeps its token in the home folder and its files in /tmp: set HOME, or RAY_TMPDIR, to a folder that can be written"
    return "is the machine very busy, or short of memory or disk?"


def servers() -> list[psutil.Process]:
    """The processes of the Ray that this process has started, with each of which it ends."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() in _SERVERS and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def broken() -> bool:
    """Whether the Ray that this process has started for itself has lost one of its processes, so that nothing in it can go on."""
    return own() and len(servers()) < len(_SERVERS)


@contextmanager
def watched() -> Iterator[threading.Event]:
    """Raise KeyboardInterrupt in the main thread, if this is it, once `broken`: it may wait for ever for what is no more. And again a while later, as
    what then ends may wait, too.

    Yields:
        What is set before.
    """
    done, lost, me = threading.Event(), threading.Event(), threading.current_thread()
    if me is not threading.main_thread():
        yield lost
        return

    def watch() -> None:
        while not done.wait(_ENDS if lost.is_set() else _LOOKS):
            if broken():
                lost.set()
                signal.pthread_kill(me.ident or 0, _WAKES)

    def wake(*_: Any) -> None:
        if not done.is_set():
            raise KeyboardInterrupt

    before = signal.signal(_WAKES, wake)
    watching = threading.Thread(target=watch, daemon=True)
    try:
        watching.start()
        yield lost
    finally:
        done.set()
        watching.join()
        signal.signal(_WAKES, before or signal.SIG_DFL)


def attach(address: str, **options: Any) -> None:
    """Connect to a Ray, quietly, or start one; signals end this program as they did. Takes `ray.init`'s options, and raises its errors."""
    with _handlers():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _handlers() -> Iterator[None]:
    """Keep this program's handler of SIGTERM, if it has one, while it connects to Ray, and those of the JVM that hdfs:// has started in this process,
    if it has.

    Ray's end the process: one of Python's without a word, one of C++'s as a crash. Compiled Java runs into SIGSEGV on purpose, and Ray's handler ends
    the process there. Python can't restore a handler that is not its own.
    """
    taken = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL) if storage.jvm() else ()
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(_SIGACTION) for number in taken}
    for number, handler in kept.items():
        libc.sigaction(number, None, handler)
    ours, sets = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    if callable(ours):
        utils.set_sigterm_handler = lambda handler: None  # connecting takes seconds, and it would be in place for all of them
    try:
        yield
    finally:
        utils.set_sigterm_handler = sets
        if callable(ours) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)
        for number, handler in kept.items():
            libc.sigaction(number, handler, None)


def _reach(address: str) -> None:
    """Raise OSError at once where nobody listens, Ray would try for minutes; or where several may be meant, of which Ray would take any."""
    if address == "auto":
        address = _only()
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _only() -> str:
    """The address of the Ray of this machine: that of `ray start`, or of the only other one."""
    found, started = services.find_gcs_addresses(), services.find_bootstrap_address(None)
    if started in found or len(found) == 1:
        return str(started if started in found else next(iter(found)))
    raise OSError(f"several run on this machine, at {', '.join(sorted(found))}" if found else "none runs on this machine")


def own() -> bool:
    """Whether `session` has started the Ray that is connected, and has not found it."""
    return _started


def nodes() -> list[Resources]:
    """What each node can give to training workers."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            have = Resources.of(node["Resources"])
            found.append(replace(have, cpu=have.cpu - (_DATA_CPUS if own() else 0)))
    return found


def settled(job: JobSpec) -> JobSpec:
    """As `plan.settled` where this machine runs the job by itself; on a cluster as it is."""
    return plan.settled(job, os.cpu_count() or 1, sum(node.gpu for node in nodes())) if own() else job


def grown(workers: WorkersSpec, members: int) -> list[Resources]:
    """As `nodes`, once the cluster's autoscaler, if it has one that can, has started those that so many members lack."""
    from ray.autoscaler.sdk import request_resources
    from ray.autoscaler.v2.sdk import get_cluster_status

    if own() or placement(workers, nodes()).slots >= members:
        return nodes()
    wanted = [plan.reserved(workers)] * workers.count * members
    begin = started = time.monotonic()
    try:
        while placement(workers, nodes()).slots < members and time.monotonic() - begin < _STARTS:
            request_resources(bundles=wanted)  # again and again: a cluster has one request, and another job's takes its place
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            if status.pending_launches or status.pending_nodes:
                started = time.monotonic()
            elif time.monotonic() - started > _DECIDES:
                break
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # what runs on the nodes keeps them from now on
    return nodes()


def beside() -> dict[str, Any]:
    """Options of a task or actor that is to run on this node: what a run can't do without stays with its driver when other nodes go."""
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
