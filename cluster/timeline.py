"""The timeline of a run: which process did what when, as a Chrome trace and as a table.

`trace.json` in the run folder is in the Trace Event Format of Chrome ("JSON object format", complete events `X` and
metadata events `M`): open it with https://ui.perfetto.dev or chrome://tracing. A row is a process of the run (driver,
`learner-0`, `rollout-0`, `grader-0`, ...); spans of one process that overlap lie on tracks of their own. All attempts
of a resumed run are on one time axis, so that the gap between a crash and the next attempt shows as one. Clocks of
several machines are taken as they are.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.spans import SUFFIX

TRACE_FILE = "trace.json"
DRIVER = "driver"
MAX_EVENTS = 200_000
"""Spans in a trace; the newest ones. A viewer in a browser takes about so many."""
STAGES = {
    "generate": "generate",
    "grade": "grade",
    "reward": "grade",
    "update": "update",
    "sft_step": "update",
    "weights": "publish",
    "publish": "publish",
    "sync": "sync",
    "fetch_weights": "sync",
    "load_weights": "sync",
    "version": "sync",
    "save": "checkpoint",
    "checkpoint": "checkpoint",
    "evaluate": "evaluate",
    "sft_evaluate": "evaluate",
    "load": "start",
    "start": "start",
    "self_test": "start",
    "metadata": "start",
    "address": "start",
    "free_port": "start",
}
"""Stage of a step that a span belongs to, by its name; others are `other`."""


@dataclass(frozen=True)
class Span:
    """One thing that a process did."""

    process: str
    name: str
    start: float
    """Seconds since 1970."""
    seconds: float

    @property
    def end(self) -> float:
        """Seconds since 1970."""
        return self.start + self.seconds

    @property
    def stage(self) -> str:
        """Of a training step."""
        return STAGES.get(self.name, "other")


def read_spans(run_dir: Path) -> list[Span]:
    """All spans of all attempts, by start; a line that was cut off by the end of its process is left out."""
    spans = []
    for path in sorted(run_dir.glob(f"logs/attempt_*/*{SUFFIX}")):
        process = path.name.removesuffix(SUFFIX)
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                fields = json.loads(line)
                spans.append(Span(process, fields["name"], float(fields["start"]), float(fields["seconds"])))
            except (ValueError, KeyError, TypeError):
                continue
    return sorted(spans, key=lambda span: span.start)


def write_trace(run_dir: Path) -> Path:
    """Writes `trace.json` of a run, whether it still goes on or not."""
    path = run_dir / TRACE_FILE
    path.write_text(json.dumps(chrome_trace(read_spans(run_dir)[-MAX_EVENTS:])) + "\n", encoding="utf-8")
    return path


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """The trace as JSON; times in microseconds from the first span."""
    by_process = defaultdict(list)
    for span in spans:
        by_process[span.process].append(span)
    origin = min((span.start for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for number, process in enumerate(sorted(by_process, key=_place), start=1):
        events += [
            {"ph": "M", "name": "process_name", "pid": number, "args": {"name": process}},
            {"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": number}},
        ]
        for span, track in zip(by_process[process], tracks(by_process[process]), strict=True):
            times = {"ts": round(1e6 * (span.start - origin)), "dur": max(1, round(1e6 * span.seconds))}
            events.append({"ph": "X", "name": span.name, "cat": span.stage, "pid": number, "tid": track, **times})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"start_unix_s": origin}}


def tracks(spans: Sequence[Span]) -> list[int]:
    """A track for each span, given by start, on which nothing else happens meanwhile: the lowest that is free."""
    free_at: list[float] = []
    chosen = []
    for span in spans:
        track = next((place for place, end in enumerate(free_at) if end <= span.start), len(free_at))
        if track == len(free_at):
            free_at.append(0.0)
        free_at[track] = span.end
        chosen.append(track)
    return chosen


@dataclass(frozen=True)
class Busy:
    """How a process spent the time of a run."""

    process: str
    num_spans: int
    seconds: Mapping[str, float]
    """By stage; overlapping spans each count in full."""
    covered: float
    """Share of the time in which the process was in some span."""


def busy(spans: Sequence[Span]) -> list[Busy]:
    """What each process did between the first start and the last end, the driver first."""
    if not spans:
        return []
    whole = max(span.end for span in spans) - spans[0].start
    rows = []
    for process in sorted({span.process for span in spans}, key=_place):
        own = [span for span in spans if span.process == process]
        seconds: defaultdict[str, float] = defaultdict(float)
        for span in own:
            seconds[span.stage] += span.seconds
        rows.append(Busy(process, len(own), dict(seconds), _union(own) / whole if whole else 0.0))
    return rows


def _union(spans: Iterable[Span]) -> float:
    """Seconds in which at least one of the spans, given by start, was going on."""
    covered, until = 0.0, float("-inf")
    for span in spans:
        covered += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return covered


def _place(process: str) -> tuple[int, str, int]:
    """The driver first, then by kind and number: `rollout-2` before `rollout-10`."""
    match = re.fullmatch(r"(.*?)-?(\d+)", process)
    kind, number = (match[1], int(match[2])) if match else (process, -1)
    return (0 if process == DRIVER else 1, kind, number)
