"""Verdicts on given texts: completions that someone made elsewhere, graded by a task of ours.

A completion: `{"id": "countdown/test/3", "completion": "30+93-100"}`, where `id` names a row of the task. In place of
`id`, `row` may hold the row itself or its number among the test rows. Where published rows have a `task_id`, that is an
id too. A file of rows is taken whole, whatever splits it has.

Verdicts: `pass`, `fail`, `no_answer` (an empty completion, or one with nothing to grade), `timeout`, `blocked` (a limit
of the sandbox), and `infra_error` where the grader itself broke; `value` is null where that, or a checker's own
timeout, left no score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import nearest
from reward.config import TaskConfig
from reward.files import read_jsonl
from reward.tasks import Row, Task, build
from reward.worker import GraderWorker
from rollout.records import Score, Scored

_ALLOWED = '{"id": text, "completion": text}, or "row" (a row or its number) in place of "id"'
_FAILED = {"timeout": "timeout", "math_timeout": "timeout", "blocked": "blocked", "no_answer": "no_answer"}
_ENDED = {
    "no_answer": "no_answer",
    "no_code": "no_answer",
    "timeout": "timeout",
    "memory": "blocked",
    "output_limit": "blocked",
    "permission": "blocked",
}
"""Parts of a score by which a task says how it ended, where it was neither right nor wrong."""


def grade_file(config: TaskConfig, completions: Path) -> Iterator[dict[str, Any]]:
    """Verdict of each line, in order: `{"id", "verdict", "value", "why", "seconds"}`.

    The whole file is read and checked, and the grader proves itself on a known answer, before the first verdict.
    """
    task, worker = build(config), GraderWorker((config,))
    rows = _Rows(task, has_train=config.test_file is None)
    items = [rows.find(f"{completions}, line {line}", fields) for line, fields in _read(completions)]
    worker.prove()
    return _verdicts(worker, task.name, items)


def verdict(score: Score, completion: str) -> str:
    """One word for a score."""
    if not isinstance(score, Scored):
        return _FAILED.get(score.kind, "infra_error")
    if score.parts["correct"] >= 1:
        return "pass"
    for name, word in _ENDED.items():
        if score.parts.get(name):
            return word
    return "fail" if completion.strip() else "no_answer"


def _verdicts(worker: GraderWorker, task: str, items: Sequence[tuple[str, Row, str]]) -> Iterator[dict[str, Any]]:
    try:
        for item in items:
            yield _verdict(worker, task, *item)
    finally:
        worker.close()


class _Rows:
    """Rows of a task by id; training rows are read only when an id is not among the test rows."""

    def __init__(self, task: Task, *, has_train: bool) -> None:
        self._task = task
        self._test = task.rows("test")
        self._by_id = _by_id(self._test)
        self._may_read_train = has_train

    def find(self, where: str, fields: Mapping[str, Any]) -> tuple[str, Row, str]:
        """Id, row and completion of a line."""
        if "row" in fields:
            row = self._given(where, fields["row"])
            return str(fields.get("id", row.get("id", where))), row, fields["completion"]
        row_id = str(fields["id"])
        if row_id not in self._by_id and self._may_read_train:
            self._by_id = _by_id(self._task.rows("train")) | self._by_id
            self._may_read_train = False
        if row_id not in self._by_id:
            example = next(iter(self._by_id))
            raise ValueError(
                f"{where}: task {self._task.name} has no row {row_id!r}{nearest(row_id, self._by_id)}; its ids look "
                f'like {example!r}. Give --rows FILE, or the row itself under "row"'
            )
        return row_id, self._by_id[row_id], fields["completion"]

    def _given(self, where: str, row: Any) -> Row:
        if isinstance(row, dict):
            return row
        if isinstance(row, int) and not isinstance(row, bool) and 0 <= row < len(self._test):
            return self._test[row]
        raise ValueError(f"{where}: row is {row!r:.100}; give the row itself or a number in 0..{len(self._test) - 1}")


def _by_id(rows: Sequence[Row]) -> dict[str, Row]:
    published = {str(row["task_id"]): row for row in rows if "task_id" in row}
    return published | {row["id"]: row for row in rows}


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, fields in read_jsonl(path, allowed=_ALLOWED):
        if not isinstance(fields.get("completion"), str):
            raise ValueError(f"{path}, line {line}: completion is {fields.get('completion')!r:.100}; it must be a text")
        if "id" not in fields and "row" not in fields:
            raise ValueError(f"{path}, line {line}: neither id nor row; allowed: {_ALLOWED}")
        yield line, fields


def _verdict(worker: GraderWorker, task: str, row_id: str, row: Row, completion: str) -> dict[str, Any]:
    started = time.perf_counter()
    (score,) = worker.grade([(task, row, completion)])
    return {
        "id": row_id,
        "verdict": verdict(score, completion),
        "value": score.value if isinstance(score, Scored) else None,
        "why": None if isinstance(score, Scored) else f"{score.kind}: {score.why}",
        "seconds": round(time.perf_counter() - started, 6),
    }
