"""What a process did when: one line a span, in a file beside its log.

    logs/attempt_1/rollout-0.spans.jsonl
    {"name": "generate", "start": 1760000000.123456, "seconds": 2.25}

A line is written when its span ends, so a process that is killed loses the span that it was in and no other. Starts are
seconds since 1970 by the clock of the machine the process runs on. `cluster.timeline` reads the files of a run.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIX = ".spans.jsonl"


class SpanFile:
    """The spans of one process; safe to use from several threads."""

    def __init__(self, log_dir: Path | None, name: str) -> None:
        """Keeps nothing where there is no folder, or this machine does not see it."""
        self._path = log_dir / f"{name}{SUFFIX}" if log_dir is not None and log_dir.is_dir() else None
        self._lock = threading.Lock()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Records the body, however it ends."""
        start, began = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.add(name, start, time.perf_counter() - began)

    def add(self, name: str, start: float, seconds: float) -> None:
        """Records a span that has ended."""
        if self._path is None:
            return
        line = json.dumps({"name": name, "start": round(start, 6), "seconds": round(seconds, 6)})
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:  # a full disk must not stop the work that is being watched
            logger.warning("no more spans in %s: %s", self._path, error)
            self._path = None
