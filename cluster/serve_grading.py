"""Grading of rollouts that the service has just made, for a client that names a task and its row.

Tasks that run programs are left out: their sandbox belongs into a pool of graders (`unmask grade`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward import GraderWorker

TASKS = ("arithmetic", "countdown", "gsm8k", "sudoku4")


class ServiceGrader:
    """Grades in the process that calls it, in a thread."""

    def check(self, task: Mapping[str, Any]) -> None:
        """Raise ValueError where `task` is not `{"name": one of TASKS, "row": {...}}`."""
        if unknown := set(task) - {"name", "row"}:
            raise ValueError(f'task has the unknown field {min(unknown)!r}; give {{"name": task, "row": its row}}')
        if task.get("name") not in TASKS:
            raise ValueError(f"task.name is {task.get('name')!r}; answers are graded here for {', '.join(TASKS)}")
        if not isinstance(task.get("row"), dict):
            raise ValueError("task.row must be the row of the task that the prompt was made of")

    def __call__(self, task: Mapping[str, Any], text: str) -> dict[str, Any]:
        """`{"value", "parts"}`, or `{"failed", "why"}`: a failure is never a number."""
        from rollout.records import Scored

        (score,) = self._worker.grade([(task["name"], task["row"], text)])
        if isinstance(score, Scored):
            return {"value": score.value, "parts": dict(score.parts)}
        return {"failed": score.kind, "why": f"the row is not one of {task['name']}, or its grader failed"}

    @cached_property
    def _worker(self) -> GraderWorker:
        from reward import GraderWorker, TaskConfig

        return GraderWorker([TaskConfig(name=name) for name in TASKS])


grader = ServiceGrader()
