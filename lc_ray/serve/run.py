"""`lc-ray serve ARTIFACT ...`: an endpoint on this machine, until Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import psutil
import ray
from rich.console import Console
from rich.markup import escape

from lc_ray import artifact, runtime
from lc_ray.artifact import Artifact
from lc_ray.errors import ServeError
from lc_ray.serve import access, app, auth, front, rollout
from lc_ray.serving import ServeSpec


def serve_forever(paths: Sequence[str | Path], spec: ServeSpec, key_file: str | Path | None = None, keyless: bool = False) -> None:
    """Serve artifacts from a Ray of its own. The first Ctrl-C or SIGTERM answers what was accepted and ends, a second leaves at once.

    SIGHUP has the keys read again, but of a terminal it tells that it is gone: then it ends, too.

    Args:
        paths: the artifacts' folders, or URIs.
        spec: address, limits, batching and replicas.
        key_file: with a line NAME:KEY for each key; the generated key if not given.
        keyless: whether all who reach it may ask, since who may reach it is decided elsewhere.

    Raises:
        ArtifactError: no artifact there.
        ServeError: the port is in use, an API key can't be read or written, or the endpoint can't start.
        ClusterError: no Ray can be started for it.
    """
    found = [artifact.read(path, verify=False) for path in paths]
    keys = {} if keyless else _keys(key_file)
    port = app.check(spec)
    console = Console()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    changed = threading.Event()
    # What replicas reserve is what they are given: a request for more CPUs than there are would never be placed.
    cpus = max(os.cpu_count() or 1, int(spec.replicas.max * spec.replicas.cpu) + 1)
    stack, watched = ExitStack(), ExitStack()
    try:
        spec = spec.model_copy(update={"port": port, "access_log": stack.enter_context(access.relayed(spec.access_log))})
        with console.status("starting the endpoint"):
            runtime.start(cpus)
            watched.enter_context(_unless_ray_ends(port))
            for number in previous:
                signal.signal(number, _interrupt)
            if not (sys.stdin and sys.stdin.isatty()):
                signal.signal(signal.SIGHUP, lambda number, frame: changed.set())
            if (wanted := spec.replicas.max * spec.replicas.gpu) > (there := ray.cluster_resources().get("GPU", 0)):
                raise ServeError(f"{wanted:g} GPUs are wanted, and there are {there:g}", "serve.replicas.gpu", "ask for fewer, or leave it out")
            url = app.start([one.path for one in found], spec, keys)
        said = f"serving at {url}" if keyless else _welcome(url, found, key_file, spec.grpc_port)
        console.print(said, highlight=False, soft_wrap=True)
        while changed.wait():
            changed.clear()
            console.print("keyless" if keyless else _rekeyed(key_file), markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        with suppress(OSError):  # of a terminal that is gone
            console.print("stopping: answering what was accepted (Ctrl-C again leaves at once)", highlight=False)
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else _leave)  # which both a terminal and its shell send
        try:
            if ray.is_initialized():
                app.stop()
                watched.close()
                ray.shutdown()
        finally:
            stack.close()
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _unless_ray_ends(port: int) -> Iterator[None]:
    """Leave where Ray's own processes end meanwhile, so that whoever watches this one starts it anew: it would wait for ever for what is no more."""
    done, address, servers = threading.Event(), app.address(), runtime.servers()

    def watch() -> None:
        while all(map(_lives, servers)):
            if done.wait(0.5):
                return
        rollout.end(address)
        for _ in range(20):  # the rest of Ray ends within seconds, HAProxy does not
            if front.freed(port):
                break
            if done.wait(0.5):
                return
        fix = "SIGTERM is for this process alone (of systemd: KillMode=mixed); was memory short?"
        print(f"Ray has ended, and the endpoint with it: {fix}", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _welcome(url: str, found: Sequence[Artifact], key_file: str | Path | None = None, grpc_port: int | None = None) -> str:
    last = {one.manifest.name: one.digest for one in found}
    seldom = {one.digest: ", for requests that name it" for one in found if one.digest != last[one.manifest.name]}
    named = ", ".join(dict.fromkeys(f"[bold]{escape(one.manifest.name)}[/bold] ({one.digest}{seldom.get(one.digest, '')})" for one in found))
    name, columns = found[0].manifest.name, [i["column"] for i in found[0].manifest.inputs]
    body = json.dumps({"instances": ["..." if len(columns) == 1 else dict.fromkeys(columns, "...")]})
    place = auth.place()
    key = "KEY" if key_file else place if place.startswith("$") else f"$(cat {shlex.quote(place)})"
    curl = f'curl {url}/v1/models/{name}:predict -H "Authorization: Bearer {key}" -d {shlex.quote(body)}'
    also = f" and, over gRPC, at [bold]{urlsplit(url).hostname}:{grpc_port}[/bold]" if grpc_port else ""
    return f"serving {named} at [bold]{url}[/bold]{also}\n" + escape(f"API key: {key_file or place}\n\n  {curl}\n")


def _keys(key_file: str | Path | None) -> dict[str, str]:
    """API keys by name.

    Raises:
        ServeError: they can't be read, or written.
    """
    return auth.read(key_file) if key_file else {"": auth.ensure()}


def _rekeyed(key_file: str | Path | None) -> str:
    """Have replicas take the keys that there are now when Serve looks after them next, within 10 s. What is to be told of it."""
    try:
        keys = _keys(key_file)
        if folder := rollout.of(app.address()):
            rollout.note(folder, keys=auth.digests(keys))
    except ServeError as error:
        return f"the keys stay as they are: {error}"
    return f"keys from {key_file or auth.place()}: {len(keys)}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
