"""What Prometheus is told: counted in each replica as requests are answered, and gathered from all replicas when it asks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lc_ray.serve.drift import index
from lc_ray.serve.record import Record

if TYPE_CHECKING:
    from lc_ray.serve.endpoint import Endpoint

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
_requests = Counter("lc_ray_requests", "Requests answered", ("route", *_MODEL, "status"), registry=REGISTRY)
_seconds = Histogram("lc_ray_request_seconds", "Time of requests that models ran, by stage", (*_MODEL, "stage"), registry=REGISTRY, buckets=_SECONDS)
_rows = Histogram("lc_ray_batch_rows", "Rows that ran together", _MODEL, registry=REGISTRY, buckets=_ROWS)
_tokens = Counter("lc_ray_tokens", "Tokens of prompts, of these what was read before, and of answers", (*_MODEL, "kind"), registry=REGISTRY)
_first = Histogram("lc_ray_first_token_seconds", "Time until an answer's first token", _MODEL, registry=REGISTRY, buckets=_SECONDS)
_dropped = Counter("lc_ray_dropped", "What logs and traces lost because it came too fast or could not be written", ("log",), registry=REGISTRY)


@functools.lru_cache(4096)
def _of(metric: Any, *labels: str) -> Any:
    """A metric with its labels set; finding it again costs a tenth of the library's own way."""
    return metric.labels(*labels)


def count(record: Record) -> None:
    """Count a request that was answered."""
    model, version = record.model, record.version
    _of(_requests, record.route, model, version, str(record.status)).inc()
    for stage, seconds in record.stages().items() if record.spans else ():
        _of(_seconds, model, version, stage).observe(seconds)
    if record.tokens_in:
        _of(_tokens, model, version, "prompt").inc(record.tokens_in)
        _of(_tokens, model, version, "cached").inc(record.tokens_cached)
        _of(_tokens, model, version, "answer").inc(record.tokens_out)
    if record.first_token is not None:
        _of(_first, model, version).observe(record.first_token)


def batch(model: str, version: str, rows: int) -> None:
    """Count a batch that ran."""
    _of(_rows, model, version).observe(rows)


def forget(model: str, version: str) -> None:
    """Tell no more of a version that is not served any more: an endpoint may see thousands."""
    for metric in (_requests, _seconds, _rows, _tokens, _first):
        metric.remove_by_labels({"model": model, "version": version})
    _of.cache_clear()


def dropped(log: str, items: int) -> None:
    """Count what a log lost."""
    _of(_dropped, log).inc(items)


def collect(endpoints: Iterable[Endpoint]) -> list[Metric]:
    """All that this process knows: what it counted, and how its models are now."""
    return [*REGISTRY.collect(), *_now(endpoints)]


def _now(endpoints: Iterable[Endpoint]) -> Iterator[Metric]:
    depth = GaugeMetricFamily("lc_ray_queue_depth", "Requests that wait", labels=_MODEL)
    running = GaugeMetricFamily("lc_ray_running_answers", "Answers of language models that are being made", labels=_MODEL)
    drift = GaugeMetricFamily("lc_ray_drift_psi", "Population stability index of the last rows", labels=(*_MODEL, "feature"))
    loaded = GaugeMetricFamily("lc_ray_model_loaded", "Whether a model is in memory", labels=_MODEL)
    about = GaugeMetricFamily("lc_ray_model_info", "Served models", labels=(*_MODEL, "task", "engine"))
    for endpoint in endpoints:
        labels, manifest = [endpoint.name, endpoint.version], endpoint.predictor.artifact.manifest
        depth.add_metric(labels, endpoint.waiting)
        loaded.add_metric(labels, endpoint.predictor.loaded)
        about.add_metric([*labels, manifest.task["kind"], manifest.engine], 1)
        for name, counts in endpoint.drift.counts().items():
            if (psi := index(endpoint.drift.features[name], counts)) is not None:
                drift.add_metric([*labels, name], psi)
        if endpoint.generator:
            running.add_metric(labels, endpoint.generator.running)
    yield from (depth, running, drift, loaded, about)


class Replicas(Collector):
    """What all replicas know, each with its name as the label `replica`.

    Args:
        found: what `collect` gave, by replica; a replica without a name is the only one, and needs no label.
    """

    def __init__(self, found: Mapping[str, Iterable[Metric]]) -> None:
        self.found = found

    def collect(self) -> Iterator[Metric]:
        """The metrics, each once with the samples of all replicas."""
        merged: dict[str, Metric] = {}
        for replica, metrics in sorted(self.found.items()):
            label = {"replica": replica} if replica else {}
            for metric in metrics:
                whole = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    if not sample.name.endswith("_created"):
                        whole.add_sample(sample.name, {**sample.labels, **label}, sample.value)
        yield from merged.values()
