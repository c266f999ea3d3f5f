"""Programs that read stdin and write stdout: each input is a job of its own, the expected output stays here.

Outputs are equal if they have the same lines, white space at line ends and empty lines at the end left out. The program
must also end by itself without an error; neither that nor anything it prints is a success by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from reward.code.verdict import OF_END, Kind, Verdict
from reward.sandbox.interface import Sandbox
from reward.sandbox.records import JobEnd, Limits

_ENDING = (JobEnd.TIMEOUT, JobEnd.MEMORY)
"""After such an end the remaining inputs are not tried; they count as failed."""
_MAX_WHY_CHARS = 200


def grade_stdio(sandbox: Sandbox, program: str, pairs: Sequence[Mapping[str, str]], limits: Limits) -> Verdict:
    """Run the program once for each `{"input", "output"}`. SandboxError if the machinery fails.

    Each run has the whole wall time; all together have it three times.
    """
    deadline = time.monotonic() + 3 * limits.wall_s
    outcomes: list[tuple[Kind, str]] = []
    for pair in pairs:
        if time.monotonic() > deadline:
            break
        end, outcome = _run(sandbox, program, pair, limits)
        outcomes.append(outcome)
        if end in _ENDING:
            break
    late = (Kind.TIMEOUT, "no time was left for this input")
    return Verdict.of(outcomes + [late] * (len(pairs) - len(outcomes)))


def _run(sandbox: Sandbox, program: str, pair: Mapping[str, str], limits: Limits) -> tuple[JobEnd, tuple[Kind, str]]:
    with sandbox.start(program, limits=limits, stdin=pair["input"].encode("utf-8", "surrogatepass")) as job:
        end, stdout, stderr = job.finish()
    if end is not JobEnd.FINISHED:
        words = stderr.decode(errors="replace").strip().splitlines() or [str(end)]
        kind = Kind.PERMISSION if words[-1].startswith("PermissionError") else OF_END[end]
        return end, (kind, words[-1][:_MAX_WHY_CHARS])
    if same_output(stdout.decode(errors="replace"), pair["output"]):
        return end, (Kind.PASS, "")
    return end, (Kind.WRONG, f"printed {stdout[:80]!r}")


def same_output(actual: str, expected: str) -> bool:
    """Equal but for white space at line ends and empty lines at the end."""
    return _lines(actual) == _lines(expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
