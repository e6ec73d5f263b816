"""Other models, or others of their versions, at an endpoint that runs, while requests go on.

Where one machine serves alone, its replicas load them and then adopt them, see rollout.py. Where several do, nothing tells all replicas at once,
also those that come later, but the application's own arguments: it is run again with other ones, and Serve replaces each replica once another is up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.experimental import internal_kv
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from lc_ray import artifact, runtime
from lc_ray.errors import LcRayError, ServeError, unwrap
from lc_ray.serve import app, predictions, rollout
from lc_ray.serve.app import NAME, Given
from lc_ray.serve.rollout import State, Version

_is_alone: ContextVar[bool] = ContextVar("is_alone", default=False)
_PASSING = b"lc_ray.passing"  # in Ray's own store, as long as a run asks its model
_PATIENCE = 900.0  # seconds in which new replicas are up: nodes may have to be started for them


def update(path: str | Path) -> str | None:
    """Have the endpoint of the connected Ray, if it has one, serve an artifact: in place of the model of its name, or besides.

    Returns:
        The endpoint's URL; None if there is none.

    Raises:
        ArtifactError: no artifact there, or an altered one.
        ServeError: it can't be loaded; what was served goes on. Or the endpoint is changed elsewhere.
    """
    if NAME not in serve.status().applications:
        return None
    with changing() as (state, kept, put):
        put(rollout.rolled(state, *kept(path)))
    return state.url


def remove(name: str) -> bool:
    """Serve a model no more, and close the endpoint that has no other; whether that is so.

    Raises:
        ServeError: the model is not served, or the endpoint is changed elsewhere.
    """
    if NAME in serve.status().applications:
        with changing() as (state, _, put):
            rest = rollout.without(state, name)
            if rest.models:
                put(rest)
                return False
            app.stop()
    return True


def replace(folder: Path, state: State) -> None:
    """Have all replicas of an endpoint that one machine serves alone serve another state: all of them load it, then all adopt it, or none does.

    Where none runs, a first one is started, so that what can't be loaded is found; and where none can be, those to come will have the other state.

    Raises:
        ServeError: a replica can't load an artifact; what was served goes on. Or the endpoint is starting or ending.
    """
    try:
        handle = serve.get_app_handle(NAME)
    except RayServeException:
        raise ServeError("the endpoint is starting or ending", state.url, "try again once it runs") from None
    try:
        _load(handle, state)
    except BaseException as error:  # also where whoever asked hangs up: what is loaded by then would stay
        with contextlib.suppress(Exception):
            served = rollout.read(folder)
            handle.broadcast("adopt", served.models).results()
            rollout.write(folder, served)  # removes the copy that was made for this
        if not isinstance(error, Exception):
            raise
        ours = unwrap(error)
        told = ours if isinstance(ours, LcRayError) else app.reason(str(ours))  # of an engine's error Ray tells the replica's traceback, too
        raise ServeError(f"not replaced, what was served goes on: {told}", state.url) from None
    rollout.write(folder, state)
    with contextlib.suppress(Exception):  # of a replica that dies at this moment, or of none: the one to come reads the state
        handle.broadcast("adopt", state.models).results()


def _load(handle: DeploymentHandle[Any], state: State) -> None:
    """Have all replicas load what is to be served."""
    try:
        handle.broadcast("load", state.models).results()
    except DeploymentUnavailableError:
        if _starts(handle):
            handle.broadcast("load", state.models).results()


def _starts(handle: DeploymentHandle[Any]) -> bool:
    """Start a replica where there is none; whether one can be, in time."""
    asked, end = handle.given.remote(), time.monotonic() + _PATIENCE
    while time.monotonic() < end and serve.status().applications[NAME].status == ApplicationStatus.RUNNING:
        with contextlib.suppress(TimeoutError):
            asked.result(timeout_s=1)
            return True
    return False


@contextlib.contextmanager
def changing() -> Iterator[tuple[State, Callable[..., tuple[str, Version]], Callable[[State], None]]]:
    """Alone in changing the connected Ray's endpoint: its state, what makes a version of an artifact's folder and weight, what has a state served.

    Raises:
        ServeError: there is none, or it is changed elsewhere.
    """
    if folder := rollout.of(app.address()):
        with rollout.locked(folder):
            yield rollout.read(folder), partial(rollout.keep, folder), partial(replace, folder)
        return
    with alone():
        given = _given()
        yield _state(given), rollout.version, partial(_redeploy, given)


def served() -> State:
    """The state of the connected Ray's endpoint.

    Raises:
        ServeError: there is none, or it is changed elsewhere.
    """
    folder = rollout.of(app.address())
    return rollout.read(folder) if folder else _state(_given())


def _state(given: Given) -> State:
    if not isinstance(given.source, State):
        fix = "on the machine that has its state, or in the configuration of its RayService"
        raise ServeError("this endpoint can't be changed from here", fix=f"change it where it was started: {fix}")
    return given.source


def _given() -> Given:
    """What replicas are made of; a first one is started if there is none.

    Raises:
        ServeError: there is no endpoint, or no replica is up in time.
    """
    if NAME not in serve.status().applications:
        raise ServeError("no endpoint runs on this Ray", fix="start one: lc-ray deploy ARTIFACT --platform ray")
    try:
        given: Given = serve.get_app_handle(NAME).given.remote().result(timeout_s=_PATIENCE)
    except (TimeoutError, RayServeException) as error:
        told = str(error) or f"none is up after {_PATIENCE:.0f} s"
        raise ServeError(f"no replica tells what is served: {told}", fix="`serve shutdown` ends the endpoint; deploy its models anew then") from None
    return given


def _redeploy(given: Given, state: State) -> None:
    """Run the application with another state, or with the former one if that fails.

    Raises:
        ServeError: new replicas can't start, or are not up in time, or see `predictions.alike`; what was served goes on.
    """
    if state == given.source:
        return
    versions = (one for models in (_state(given).models, state.models) for known in models.values() for one in known)
    predictions.alike(given.spec.log, (artifact.read(one.path, verify=False).manifest for one in versions))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        _run(given._replace(source=state))
    except BaseException as error:
        with contextlib.suppress(ServeError):  # those that served go on, also where no other can take their place
            _run(given)
        if isinstance(error, ServeError):
            raise ServeError(f"not replaced, what was served goes on: {error}", state.url) from None
        raise


def _run(given: Given) -> None:
    """Run the application, and wait until all its replicas are of this kind.

    Raises:
        ServeError: they can't start, or are not up in time.
    """
    serve.run_many([serve.RunTarget(app.bound(given), name=NAME, route_prefix="/")], wait_for_applications_running=False)
    end = time.monotonic() + _PATIENCE
    while (now := serve.status().applications[NAME]).status != ApplicationStatus.RUNNING:
        told = app.reason(now.deployments[NAME].message if NAME in now.deployments else now.message)
        if now.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServeError(told)
        if time.monotonic() > end:
            raise ServeError(f"new replicas are not up after {_PATIENCE:.0f} s: {told}", fix="is there room for one more beside those that run?")
        time.sleep(0.2)


@contextlib.contextmanager
def passing() -> Iterator[None]:
    """End what is served meanwhile, which is nobody else's. Ray keeps a note until then: where this is killed, who is alone next ends it."""
    internal_kv._internal_kv_put(_PASSING, b"1")
    try:
        yield
    finally:
        _passed()


def _passed() -> None:
    app.stop()
    internal_kv._internal_kv_del(_PASSING)


def tidy() -> None:
    """End what a run that was killed has served; its key is lost, and what it reserves would be so for ever."""
    if internal_kv._internal_kv_exists(_PASSING):
        with alone():
            pass


class _Turn:
    """An actor of a name that only one can have, and which is free again when its owner ends."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Alone in changing what this Ray serves: others wait, on whichever machine. Who is alone already goes on."""
    if _is_alone.get():
        yield
        return
    while True:
        try:
            turn = ray.remote(**runtime.beside())(_Turn).options(name="update", namespace=NAME).remote()
            break
        except ValueError:
            time.sleep(0.5)
    token = _is_alone.set(True)
    try:
        if internal_kv._internal_kv_exists(_PASSING):
            _passed()
        yield
    finally:
        _is_alone.reset(token)
        ray.kill(turn)
