"""`python -m tests.rooms [PYTEST OPTION ..]`: the tests, folder by folder, each in a process of its own.

So no folder keeps the memory of another. Two lanes run side by side: folders whose tests start Ray, processes or
browsers, and those that compute. What a folder printed comes in one piece when it ends; the status is 1 if one failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
DEFAULT = ("-m", "not slow and not gpu")
STARTS_PROCESSES = ("cluster", "rollout", "chaos", "page", "clients")
NO_TESTS = 5
"""Pytest's status where the options leave no test of a folder."""


class Ended(NamedTuple):
    """A folder's tests, when they are over."""

    room: str
    status: int
    seconds: float
    output: str


def lanes() -> tuple[list[str], list[str]]:
    """The folders and files of tests, all of them in one of two lanes."""
    found = [p.name for p in HERE.iterdir() if any(p.glob("**/test_*.py")) or p.name.startswith("test_")]
    first = [room for room in STARTS_PROCESSES if room in found]
    return first, sorted(set(found) - set(first))


def run(room: str, options: Sequence[str]) -> Ended:
    """One folder."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", *options, str(HERE / room)]
    ended = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Ended(room, ended.returncode, time.monotonic() - start, ended.stdout)


def results(options: Sequence[str]) -> Iterator[Ended]:
    """Every folder, in the order in which they end."""
    with ThreadPoolExecutor(2) as threads:
        waiting = {threads.submit(run, lane.pop(0), options): lane for lane in lanes()}
        while waiting:
            done = next(as_completed(waiting))
            lane = waiting.pop(done)
            if lane:
                waiting[threads.submit(run, lane.pop(0), options)] = lane
            yield done.result()


def main(options: Sequence[str]) -> int:
    """Print what each folder printed, and what became of all."""
    ended = []
    for one in results(options or DEFAULT):
        print(one.output, flush=True)
        ended.append(one)
    for one in sorted(ended):
        verdict = "passed" if one.status == 0 else "no tests" if one.status == NO_TESTS else "FAILED"
        print(f"tests/{one.room:<16} {verdict:<8} {one.seconds:5.0f} s")
    return int(any(one.status not in (0, NO_TESTS) for one in ended))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
