"""The grader of a batch: a plain class that an actor wraps.

A grader that breaks on an item gives `Failed` for that item, never a number, and goes on with the next. Items of a task
that has several slots (programs in sandboxes) are graded at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from reward.config import TaskConfig
from reward.tasks import Row, build
from rollout.records import Failed, Scored

GRADER_ERROR = "grader_error"
_MAX_WHY_CHARS = 500

Item = tuple[str, Row, str]
"""Name of the task, row, completion."""


@runtime_checkable
class Opened(Protocol):
    """A task with processes of its own."""

    def open(self) -> object:
        """Start them; RuntimeError says why that is not possible."""

    def close(self) -> None:
        """End them."""


@runtime_checkable
class Described(Protocol):
    """Something that a run should remember."""

    def metadata(self) -> dict[str, str]:
        """Flat texts."""


@runtime_checkable
class Parallel(Protocol):
    """A task that grades several completions at the same time."""

    num_slots: int


class GraderWorker:
    """Grades completions of the tasks of a run."""

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        self._tasks = {config.name: build(config) for config in tasks}
        if len(self._tasks) != len(tasks):
            named = ", ".join(config.name for config in tasks)
            raise ValueError(f"tasks {named}: a name stands twice; name each task once")
        slots = {name: task.num_slots for name, task in self._tasks.items() if isinstance(task, Parallel)}
        self._parallel = frozenset(name for name, num_slots in slots.items() if num_slots > 1)
        self._threads = ThreadPoolExecutor(max(slots.values())) if self._parallel else None
        self._metadata: dict[str, str] = {}

    def grade(self, items: Sequence[Item]) -> list[Scored | Failed]:
        """One verdict per item, in order."""
        return [verdict() for verdict in [self._begin(item) for item in items]]

    def prove(self) -> None:
        """Raise ValueError with everything that the self-test finds."""
        problems = self.self_test()
        if problems:
            self.close()
            raise ValueError("\n".join(problems))

    def metadata(self) -> dict[str, str]:
        """What the self-test found that a run should remember: the sandbox that programs run in, and what holds."""
        return dict(self._metadata)

    def close(self) -> None:
        """End the processes of the tasks."""
        for task in self._tasks.values():
            if isinstance(task, Opened):
                task.close()
        if self._threads is not None:
            self._threads.shutdown()

    def self_test(self) -> list[str]:
        """Grade a known right and a known wrong answer of each task; what came out otherwise, or nothing."""
        problems = []
        for name, task in self._tasks.items():
            if isinstance(task, Opened):
                try:
                    report = task.open()
                    if isinstance(report, Described):
                        self._metadata |= report.metadata()
                except RuntimeError as error:
                    problems.append(f"task {name}: {error}")
                    continue
            row, right, wrong = task.example()
            for answer, expected in ((right, 1.0), (wrong, 0.0)):
                score = self._grade_one(name, row, answer)
                if not isinstance(score, Scored) or score.parts.get("correct") != expected:
                    problems.append(f"task {name}: {answer!r} for {dict(row)} must be {expected:g}, not {score}")
        return problems

    def _begin(self, item: Item) -> Callable[[], Scored | Failed]:
        """Start grading in a free slot, or have it done when the result is asked for."""
        if self._threads is not None and item[0] in self._parallel:
            return self._threads.submit(self._grade_one, *item).result
        return lambda: self._grade_one(*item)

    def _grade_one(self, name: str, row: Row, completion: str) -> Scored | Failed:
        try:
            return self._tasks[name].grade(row, completion)
        except Exception as error:  # noqa: BLE001 - the edge of a grader: an exception becomes a typed failure
            return Failed(GRADER_ERROR, f"task {name}: {type(error).__name__}: {error}"[:_MAX_WHY_CHARS])
