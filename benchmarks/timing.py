"""Timings in one process, taken in turn, and the machine they were taken on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of several ways to do the same work, run A B C A B C so that drift of the machine hits all of them."""

    seconds: Mapping[str, tuple[float, ...]]

    def ratio(self, name: str, baseline: str) -> float:
        """How many times faster `name` is than `baseline`: median over the rounds."""
        return median(b / a for a, b in zip(self.seconds[name], self.seconds[baseline], strict=True))

    def table(self, baseline: str) -> str:
        """Markdown rows: median, range, ratio."""
        lines = ["| what | seconds, median (range) | times the last row's speed |", "|---|---|---|"]
        for name, seconds in self.seconds.items():
            spread = f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            lines.append(f"| {name} | {spread} | {self.ratio(name, baseline):.2f} |")
        return "\n".join(lines)


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    *,
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time functions one after the other, `repetitions` times; the caller has warmed them up.

    `clock`: `time.process_time` counts what this process computed (all its threads, none of its children), however
    often others took the processor from it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return Timings({name: tuple(values) for name, values in seconds.items()})


def machine() -> str:
    """Processor, GPU, threads, versions and the load of the machine, for the head of a report."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{model}, {threads}, load {os.getloadavg()[0]:.1f}, {versions}"
