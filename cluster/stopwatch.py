"""Seconds by stage of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the time spent in named stages since the last lap."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lap_start = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the body to a stage; stages do not nest."""
        start = time.monotonic()
        try:
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
