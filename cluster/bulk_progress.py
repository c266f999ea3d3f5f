"""How far a bulk generation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.progress import clock
from cluster.terminal import console

LINE_EVERY_S = 10.0
"""Time between two plain lines."""


@contextmanager
def bulk_progress(num_prompts: int) -> Iterator[Callable[[int], None]]:
    """A function that hears how many prompts have been answered since its last call."""
    shared = console(stderr=True)
    if not shared.is_terminal:
        yield PlainProgress(shared, num_prompts)
        return
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shared, transient=True) as progress:
        bar = progress.add_task("prompts", total=num_prompts)
        yield lambda count: progress.advance(bar, count)


class PlainProgress:
    """A line at the first call, at the last one, and every `every_s` in between."""

    def __init__(
        self, shared: Console, num_prompts: int, *, every_s: float = LINE_EVERY_S, what: str = "prompts"
    ) -> None:
        self._console, self._num_prompts, self._every_s, self._what = shared, num_prompts, every_s, what
        self._num_first = self._num_done = 0
        self._started: float | None = None
        self._last_line = 0.0

    def __call__(self, count: int) -> None:
        """`count` more prompts are done; the first call tells how many an earlier attempt has left."""
        self._num_done += count
        now = time.monotonic()
        if self._started is None:
            self._started, self._num_first = now, count
        elif self._num_done < self._num_prompts and now - self._last_line < self._every_s:
            return
        self._last_line = now
        self._console.print(f"{self._what} {self._num_done}/{self._num_prompts}{self._eta(now - self._started)}")

    def _eta(self, seconds: float) -> str:
        made = self._num_done - self._num_first
        left = self._num_prompts - self._num_done
        return f"  eta {clock(left * seconds / made)}" if made and left else ""
