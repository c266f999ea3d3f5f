"""`unmask bench code_graders`: programs graded a second on one core, by sandbox backend.

Reference solutions of MBPP (`--rows FILE`, the published file) or generated rows of `code-tiny` against their asserts:
program in one jail, tests in another, one at a time, everything on one core. Beside them, a fresh interpreter for each
program and its asserts with no isolation at all. The slowest program is left out of the rates: in MBPP a single one
takes seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import reward
from benchmarks.timing import machine
from reward.code.config import CodeConfig
from reward.code.problem import Problem
from reward.code.slot import Slot
from reward.code.task import CodeTask
from reward.code.verdict import Kind
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import NoSandbox

BACKENDS = ("namespace", "landlock")


def pairs(rows: str | None, limit: int) -> list[tuple[Problem, str]]:
    """Tests and a right program of each row."""
    fields = {} if rows is None else {"test_file": rows}
    task = reward.task("code-tiny" if rows is None else "mbpp", **fields)
    assert isinstance(task, CodeTask)
    found = task.rows("test")[:limit]
    return [(task.problem(row), task.program(row, task.solution(row))) for row in found]


def bind_to_one_core() -> None:
    """This process, and all that it starts from now on."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def seconds_of(grade: Callable[[Problem, str], bool], given: Sequence[tuple[Problem, str]]) -> tuple[list[float], int]:
    """Seconds of each program, sorted, and how many were graded right."""
    seconds, num_right = [], 0
    for problem, program in given:
        started = time.perf_counter()
        num_right += grade(problem, program)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds), num_right


def in_slot(slot: Slot) -> Callable[[Problem, str], bool]:
    """The real path."""
    return lambda problem, program: slot.run(problem, program).kind is Kind.PASS


def fresh_interpreter(problem: Problem, program: str) -> bool:
    """Program and asserts in one new interpreter, held by nothing; its exit status is believed."""
    text = "\n".join([program, problem.setup, *problem.tests])
    command = [os.path.realpath(sys.executable), "-I", "-S", "-c", text]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def table_row(name: str, seconds: Sequence[float], num_right: int) -> str:
    """Markdown row; the rate is that of all programs but the slowest."""
    rest = seconds[:-1] or seconds
    milliseconds = [1e3 * seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.9, 0.99)]
    spread = " | ".join(f"{value:.1f}" for value in milliseconds)
    return f"| {name} | {len(rest) / sum(rest):.0f} | {spread} | {num_right} of {len(seconds)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="unmask bench code_graders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="MBPP in its published format; rows of code-tiny if not given")
    parser.add_argument("--limit", type=int, default=300, help="rows to grade")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(argv)
    bind_to_one_core()
    given = pairs(options.rows, options.limit)
    print(machine(), flush=True)
    print("| what, on one core | programs a second | median ms | 90 % | 99 % | passed |\n|---|---|---|---|---|---|")
    slots = {}
    for backend in BACKENDS:
        try:
            slots[backend] = Slot(CodeConfig(sandbox=SandboxConfig(backend=backend)))
        except NoSandbox as error:
            print(f"| {backend} | does not work here: {str(error).splitlines()[-1].strip()} | | | | |")
    graders = {name: in_slot(slot) for name, slot in slots.items()} | {"fresh interpreter": fresh_interpreter}
    for name, grade in graders.items():
        grade(*given[0])
        for _ in range(options.repetitions):
            print(table_row(name, *seconds_of(grade, given)), flush=True)
    for slot in slots.values():
        slot.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
