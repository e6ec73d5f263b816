"""The jobs of one cluster, through its dashboard: Ray Jobs, with our errors and only our jobs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import ssl
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lc_ray.cluster.clusters import Cluster
from lc_ray.errors import ClusterError
from lc_ray.storage import storage_path

TAG = "lc_ray"  # in the metadata of our jobs: their key
_ANSWERS = 10.0  # seconds
_PATIENCE = 120.0  # seconds for which a cluster may be out of reach while a job is followed
_SILENCE = 60.0  # seconds after which a connection is given up, or made anew: some stay open when there is no more to come
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A job as the cluster describes it.

    Attributes:
        id: by which it is called.
        name: of the run.
        key: of all that its result depends on.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: why it is in that state.
        started: seconds since 1970, if it has.
        ended: likewise.
        node: on which its driver ran.
        results: URI to which the finished run is copied, if it is.
    """

    id: str
    name: str
    key: str
    status: str
    message: str
    started: float | None
    ended: float | None
    node: str | None
    results: str | None = None

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.status not in _OVER


class Jobs:
    """Submits, describes, follows and stops jobs.

    Args:
        cluster: whose.

    Raises:
        ClusterError: it can't be reached, or refuses the token.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.address = cluster, cluster.address.rstrip("/")
        token = cluster.token()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._verify = ssl.create_default_context(cafile=_ca(cluster)) if self.address.startswith("https") else False
        _direct(self.address)
        answer = self._get("/api/version")
        try:
            self.version = str(answer.json()["ray_version"])
        except (ValueError, LookupError, TypeError):
            raise ClusterError("something else than Ray's dashboard answers", self.address, "give the address of the dashboard, port 8265") from None
        with _told(self.address), _only(self.address):
            from ray.job_submission import JobSubmissionClient

            for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
                logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
            self._client = JobSubmissionClient(self.address, headers=dict(self._headers), verify=_ca(cluster) or True)
            self._client._do_request = functools.partial(self._client._do_request, timeout=_SILENCE)  # it would wait without end

    def all(self) -> list[Job]:
        """Our jobs, oldest first."""
        with _told(self.address):
            found = [_job(details) for details in self._client.list_jobs() if TAG in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started or time.time())

    def get(self, name: str) -> Job:
        """A job by its id.

        Raises:
            ClusterError: there is none.
        """
        with _told(self.address, name):
            return _job(self._client.get_job_info(name))

    def submit(self, command: str, name: str, metadata: dict[str, str], environment: dict[str, Any]) -> None:
        """Start a job.

        Args:
            command: for a shell.
            name: its id, which must be new.
            metadata: kept with it.
            environment: Ray's runtime_env; what it names here is uploaded.
        """
        with _told(self.address, name):
            self._client.submit_job(entrypoint=command, submission_id=name, metadata=metadata, runtime_env=environment)

    def output(self, command: str) -> str:
        """What a short command prints on the cluster.

        Raises:
            ClusterError: it failed; with what it said.
        """
        name = f"lc_ray-{uuid.uuid4().hex[:12]}"
        self.submit(command, name, {}, {})
        job = self._over(name)
        said = self.said(name)
        with _told(self.address, name):
            self._client.delete_job(name)
        if job.status != "SUCCEEDED":
            told = said.rpartition(command)[2].strip()  # Ray prints the command first
            raise ClusterError(f"a first look at the cluster failed: {told or job.message}", self.address)
        return said

    def said(self, name: str) -> str:
        """All that a job has printed by now."""
        with _told(self.address, name):
            return str(self._client.get_job_logs(name))

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes: address, state, and what they have."""
        found = self._get("/api/v0/nodes?detail=1&limit=10000").json()["data"]["result"]["result"]
        named = {"cpu": "CPU", "gpu": "GPU", "memory": "memory"}
        return [
            {"address": n["node_ip"], "state": n["state"], **{key: n["resources_total"].get(name, 0) for key, name in named.items()}} for n in found
        ]

    def stop(self, name: str) -> bool:
        """End a job, and wait until it has ended; whether it was active."""
        with _told(self.address, name):
            active = bool(self._client.stop_job(name))
        self._over(name)
        return active

    def _over(self, name: str) -> Job:
        """A job, once it has ended."""
        while (job := self.get(name)).active:
            time.sleep(0.25)
        return job

    def follow(self, name: str, take: Callable[[str], None]) -> Job:
        """Give `take` each line that a job prints, from the first on, until it is over. A connection that breaks, or is silent, is made anew."""
        seen, lost = 0, None
        while True:
            try:
                seen = asyncio.run(self._tail(name, take, seen))
                if not (job := self.get(name)).active:
                    with contextlib.suppress(ClusterError):  # its node may be gone
                        for line in filter(None, self.said(name).split("\n")[seen:]):  # what a connection that broke has not brought
                            take(line)
                    return job
                lost = None
            except ClusterError:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _PATIENCE:
                    raise
            time.sleep(1)

    async def _tail(self, name: str, take: Callable[[str], None], seen: int) -> int:
        """Takes lines after the first `seen` ones; returns how many there are now."""
        number, rest = 0, ""
        with contextlib.suppress(*_broken(), TimeoutError):
            async with asyncio.timeout(_SILENCE) as limit:
                async for text in self._client.tail_job_logs(name):
                    limit.reschedule(asyncio.get_running_loop().time() + _SILENCE)
                    *lines, rest = (rest + text).split("\n")
                    for line in lines:
                        number += 1
                        if number > seen:
                            take(line)
        return max(number, seen)

    def download(self, job: Job, name: str, target: Path) -> None:
        """A file that a job has left in its folder below the logs of its node, streamed.

        Raises:
            ClusterError: it is not there, or the cluster can't be reached.
        """
        query = {"node_id": job.node or "", "filename": f"{TAG}/{job.id}/{name}", "lines": "-1", "timeout": "3600"}
        asked = {"params": query, **self._http(read=60.0)}
        with _told(self.address, name), httpx.stream("GET", f"{self.address}/api/v0/logs/file", **asked) as answer:
            if answer.status_code != 200:
                fix = "submit the job again: what is finished is not done twice"
                raise ClusterError(f"{name} is not there any more: the cluster or its head was started anew", job.id, fix)
            with storage_path(target).whole() as out:
                for piece in answer.iter_bytes():
                    out.write(piece)

    def _http(self, read: float = _ANSWERS) -> dict[str, Any]:
        return {"headers": self._headers, "verify": self._verify, "timeout": httpx.Timeout(_ANSWERS, read=read)}

    def _get(self, path: str) -> httpx.Response:
        """Raises ClusterError with what to do about it: Ray's own client waits without end, and tells less."""
        try:
            answer = httpx.get(self.address + path, **self._http())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreached(error, self.address) from None
        if answer.status_code in (401, 403):
            what = "the cluster asks for a token" if answer.status_code == 401 else "the cluster refuses the token"
            fix = f"name its file as `token_file` of the cluster, or set RAY_AUTH_TOKEN (HTTP {answer.status_code})"
            raise ClusterError(what, self.address, fix)
        if answer.status_code != 200:
            raise ClusterError(f"answered HTTP {answer.status_code}, not as Ray's dashboard does", self.address)
        return answer


@contextlib.contextmanager
def _told(address: str, where: str = "") -> Iterator[None]:
    """Errors of Ray's client and of the network, as ours."""
    try:
        yield
    except _broken() as error:
        at = f"{address} {where}".strip()
        if isinstance(error, OSError):  # also those of requests, whose status codes are RuntimeErrors of Ray's client
            first: BaseException = error
            while first.__context__:  # which says it in fewest words
                first = first.__context__
            raise _unreached(first, at) from None
        told = _first(error)
        raise ClusterError(f"the cluster answered: {told}", at, "`lc-ray jobs list` has its jobs" if where and "code 404" in told else "") from None


def _unreached(error: BaseException, where: str) -> ClusterError:
    fix = "is it up, and is this the address of its dashboard (port 8265), reachable from here? The same command goes on with what is there then"
    return ClusterError(f"the cluster can't be reached: {error}", where, fix)


def _broken() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    return (RuntimeError, ConnectionError, AuthenticationError, httpx.HTTPError, requests.RequestException, aiohttp.ClientError)


def _first(error: Exception) -> str:
    """The sentence in an error, without the traceback that Ray's server sends along."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error: " in line] or lines or [type(error).__name__]
    return told[-1 if "Traceback" in str(error) else 0].strip()


def _direct(address: str) -> None:
    """Have a port of this machine, as kubectl forwards one, asked past a proxy of the environment, to which its name is its own machine's."""
    here = re.match(r"https?://(127\.0\.0\.1|localhost)(?![\w.-])", address)
    if here and not urllib.request.proxy_bypass(here[1]):
        known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, [known, here[1]]))


@contextlib.contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray's client takes an address from the environment over the one that it is given."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _ca(cluster: Cluster) -> str | None:
    if cluster.ca is None:
        return None
    file = Path(os.path.expanduser(cluster.ca))
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        raise ClusterError(f"no PEM file of certificates: {error}", str(file), "correct `ca` of the cluster") from None
    return str(file)


def _job(details: Any) -> Job:
    known = details.metadata or {}
    return Job(
        details.submission_id,
        known.get("name", ""),
        known.get(TAG, ""),
        str(getattr(details.status, "value", details.status)),
        (details.message or "").partition(", last available logs")[0],  # which are told beside it, as far as they matter
        details.start_time / 1000 if details.start_time else None,
        details.end_time / 1000 if details.end_time else None,
        details.driver_node_id,
        known.get("results") or None,
    )
