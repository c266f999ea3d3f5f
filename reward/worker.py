"""The grader of a batch: a plain class that an actor wraps.

A grader that breaks on an item gives `Failed` for that item, never a number, and goes on with the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from reward.config import TaskConfig
from reward.tasks import Row, build
from rollout.records import Failed, Scored

GRADER_ERROR = "grader_error"
_MAX_WHY_CHARS = 500

Item = tuple[str, Row, str]
"""Name of the task, row, completion."""


class GraderWorker:
    """Grades completions of the tasks of a run."""

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        self._tasks = {config.name: build(config) for config in tasks}
        if len(self._tasks) != len(tasks):
            named = ", ".join(config.name for config in tasks)
            raise ValueError(f"tasks {named}: a name stands twice; name each task once")

    def grade(self, items: Sequence[Item]) -> list[Scored | Failed]:
        """One verdict per item, in order."""
        return [self._grade_one(*item) for item in items]

    def self_test(self) -> list[str]:
        """Grade a known right and a known wrong answer of each task; what came out otherwise, or nothing."""
        problems = []
        for name, task in self._tasks.items():
            row, right, wrong = task.example()
            for answer, expected in ((right, 1.0), (wrong, 0.0)):
                score = self._grade_one(name, row, answer)
                if not isinstance(score, Scored) or score.parts.get("correct") != expected:
                    problems.append(f"task {name}: {answer!r} for {dict(row)} must be {expected:g}, not {score}")
        return problems

    def _grade_one(self, name: str, row: Row, completion: str) -> Scored | Failed:
        try:
            return self._tasks[name].grade(row, completion)
        except Exception as error:  # noqa: BLE001 - the edge of a grader: an exception becomes a typed failure
            return Failed(GRADER_ERROR, f"task {name}: {type(error).__name__}: {error}"[:_MAX_WHY_CHARS])
