r"""`code`: your own programming rows, with asserts, a test module, or inputs and outputs.

Rows, one JSON object a line; `id` may be left out, further fields are ignored:

- `{"id", "prompt", "tests": ["assert add(1, 2) == 3", ..], "hidden_tests"?: [..], "entry_point"?, "setup"?,
  "solution"?}`. The prompt shows `tests` and never `hidden_tests`; all count.
- `{"id", "prompt", "stdio": [{"input": "1 2\n", "output": "3\n"}, ..], "solution"?}`: whole programs.
- AceCode's `{"id", "question", "test_cases": ["assert ..", ..]}`, of which no test is shown.
- KodCode's `{"question", "test" or "test_code", "solution"}`: a module of pytest functions that imports `solution`.
- MBPP's `{"task_id", "text" or "prompt", "test_list", "code", "test_setup_code"?}`.

Names that the asserts use and that nothing defines mean the program's functions, or its classes if they begin with a
capital letter; `entry_point` is needed only for a function with the name of a built-in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward.code.problem import Problem
from reward.code.rows import texts_field
from reward.code.task import CodeTask, fenced, question
from reward.files import bad_row, read_jsonl, text_field
from reward.tasks import Example, Row, Split
from rollout.records import Prompt

_ALLOWED = (
    '{"id"?, "prompt", "tests": ["assert ..", ..], "hidden_tests"?} or {"id"?, "prompt", "stdio": [{"input", '
    '"output"}, ..]}, or a row of AceCode, KodCode or MBPP'
)
_SOURCE = "row"
_TEXTS = ("entry_point", "setup", "solution")
_PLACES = ("tests", "stdio", "test_cases", "test", "test_code", "test_list")
"""Fields that hold a row's tests; the first one that is there counts."""


class Programs(CodeTask):
    """Rows of programming tasks from `train_file` and `test_file`."""

    name = "code"

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the split's file, in one form."""
        if path is None:
            raise ValueError(f"task {self.name} has no {split} rows of its own; give it {split}_file")
        rows: dict[str, Row] = {}
        for line, fields in read_jsonl(path, allowed=_ALLOWED):
            row = normal_row(fields, path=path, line=line)
            row_id = row.setdefault("id", self.row_id(split, len(rows)))
            if row_id in rows:
                raise bad_row(path, line, f"id {row_id!r} stands in an earlier row too", "ids that differ, or none")
            rows[row_id] = row
        return tuple(rows.values())

    def prompt(self, row: Row) -> Prompt:
        """One user turn: the row's prompt and the tests that may be seen."""
        row = normal_row(row)
        tests = row.get("tests", ())
        content = question(row["prompt"], self.shown(tests) if tests else ())
        return Prompt(id=row["id"], task=self.name, messages=({"role": "user", "content": content},), gold=row)

    def solution(self, row: Row) -> str:
        """The row's own solution; ValueError if it has none."""
        row = normal_row(row)
        if "solution" not in row:
            raise ValueError(f"row {row['id']!r} of task {self.name} has no solution to learn from")
        return fenced(row["solution"])

    def problem(self, row: Row) -> Problem:
        """The row's tests, shown and hidden."""
        row = normal_row(row)
        if "stdio" in row:
            return Problem(stdio=tuple(row["stdio"]))
        return Problem(
            tests=(*row.get("tests", ()), *row.get("hidden_tests", ())),
            style="pytest" if row.get("is_module") else "asserts",
            setup=row.get("setup", ""),
            reference=row.get("solution"),
            entry_point=row.get("entry_point"),
        )

    def example(self) -> Example:
        """A made-up row."""
        row = {
            "id": "example",
            "prompt": "Write add(a, b), the sum of two numbers.",
            "tests": ["assert add(1, 2) == 3"],
            "hidden_tests": ["assert add(-1, 1) == 0", "assert add(10, 5) == 15"],
        }
        return Example(row, right="def add(a, b):\n    return a + b\n", wrong="def add(a, b):\n    return 3\n")


def normal_row(fields: Mapping[str, Any], *, path: str = _SOURCE, line: int = 1) -> dict[str, Any]:
    """A row of any of the shapes in the form of the first two; ValueError if it is none of them."""
    row = dict(fields)
    place = next((key for key in _PLACES if row.get(key)), None)
    if place is None and not row.get("hidden_tests"):
        raise bad_row(path, line, f"no tests among {sorted(row)}", _ALLOWED)
    text = next((key for key in ("prompt", "question", "text") if key in row), "prompt")
    normal: dict[str, Any] = {"prompt": text_field(path, line, row, text, _ALLOWED)}
    for key in ("id", "task_id", "question_id", "conversation_id"):
        if row.get(key) is not None:
            normal["id"] = str(row[key])
            break
    row = {"solution": row.get("code"), "setup": row.get("test_setup_code"), **row}
    normal |= {key: text_field(path, line, row, key, _ALLOWED) for key in _TEXTS if row.get(key)}
    if place == "stdio":
        return normal | {"stdio": _pairs(path, line, row["stdio"])}
    if place in ("test", "test_code") or row.get("is_module"):
        tests = row.get("hidden_tests") or [text_field(path, line, row, str(place), _ALLOWED)]
        return normal | {"hidden_tests": tests, "is_module": True}
    if place is not None:
        normal["hidden_tests" if place == "test_cases" else "tests"] = texts_field(path, line, row, place, _ALLOWED)
    if row.get("hidden_tests"):
        normal["hidden_tests"] = texts_field(path, line, row, "hidden_tests", _ALLOWED)
    return normal


def _pairs(path: str, line: int, pairs: Any) -> list[dict[str, str]]:
    is_list = isinstance(pairs, list) and all(isinstance(pair, dict) for pair in pairs)
    if not is_list or not all(isinstance(pair.get(key), str) for pair in pairs for key in ("input", "output")):
        raise bad_row(path, line, f"stdio is {pairs!r:.200}", 'a list of {"input": text, "output": text}')
    return [{"input": pair["input"], "output": pair["output"]} for pair in pairs]
