"""Workers whose memory grows without end: noticed when they take new weights, between two batches.

The measure is a process's own memory, without pages that it shares (weights in the object store). It is compared with
the largest of the first reports of the same process, because first batches allocate what later ones use again.
"""

from __future__ import annotations

NUM_FIRST_REPORTS = 3
MIN_GROWTH_BYTES = 2**30
"""Growth that is never held against a worker."""


class MemoryWatch:
    """A worker may grow to `factor` times its first memory, and by `MIN_GROWTH_BYTES` in any case; None: for ever."""

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._first: dict[str, list[int]] = {}

    def report(self, worker: str, num_bytes: int) -> str:
        """Takes a report in; says why the worker should be replaced, nothing if it should not. 0 bytes: unknown."""
        if self._factor is None or num_bytes == 0:
            return ""
        first = self._first.setdefault(worker, [])
        if len(first) < NUM_FIRST_REPORTS:
            first.append(num_bytes)
            return ""
        base = max(first)
        bound = int(max(self._factor * base, base + MIN_GROWTH_BYTES))
        if num_bytes <= bound:
            return ""
        return f"its memory grew from {base:,} to {num_bytes:,} bytes, above the bound of {bound:,}"

    def forget(self, worker: str) -> None:
        """A fresh process takes the worker's name."""
        self._first.pop(worker, None)
