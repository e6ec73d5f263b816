"""OpenTelemetry: a span for each request, with one inside for each of its stages. All is configured by OpenTelemetry's own OTEL_* variables.

Needs the extra `otel`, and OTEL_EXPORTER_OTLP_ENDPOINT (or the one for traces), or OTEL_TRACES_EXPORTER. Replicas read them where they run.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lc_ray.serve.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_log = logging.getLogger(__name__)
_GROUP = "opentelemetry_traces_exporter"  # entry points by which exporters are found


def wanted(environment: Mapping[str, str]) -> str:
    """Name of the exporter that the environment asks for; "" for none."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    name = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(environment.get(v) for v in _ENDPOINTS) else "")
    if name == "otlp":
        protocol = next((environment[v] for v in _PROTOCOLS if environment.get(v)), "http/protobuf")
        return {"grpc": "otlp_proto_grpc"}.get(protocol, "otlp_proto_http")
    return "" if name == "none" else name


def spans() -> Spans | None:
    """Where requests' spans go; None if the environment asks for none, or the exporter that it asks for is not installed."""
    if not (name := wanted(os.environ)):
        return None
    found = importlib.metadata.entry_points(group=_GROUP, name=name)
    if not found:
        _log.warning("requests are not traced: no exporter '%s' of OpenTelemetry is installed; install lc_ray[otel]", name)
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "lc_ray"}
    provider = TracerProvider(resource=Resource.create(service))
    provider.add_span_processor(BatchSpanProcessor(next(iter(found)).load()()))
    return Spans(provider)


class Spans:
    """Makes spans of requests that were answered; they have the times that were measured.

    Args:
        provider: of OpenTelemetry's SDK.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.trace, self.provider, self.propagator = trace, provider, TraceContextTextMapPropagator()
        self.tracer = provider.get_tracer("lc_ray")

    def write(self, records: Iterable[Record]) -> None:
        """Make the spans of requests: inside the caller's span, if `traceparent` names one."""
        for seen in records:
            parent = self.propagator.extract({"traceparent": seen.trace}) if seen.trace else None
            kind, attributes = self.trace.SpanKind.SERVER, _attributes(seen)
            name = f"{seen.method} {seen.route}".rstrip()
            whole = self.tracer.start_span(name, parent, kind, attributes, start_time=_nanoseconds(seen, seen.began))
            if seen.status >= 500:
                whole.set_status(self.trace.StatusCode.ERROR, seen.error)
            inside = self.trace.set_span_in_context(whole)
            for stage, began, ended in seen.spans:
                self.tracer.start_span(stage, inside, start_time=_nanoseconds(seen, began)).end(_nanoseconds(seen, ended))
            whole.end(_nanoseconds(seen, seen.ended))


def _nanoseconds(seen: Record, moment: float) -> int:
    """A moment on the monotonic clock, since 1970."""
    return int((seen.time + moment - seen.began) * 1e9)


def _attributes(seen: Record) -> dict[str, str | int]:
    """By the names of OpenTelemetry's semantic conventions, where they have one."""
    found: dict[str, str | int] = {
        "http.request.method": seen.method,
        "http.response.status_code": seen.status,
        "http.route": seen.route,
        "client.address": seen.client,
        "error.type": seen.error,
        "lc_ray.request_id": seen.id,
        "lc_ray.key": seen.key,
        "lc_ray.model": seen.model,
        "lc_ray.version": seen.version,
        "lc_ray.rows": seen.rows,
    }
    return {name: value for name, value in found.items() if value != ""}
