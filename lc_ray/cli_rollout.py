"""Commands on an endpoint that runs: replace its models, go back, show what it serves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lc_ray.errors import ServeError, SpecError
from lc_ray.terminal import ArtifactPath, AsJson, err, list_out, out

if TYPE_CHECKING:
    from lc_ray.serve.rollout import State, Version

    Kept = Callable[..., tuple[str, Version]]  # what makes a version of an artifact's folder and weight

_PORT = "port of the endpoint; not needed if only one runs on this machine, or with RAY_ADDRESS"
Port = Annotated[int | None, typer.Option(help=_PORT, show_default=False)]


def rollout(
    artifact: ArtifactPath,
    weight: Annotated[str, typer.Option(help="share of the requests, such as 10%; the versions that are served now keep the rest")] = "100%",
    port: Port = None,
) -> None:
    """Replace a model of a running endpoint by a new version, or give that a share of its requests. No request fails.

    A model of another name is served in addition. If the new version can't be loaded, nothing changes.
    """
    from lc_ray.artifact import read
    from lc_ray.units import fraction

    try:
        share = fraction(weight)
    except ValueError as error:
        raise SpecError(str(error), "--weight") from None
    if not 0 < share <= 1:
        fix = "`lc-ray rollback NAME` takes a version out again, and with --remove the model"
        raise SpecError("expected more than 0 and at most 100%", "--weight", fix)
    read(artifact, verify=False)  # what is no artifact is told at once

    def rolled(state: State, kept: Kept) -> State:
        from lc_ray.serve import rollout as states

        name, new = kept(artifact, share)
        changed = states.rolled(state, name, new)
        for sentence in states.unlike(state, name, new):
            err.print(f"[yellow]{escape(sentence)}[/]")
        return changed

    _change(port, rolled)


def rollback(
    name: Annotated[str, typer.Argument(help="name of the model", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="stop serving the model; the endpoint must have another one")] = False,
    port: Port = None,
) -> None:
    """Undo the latest rollout of a model. Given again, it goes one further back."""

    def rolled_back(state: State, kept: Kept) -> State:
        from lc_ray.serve import rollout as states

        if not remove:
            return states.rolled_back(state, name)
        rest = states.without(state, name)
        if not rest.models:
            raise ServeError(f"'{name}' is the endpoint's only model", state.url, "roll out the one that is to take its place, or end the endpoint")
        return rest

    _change(port, rolled_back)


def endpoints(as_json: AsJson = False) -> None:
    """List running endpoints, their models, and each version's share of the requests: those of this machine, or of the cluster of RAY_ADDRESS."""
    from lc_ray import runtime
    from lc_ray.serve import rollout as states

    if os.environ.get("RAY_ADDRESS"):
        from lc_ray.serve import update

        with runtime.session():
            found = [update.served()]
    else:
        found = states.running()
    if as_json:
        print(json.dumps([{"url": state.url, "models": states.weights(state.models)} for state in found]))
    else:
        _show(found)


def _change(port: int | None, wanted: Callable[[State, Kept], State]) -> None:
    """Have an endpoint serve the state that is wanted in place of its state now, and show it."""
    if not _elsewhere(port):
        # Its Ray asks for one, which Ray sends only if it is told so before it is imported; a cluster may have none.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from lc_ray.serve import update

    with _connected(port), update.changing() as (state, kept, put):
        changed = wanted(state, kept)
        put(changed)
    _show([changed])


def _elsewhere(port: int | None) -> bool:
    """Whether the endpoint is that of the cluster of RAY_ADDRESS, and none of this machine."""
    return port is None and bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def _connected(port: int | None) -> Iterator[None]:
    """Connected to the Ray of an endpoint."""
    import logging

    import ray

    from lc_ray import runtime
    from lc_ray.serve import rollout as states

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if _elsewhere(port):
        with runtime.session():
            yield
        return
    state = states.read(states.find(port))
    try:
        runtime.attach(state.address)
    except ConnectionError:
        raise ServeError("it does not run any more", state.url, "start it again: lc-ray serve ARTIFACT") from None
    try:
        yield
    finally:
        ray.shutdown()


def _show(found: list[State]) -> None:
    table = Table("endpoint", "model", "version", "requests")
    for state in found:
        for name, versions in state.models.items():
            for version in versions:
                table.add_row(state.url, name, version.digest, f"{version.weight:.0%}")
    if table.row_count:
        list_out(table)
    else:
        out.print("no endpoint runs here; start one: lc-ray serve ARTIFACT")
