"""The job file's `serve` section: the endpoint."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from lc_ray.errors import SpecError
from lc_ray.section import Section, problems
from lc_ray.units import Bytes, Seconds


class ReplicasSpec(Section):
    """Copies of the served models, as many as requests need."""

    min: int = Field(1, ge=0, description="0 lets the last one go when no request has come for `idle`; the next request waits for a new one")
    max: int = Field(1, ge=1)
    cpu: float = Field(1.0, ge=0)
    gpu: float = Field(0.0, ge=0, le=1, description="that a copy has for itself, for models that are not int8; with 0 vLLM uses those that are there")
    idle: Seconds = Field(600.0, description="after which a copy that is not needed goes")
    models: int | None = Field(None, ge=1, description="in memory, those that ran last; others are loaded when asked; all stay if not given")

    @model_validator(mode="after")
    def _order(self) -> ReplicasSpec:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class BatchSpec(Section):
    """Dynamic batching of requests."""

    max: int = Field(32, ge=1)
    wait: Seconds = Field(0.005, description="how long a batch waits for company, if the one before had any")
    tokens: int = Field(32768, ge=1, description="of a language model: positions that running answers may hold together; more requests wait")


class UrlsSpec(Section):
    """Pictures and sounds that requests name by URL. None is fetched unless its host is allowed, and never from a private address."""

    allow: tuple[str, ...] = Field((), description="hosts, or prefixes that end in /, for example https://bucket.example.com/photos/")
    max: Bytes = Field("10MiB", description="most bytes that the files of one request may have together")  # type: ignore[assignment]
    timeout: Seconds = Field(5.0, description="longest time that the files of one request may take")

    @field_validator("allow")
    @classmethod
    def _whole(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            prefix = entry.startswith(("http://", "https://")) and entry.endswith("/") and entry.count("/") >= 3
            if not prefix and (not entry or "/" in entry or "*" in entry):
                raise ValueError(f"'{entry}' is neither a host nor a prefix such as https://bucket.example.com/photos/")
        return value


class RateSpec(Section):
    """Most requests of one API key, in each replica; more are answered 429."""

    requests: int = Field(ge=1, description="that may come at once")
    per: Seconds = Field(60.0, gt=0, description="time in which as many may come again")


class TlsSpec(Section):
    """HTTPS instead of HTTP. Ray Serve's HAProxy has none, so that its own, slower proxy answers then."""

    certificate: str = Field(description="PEM file, with the certificates between it and the root's")
    key: str = Field(description="PEM file of its private key, without a password")


class LogSpec(Section):
    """A log of rows and their answers, as JSON Lines. Of a picture or sound it keeps the sha256 and size."""

    path: str = Field(description="folder, on each replica's machine")
    sample: float = Field(1.0, gt=0, le=1, description="share of the requests")
    redact: tuple[str, ...] = Field((), description="columns that are left out")


class ServeSpec(Section):
    """The endpoint."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535)
    grpc_port: int | None = Field(None, ge=1, le=65535, description="of the Open Inference Protocol over gRPC, which is off without one")
    replicas: ReplicasSpec = ReplicasSpec()
    batch: BatchSpec = BatchSpec()
    queue: int = Field(512, ge=1, description="requests that may wait; more are answered 503")
    max_body: Bytes = Field("10MiB", description="largest request body")  # type: ignore[assignment]
    max_instances: int = Field(256, ge=1, description="most rows in one request")
    max_media: int = Field(200_000_000, ge=1, description="most pixels and samples that pictures and sounds of one request have together")
    timeout: Seconds = Field(30.0, gt=0, description="longest time a request may take")
    urls: UrlsSpec = UrlsSpec()
    rate: RateSpec | None = None
    access_log: str | None = Field(None, description="file to which each request adds a line of JSON; - is the replica's standard error")
    log: LogSpec | None = None
    tls: TlsSpec | None = None

    @model_validator(mode="after")
    def _plain(self) -> ServeSpec:
        if self.tls and self.grpc_port:
            raise ValueError("Ray Serve has no TLS for gRPC: leave out grpc_port or tls, or put a proxy with TLS in front")
        if self.grpc_port == self.port:
            raise ValueError("grpc_port and port are the same: HTTP and gRPC need a port each")
        return self


def parse(fields: dict[str, Any]) -> ServeSpec:
    """The section alone, as endpoints are started with it.

    Raises:
        SpecError: names each wrong field.
    """
    try:
        return ServeSpec.model_validate(fields)
    except ValidationError as error:
        raise SpecError(problems(error, ServeSpec, "serve.", "serve")) from None
