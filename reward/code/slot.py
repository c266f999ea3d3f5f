"""One place to grade in: a jail for programs (U), a jail for tests (T), and the wire between them.

This process carries the frames without reading what U says, and keeps the deadline. T runs on for the next program as
long as the tests that it ran can have left no trace in it (asserts on plain calls), else it is thrown away.
"""

from __future__ import annotations

import json
import time
from typing import Any

from reward.code.bundle import Side, candidate_side, tests_side
from reward.code.config import CodeConfig
from reward.code.problem import Problem
from reward.code.stand_in import ANSWER, ENDED
from reward.code.stdio import grade_stdio
from reward.code.trusted import REPORT
from reward.code.verdict import OF_END, Kind, Verdict
from reward.sandbox.interface import Job, Sandbox
from reward.sandbox.records import BackendReport, JobEnded, Limits, SandboxError
from reward.sandbox.sandbox import open_sandbox

GRACE_S = 5.0
"""Time for the tests' side beyond the program's, which ends earlier."""
TESTS_LIMITS = Limits(wall_s=900, cpu_s=600, memory_mb=2048, message_kb=16_384, source_kb=4096)
_MAX_AGE_S = 300.0
_MAX_ITEMS = 500
_SAME_PYTHON = ("namespace", "landlock", "unsafe")


class BadTests(Exception):  # noqa: N818 - a finding about a row
    """The tests of a row cannot be used, whatever the program."""


class Slot:
    """A pair of jails. One program at a time.

    `proof` is the report of another slot with the same settings, so that the canaries need not run again.
    """

    def __init__(self, config: CodeConfig, *, proof: BackendReport | None = None) -> None:
        self._limits = config.sandbox.limits()
        self._programs = open_sandbox(config.sandbox, proof=proof)
        try:
            self._tests = open_sandbox(config.sandbox, proof=self._programs.report)
        except SandboxError:
            self._programs.close()
            raise
        compiled = config.sandbox.python is None and self._programs.backend in _SAME_PYTHON
        self._candidate_side = candidate_side(max_frame=self._limits.message_kb * 1024, compiled=compiled)
        self._tests_side = tests_side(compiled=compiled)
        self._side: Job | None = None
        self._since = 0.0
        self._num_items = 0

    @property
    def report(self) -> BackendReport:
        """What the backend has shown to hold."""
        return self._programs.report

    def run(self, problem: Problem, program: str, *, limits: Limits | None = None) -> Verdict:
        """The verdict on a program; `limits` in place of the configured ones.

        SandboxError if the machinery fails, BadTests if the row does.
        """
        limits = limits or self._limits
        if problem.stdio:
            return grade_stdio(self._programs, program, problem.stdio, limits)
        with _started(self._programs, self._candidate_side, limits) as candidate:
            deadline = time.monotonic() + limits.wall_s + GRACE_S
            report = self._report(problem, program, candidate, deadline)
        if isinstance(report, Verdict):
            return report
        if report["fault"] is not None:
            raise BadTests(str(report["fault"]))
        return read_report(report)

    def close(self) -> None:
        """End both jails."""
        self._side = None
        self._programs.close()
        self._tests.close()

    def _report(self, problem: Problem, program: str, candidate: Job, deadline: float) -> dict[str, Any] | Verdict:
        """What the tests' side says; the verdict itself if it came to no end."""
        side = self._tests_job()
        num_answers = 0
        try:
            side.send(json.dumps(problem.item(program)).encode())
            while (frame := side.receive(deadline - time.monotonic()))[:1] != REPORT:
                side.send(_exchange(candidate, frame[1:], deadline))
                num_answers += 1
            report = _checked(frame[1:])
        except JobEnded as ended:
            self._drop_tests_job()
            if num_answers == 0:
                raise SandboxError(f"the tests' side ended before it called the program: {ended}") from ended
            return Verdict(OF_END[ended.end], f"while a test looked at a result: {ended.detail}")
        except BaseException:
            self._drop_tests_job()
            raise
        if not report["leaves_no_trace"] or self._tests.replays:
            self._drop_tests_job()
        return report

    def _tests_job(self) -> Job:
        """A tests' side that waits for an item."""
        is_old = time.monotonic() - self._since > _MAX_AGE_S or self._num_items >= _MAX_ITEMS
        if self._side is None or is_old:
            self._drop_tests_job()
            self._side = _started(self._tests, self._tests_side, TESTS_LIMITS)
            self._since, self._num_items = time.monotonic(), 0
        self._num_items += 1
        return self._side

    def _drop_tests_job(self) -> None:
        side, self._side = self._side, None
        if side is not None:
            side.close()


def _started(sandbox: Sandbox, side: Side, limits: Limits) -> Job:
    job = sandbox.start(side.text, limits=limits)
    if side.first_frame is None:
        return job
    try:
        job.send(side.first_frame)
    except JobEnded as ended:
        job.close()
        raise SandboxError(f"a job ended before it took its program: {ended}") from ended
    return job


def _exchange(candidate: Job, request: bytes, deadline: float) -> bytes:
    """U's answer to a request of T, or the word for U's end."""
    try:
        candidate.send(request)
        return ANSWER + candidate.receive(max(0.001, deadline - time.monotonic()))
    except JobEnded as ended:
        return ENDED + f"{OF_END[ended.end]}:{ended.detail}".encode()
    except ValueError as error:
        raise BadTests(f"a test passes too much to the program: {error}") from error


def _checked(payload: bytes) -> dict[str, Any]:
    try:
        report = json.loads(payload)
    except ValueError as error:
        raise BadTests(f"the tests' side reported no JSON: {error}") from error
    if not isinstance(report, dict) or {"fault", "results", "ending", "leaves_no_trace"} - report.keys():
        raise BadTests("the tests' side reported something else than results")
    return report


def read_report(report: dict[str, Any]) -> Verdict:
    """The verdict that a report amounts to.

    A test that passed without asking the program for anything does not count. A program that breaks off after its last
    answer has failed, as one more test.
    """
    try:
        counted = [(Kind(kind), why) for kind, why, called in report["results"] if called or kind != Kind.PASS]
        ending = report["ending"] and (Kind(report["ending"][0]), report["ending"][1])
    except (TypeError, ValueError, IndexError) as error:
        raise BadTests(f"the tests' side reported results that are none: {error}") from error
    if ending and all(kind is Kind.PASS for kind, _ in counted):
        counted.append(ending)
    if not counted:
        raise BadTests("no test asks the program for anything")
    verdict = Verdict.of(counted)
    if ending and ending[0] is Kind.PROTOCOL:
        return Verdict(*ending, num_passed=verdict.num_passed, num_tests=verdict.num_tests)
    return verdict
