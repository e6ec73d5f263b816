"""Which versions of which models an endpoint serves, and each one's share of the requests.

    STATE/endpoints/MACHINE/PORT-NUMBER/state.json     what is served, and what was before
    STATE/endpoints/MACHINE/PORT-NUMBER/haproxy        what runs Serve's HAProxy, see front.py
    STATE/endpoints/MACHINE/PORT-NUMBER/models/DIGEST/ copies of the artifacts: whatever becomes of theirs changes nothing of what is served

STATE is `~/.local/state/lc_ray`, below XDG_STATE_HOME if that is set; machines may share it. Replicas read the file when
they start, also in place of one that died.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from lc_ray import artifact
from lc_ray.errors import ArtifactError, ServeError
from lc_ray.section import Section
from lc_ray.serve import front
from lc_ray.storage import whole_folder

_FILE = "state.json"
_TURN, _STARTS = "\0lc_ray.starting", 60.0  # seconds that another endpoint may take to start
_KEPT = 10  # earlier states of a model


class Version(Section):
    """An artifact that is served.

    Attributes:
        path: its folder.
        digest: which it has.
        weight: its share of the requests that ask for no version.
    """

    path: str
    digest: str
    weight: float = Field(1.0, ge=0, le=1)


Versions = tuple[Version, ...]
Served = dict[str, Versions]  # by the model's name
Earlier = dict[str, tuple[Versions, ...]]


class State(Section):
    """An endpoint.

    Attributes:
        address: of its Ray.
        url: where it answers.
        models: that are served, by name.
        before: of each model, what was served earlier; the latest last.
        answers: whether it has started.
        keys: names of the API keys by their digests, if they have changed since.
    """

    address: str
    url: str
    models: Served
    answers: bool = True
    keys: dict[str, str] = Field(default_factory=dict)
    before: Earlier = Field(default_factory=dict)


def served(paths: Sequence[str | Path], digests: Sequence[str] = ()) -> Served:
    """The versions of artifacts. Of several with one name the last answers, unless a request asks for another.

    Args:
        paths: their folders.
        digests: that they must have, if that is known.

    Raises:
        ArtifactError: no artifact there, or another one.
    """
    found: Served = {}
    for path, digest in zip(paths, digests or [""] * len(paths), strict=True):
        one = artifact.read(path, verify=False)
        if digest and digest != one.digest:
            raise ArtifactError(f"this is {one.digest}, and {digest} is to be served", str(path), "put that one there, or deploy this one")
        name, new = one.manifest.name, Version(path=one.place, digest=one.digest)
        earlier = [v.model_copy(update={"weight": 0.0}) for v in found.get(name, ()) if v.digest != new.digest]
        found[name] = (*earlier, new)
    return found


def version(path: str | Path, weight: float = 1.0) -> tuple[str, Version]:
    """An artifact's name and version, its files where they are.

    Raises:
        ArtifactError: no artifact there, or an altered one.
    """
    found = artifact.read(path)
    return found.manifest.name, Version(path=found.place, digest=found.digest, weight=weight)


def rolled(state: State, name: str, new: Version) -> State:
    """The state in which a version has its weight, and the others share the rest as they did; at 1 they are gone.

    Raises:
        ServeError: there is no other to have the rest.
    """
    known = state.models.get(name, ())
    others = [v for v in known if v.digest != new.digest]
    held = sum(v.weight for v in others)
    if new.weight < 1 and not held:
        raise ServeError(f"no other version of '{name}' is served to have the rest of the requests", fix="leave out the weight")
    shared = [v.model_copy(update={"weight": v.weight * (1 - new.weight) / held}) for v in others] if new.weight < 1 else []
    if known == (*shared, new):
        return state
    return _changed(state, name, (*shared, new), (*state.before.get(name, ()), known)[-_KEPT:] if known else ())


def unlike(state: State, name: str, new: Version) -> list[str]:
    """What clients of the versions that are served should know of another one: columns, kind of task and labels that one of them lacks."""
    served, found = [], []
    for one in (one for one in state.models.get(name, ()) if one.weight):
        with contextlib.suppress(ArtifactError):  # it is gone since, and served from memory
            served.append(_meant(one))
    for what, now in _meant(new).items() if served else ():
        before = {word: None for one in served for word in one[what]}
        gone, come = ([word for word in some if word not in others] for some, others in ((before, now), (now, before)))
        if gone or come:
            found.append(f"{what} of '{name}' differ: {', '.join(gone) or 'none'} before, {', '.join(come) or 'none'} in this version instead")
    return found


def _meant(one: Version) -> dict[str, list[str]]:
    manifest = artifact.read(one.path, verify=False).manifest
    columns = [str(column["column"]) for column in manifest.inputs]
    return {"columns": columns, "tasks": [str(manifest.task["kind"])], "labels": list(map(str, manifest.task.get("labels", ())))}


def rolled_back(state: State, name: str) -> State:
    """The state in which a model is served as it was before its latest change.

    Raises:
        ServeError: no such model, or it was never changed.
    """
    _find(state, name)
    *earlier, last = state.before.get(name, ()) or ((),)
    if not last:
        fix = f"roll out another artifact: lc-ray rollout ARTIFACT; or serve it no more: lc-ray rollback {name} --remove"
        raise ServeError(f"nothing was served as '{name}' before", fix=fix)
    return _changed(state, name, last, tuple(earlier))


def without(state: State, name: str) -> State:
    """The state in which a model, and what was served of it before, is served no more.

    Raises:
        ServeError: no such model.
    """
    _find(state, name)
    models, before = ({one: what for one, what in known.items() if one != name} for known in (state.models, state.before))
    return state.model_copy(update={"models": models, "before": before})


def _find(state: State, name: str) -> None:
    if name not in state.models:
        raise ServeError(f"no model '{name}' is served", fix=f"served: {', '.join(state.models)}")


def _changed(state: State, name: str, versions: Versions, before: tuple[Versions, ...]) -> State:
    return state.model_copy(update={"models": state.models | {name: versions}, "before": state.before | {name: before}})


def root() -> Path:
    """The folder with a folder for each endpoint of this machine's user."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lc_ray" / "endpoints" / _machine()


def _machine() -> str:
    """This one's name among those that share a home."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}-{Path('/etc/machine-id').read_text('ascii')[:8]}"
    return socket.gethostname()


def runs(address: str) -> bool:
    """Whether there may be a Ray at an address: nobody refuses to listen there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5).close()
    except (ConnectionRefusedError, ValueError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Alone in starting an endpoint on this machine, unless another one takes long: Serve listens seconds after its ports were found free.

    Whoever starts one has the same name of a socket, of which Linux has one for all who share its ports, whatever user or container they are.
    """
    with socket.socket(socket.AF_UNIX) as turn:
        end = time.monotonic() + _STARTS
        while sys.platform == "linux" and time.monotonic() < end:
            try:
                turn.bind(_TURN)
                break
            except OSError:
                time.sleep(0.1)
        yield


def begin(port: int, address: str, url: str, models: Served) -> Path:
    """The folder of a new endpoint's state, in which its artifacts are kept. Those of endpoints that were killed are removed.

    Raises:
        ArtifactError: an artifact was altered.
        ServeError: nothing can be written there.
    """
    for left, state in _states():
        if state.address == address or not runs(state.address):
            _forget(left)
    folder = root() / f"{port}-{uuid.uuid4().hex[:8]}"
    write(folder, State(address=address, url=url, models={}, answers=False))  # by which what is kept is found if this is interrupted
    kept = {name: tuple(keep(folder, v.path, v.weight)[1] for v in versions) for name, versions in models.items()}
    write(folder, State(address=address, url=url, models=kept, answers=False))
    return folder


def of(address: str) -> Path | None:
    """The folder of the endpoint of a Ray."""
    return next((folder for folder, state in _states() if state.address == address), None)


def end(address: str) -> None:
    """Forget the endpoint of a Ray, which is no more."""
    if folder := of(address):
        _forget(folder)


def _forget(folder: Path) -> None:
    for left in (folder, front.files(folder)):
        shutil.rmtree(left, ignore_errors=True)


def read(folder: str | Path) -> State:
    """An endpoint's state.

    Raises:
        ServeError: there is none, or it can't be read.
    """
    try:
        return State.model_validate_json((Path(folder) / _FILE).read_bytes())
    except FileNotFoundError:
        raise ServeError("no endpoint runs here", str(folder), "start one: lc-ray serve ARTIFACT") from None
    except (OSError, ValidationError) as error:
        raise ServeError(f"the endpoint's state can't be read: {error}", str(folder)) from None


def write(folder: str | Path, state: State) -> None:
    """Keep an endpoint's state, whole or not at all.

    Raises:
        ServeError: nothing can be written there.
    """
    folder = Path(folder)
    fresh = folder / f".{uuid.uuid4().hex}"
    with _writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            fresh.write_text(state.model_dump_json(indent=1), "utf-8")
            os.replace(fresh, folder / _FILE)
        finally:
            fresh.unlink(missing_ok=True)
    _sweep(folder, state)


def keep(folder: str | Path, path: str | Path, weight: float = 1.0) -> tuple[str, Version]:
    """An artifact's name and version, its files kept below an endpoint's folder.

    Raises:
        ArtifactError: no artifact there, or an altered one.
        ServeError: nothing can be written there.
    """
    found = artifact.read(path)
    place = Path(folder).resolve() / "models" / found.digest
    with _writing(folder):
        if not artifact.exists(place):
            with whole_folder(place) as partial:
                for name in found.names:  # and nothing else that is there, such as a link to all of a disk
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(found.path / name, partial / name)
    return found.manifest.name, Version(path=str(place), digest=found.digest, weight=weight)


def find(port: int | None = None) -> Path:
    """The folder of the endpoint at a port, or of the only one there is.

    Raises:
        ServeError: there is none, or several of which none is named.
    """
    ports = {folder: urlsplit(state.url).port for folder, state in _running()}
    chosen = [folder for folder, at in ports.items() if port in (None, at)]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise ServeError("several endpoints run here", fix=f"give --port: {', '.join(map(str, ports.values()))}")
    where = f"port {port}" if port is not None else ""
    raise ServeError("no endpoint that one machine serves alone runs here", where, "start one: lc-ray serve ARTIFACT")


def running() -> list[State]:
    """The endpoints of this machine's user that answer."""
    return [state for _, state in _running()]


def note(folder: Path, **fields: Any) -> None:
    """Change fields of an endpoint's state, such as that it answers.

    Raises:
        ServeError: nothing can be written there.
    """
    with locked(folder):
        write(folder, read(folder).model_copy(update=fields))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in changing an endpoint's state: others wait."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _states() -> Iterator[tuple[Path, State]]:
    """Of those whose state can be read."""
    for file in sorted(root().glob(f"*/{_FILE}")):
        with contextlib.suppress(ServeError):
            yield file.parent, read(file.parent)


def _running() -> list[tuple[Path, State]]:
    """Of those that have started, and were not killed."""
    return [(folder, state) for folder, state in _states() if state.answers and runs(state.address)]


@contextlib.contextmanager
def _writing(folder: str | Path) -> Iterator[None]:
    """What can't be written below an endpoint's folder, as an error of ours."""
    try:
        yield
    except OSError as error:
        told = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror or error  # which lists all that failed
        fix = "make room there, or set XDG_STATE_HOME to a folder that can be written before the endpoint starts"
        raise ServeError(f"the endpoint's state can't be kept: {told}", str(folder), fix) from None


def _sweep(folder: Path, state: State) -> None:
    """Remove kept artifacts that neither are nor can be served again."""
    lists = [*state.models.values(), *(versions for earlier in state.before.values() for versions in earlier)]
    wanted = {Path(version.path) for versions in lists for version in versions}
    for place in (folder / "models").glob("*"):
        if place.resolve() not in wanted and not place.name.startswith("."):
            shutil.rmtree(place, ignore_errors=True)


def weights(models: Mapping[str, Versions]) -> dict[str, dict[str, float]]:
    """Each version's share of its model's requests."""
    return {name: {version.digest: version.weight for version in versions} for name, versions in models.items()}
