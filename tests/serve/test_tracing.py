"""Spans of requests, by OpenTelemetry's own SDK."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import ask

from lc_ray.serve import tracing
from lc_ray.serve.background import Background
from lc_ray.serve.endpoint import Models, asgi

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def spans(endpoint, predictor):
    """spans(headers, instances) → the spans of one request."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    found = endpoint(predictor)

    def of(headers, instances):
        models = Models([found], found.spec)
        models.observers.background.append(Background("traces", tracing.Spans(provider).write))
        ask(asgi(models, {}), "POST", "/v1/models/tiny:predict", headers=headers, json={"instances": instances})
        models.observers.close()
        made = exporter.get_finished_spans()
        exporter.clear()
        return made

    return of


def test_a_request_is_a_span_and_so_are_its_stages_inside(spans, predictor):
    *stages, whole = spans({"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "abc"}, ["ok"])
    assert whole.name == "POST /v1/models/{name}:predict"
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert {stage.name for stage in stages} == {"prepare", "queue", "infer"}
    for stage in stages:
        assert stage.parent.span_id == whole.context.span_id
        assert whole.start_time <= stage.start_time <= stage.end_time <= whole.end_time
    wanted = {"http.response.status_code": 200, "lc_ray.request_id": "abc", "lc_ray.model": "tiny", "lc_ray.version": predictor.artifact.digest}
    assert wanted.items() <= dict(whole.attributes).items()


def test_a_request_that_is_not_to_be_sampled_is_not(spans):
    assert spans({"traceparent": f"00-{TRACE}-{PARENT}-00"}, ["ok"]) == ()


def test_nonsense_of_a_caller_begins_a_trace_of_its_own(spans):
    (whole,) = spans({"traceparent": "nonsense"}, "no list")
    assert whole.parent is None
    assert whole.attributes["error.type"] == "malformed_request"


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, ""),
    ],
)
def test_the_environment_chooses_the_exporter(environment, exporter):
    assert tracing.wanted(environment) == exporter


def test_an_exporter_that_is_not_installed_is_told_of_and_nothing_more(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "carrier_pigeon")
    assert tracing.spans() is None
    assert "lc_ray[otel]" in caplog.text


def test_spans_reach_a_collector(monkeypatch, endpoint, predictor):
    """Over HTTP, in OpenTelemetry's own protocol, as the environment says."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        found = endpoint(predictor)
        models = Models([found], found.spec)
        ask(asgi(models, {}), "GET", "/v1/models")
        models.observers.close()
        server.shutdown()
    (resource,) = ExportTraceServiceRequest.FromString(bodies[0]).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET /v1/models"]
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "lc_ray"
