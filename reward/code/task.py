"""What every code task shares: a program out of a completion, its tests, the grader that it opens and closes.

A task says what the tests of a row are (`problem`) and, where a completion is not simply a program, how it becomes one
(`program`). See docs/graders.md for a whole task in a few lines.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from reward.code.extract import has_fence, program_of
from reward.code.grader import CodeGrader
from reward.code.problem import Problem
from reward.code.verdict import Kind, Verdict
from reward.config import TaskConfig
from reward.sandbox.records import BackendReport
from reward.splits import SplitTask
from reward.tasks import Row
from rollout.records import Failed, Scored

INSTRUCTION = "Answer with the program in one ```python block."
_NOT_PYTHON = ("SyntaxError", "IndentationError", "TabError")


class CodeTask(SplitTask):
    """Rows whose answers are programs, graded in a sandbox."""

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self.code = config.code
        self._grader: CodeGrader | None = None

    @abstractmethod
    def problem(self, row: Row) -> Problem:
        """The tests of a row; never shown to the program."""

    def program(self, row: Row, completion: str) -> str:
        """The program in a completion; the empty text if there is none."""
        return program_of(completion)

    def grade(self, row: Row, completion: str) -> Scored | Failed:
        """Run the program against the row's tests.

        `correct`: every test passed. `fraction`: the share that passed. The other parts are the kinds of failure, 0 or
        1. Broken machinery is `Failed`, and so are tests that cannot be used.
        """
        program = self.program(row, completion)
        verdict: Verdict | Failed = Verdict(Kind.NO_CODE, "no program")
        if program:
            verdict = self.grader.grade(self.problem(row), program)
        if isinstance(verdict, Failed):
            return verdict
        if verdict.why.startswith(_NOT_PYTHON) and verdict.num_passed == 0 and not has_fence(completion):
            verdict = Verdict(Kind.NO_CODE, verdict.why, num_tests=verdict.num_tests)
        return verdict.scored(value=self.code.value)

    @property
    def grader(self) -> CodeGrader:
        """The grader, made when it is first needed."""
        if self._grader is None:
            self._grader = CodeGrader(self.code)
        return self._grader

    @property
    def num_slots(self) -> int:
        """Completions that may be graded at the same time."""
        return self.code.num_slots

    def open(self) -> BackendReport:
        """Start the sandboxes; what their backend has shown to hold. NoSandbox if this host has none."""
        return self.grader.open()

    def close(self) -> None:
        """End the sandboxes."""
        if self._grader is not None:
            self._grader.close()
            self._grader = None

    def shown(self, tests: Sequence[str]) -> Sequence[str]:
        """The tests that the prompt shows: all but the last `num_hidden_tests`, and at least one."""
        return tests[: max(1, len(tests) - self.code.num_hidden_tests)]


def question(text: str, tests: Sequence[str] = ()) -> str:
    """A user turn: the task, the tests that may be seen, how to answer."""
    shown = f"\n\nThe program must pass these tests:\n\n{chr(10).join(tests)}" if tests else ""
    return f"{text.strip()}{shown}\n\n{INSTRUCTION}"


def fenced(program: str) -> str:
    """A program as a completion."""
    return f"```python\n{program.strip()}\n```"
