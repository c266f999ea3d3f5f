"""Seconds by stage of a step, and the spans they are made of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.spans import SpanFile


class Stopwatch:
    """Adds up the time spent in named stages since the last lap."""

    def __init__(self, spans: SpanFile | None = None) -> None:
        self._spans = spans or SpanFile(None, "")
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lap_start = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the body to a stage; stages do not nest."""
        start = time.monotonic()
        try:
            with self._spans.span(name):
                yield
        finally:
            self._seconds[name] += time.monotonic() - start

    def lap(self) -> dict[str, float]:
        """Seconds of each stage, and of the whole `step`, since the last lap; starts the next."""
        now = time.monotonic()
        seconds = {**self._seconds, "step": now - self._lap_start}
        self._seconds.clear()
        self._lap_start = now
        return seconds
