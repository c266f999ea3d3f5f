"""Numbers of the service in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rollout.service.work import Done, EngineState

ENDPOINTS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/infill",
    "/v1/rollouts",
    "/v1/models",
    "/v1/samplers",
    "/healthz",
    "/metrics",
    "/",
)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(frozen=True)
class Seen:
    """A request under way."""

    status: Callable[[int], None]


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["endpoint", "status"]
        self._requests = Counter("unmask_requests", "Requests answered.", labels, registry=self.registry)
        self._seconds = Histogram(
            "unmask_request_seconds", "Time to the end of an answer.", ["endpoint"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._under_way = Gauge("unmask_requests_under_way", "Requests now.", registry=self.registry)
        self._answers = Counter("unmask_answers", "Samples finished.", ["finish_reason"], registry=self.registry)
        self._tokens = Counter("unmask_answer_tokens", "Tokens of finished samples.", registry=self.registry)
        self._forwards = Counter("unmask_answer_forwards", "Forwards of finished samples.", registry=self.registry)
        self._engine = {
            name: Gauge(f"unmask_engine_{name}", text, ["replica"], registry=self.registry)
            for name, text in (
                ("active", "Sequences being denoised."),
                ("waiting", "Sequences that wait for a place."),
                ("steps", "Steps since the start."),
                ("forwards", "Forwards of finished sequences since the start."),
                ("tokens", "Tokens of finished sequences since the start."),
                ("cancelled", "Sequences called off since the start."),
                ("busy_s", "Seconds inside steps since the start."),
                ("weights_version", "Version of the weights."),
            )
        }

    @contextmanager
    def request(self, path: str) -> Iterator[Seen]:
        """Count a request, its time and its status; one without an answer has status 0."""
        endpoint = path if path in ENDPOINTS else "other"
        status, began = [0], time.perf_counter()
        self._under_way.inc()
        try:
            yield Seen(lambda code: status.__setitem__(0, code))
        finally:
            self._under_way.dec()
            self._requests.labels(endpoint, str(status[0])).inc()
            self._seconds.labels(endpoint).observe(time.perf_counter() - began)

    def answered(self, done: Done) -> None:
        """Count a finished sample."""
        self._answers.labels(done.finish_reason).inc()
        self._tokens.inc(done.length)
        self._forwards.inc(done.num_forwards)

    def page(self, states: Iterable[EngineState]) -> bytes:
        """The whole text, with the engines as they are now."""
        for gauge in self._engine.values():
            gauge.clear()
        for state in states:
            for name, gauge in self._engine.items():
                gauge.labels(state.replica).set(getattr(state, name))
        return generate_latest(self.registry)
