"""`mbpp` and `mbpp-sanitized`: short Python programs from one sentence and three asserts.

A row, as in the published files: `{"task_id": 11, "text": "Write a python function to ..", "code": "def ..",
"test_list": ["assert ..", ..], "test_setup_code": ""}`; the sanitized ones have `prompt` in place of `text` and
`test_imports`, in one JSON list.

A file is taken whole and in its order. Where one file is named for both splits it is divided as published: `task_id` 11
to 510 are test rows, 601 to 974 training rows.

The published prompt shows the asserts, so that a model can learn them by heart: `num_hidden_tests` holds some back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.code.problem import Problem
from reward.code.rows import code_rows, texts_field
from reward.code.task import CodeTask, fenced, question
from reward.files import bad_row, text_field
from reward.tasks import Example, Row, Split
from rollout.records import Prompt

HUB_ID = "google-research-datasets/mbpp"
SPLITS = {"train": range(601, 975), "test": range(11, 511)}
"""`task_id` of each split, as published."""
_ALLOWED = '{"task_id": number, "text" or "prompt": text, "code": text, "test_list": ["assert ..", ..]}'


class Mbpp(CodeTask):
    """MBPP from a local file, or from the hub."""

    name = "mbpp"
    _subset = "full"

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the file; without one, of the hub's split."""
        source, numbered = code_rows(path, hub=(HUB_ID, self._subset, split), allowed=_ALLOWED)
        rows = [self._row(source, line, fields) for line, fields in numbered]
        if path is not None and self.config.train_file == self.config.test_file:
            rows = [row for row in rows if row["task_id"] in SPLITS[split]]
        return tuple(rows)

    def prompt(self, row: Row) -> Prompt:
        """One user turn: the sentence and the asserts that may be seen."""
        content = question(_text(row), self.shown(row["test_list"]))
        return Prompt(id=row["id"], task=self.name, messages=({"role": "user", "content": content},), gold=row)

    def solution(self, row: Row) -> str:
        """The published program."""
        return fenced(row["code"])

    def problem(self, row: Row) -> Problem:
        """All asserts; names that the published program defines mean the candidate's."""
        return Problem(
            tests=tuple(row["test_list"]),
            prelude="\n".join(row.get("test_imports") or ()),
            setup=row.get("test_setup_code") or "",
            reference=row["code"],
        )

    def example(self) -> Example:
        """A made-up row."""
        row: dict[str, Any] = {
            "id": "example",
            "task_id": 0,
            "text": "Write a function to add two numbers.",
            "code": "def add(a, b):\n    return a + b",
            "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
        }
        return Example(row, right=fenced(row["code"]), wrong=fenced("def add(a, b):\n    return 3"))

    def _row(self, source: str, line: int, fields: dict[str, Any]) -> dict[str, Any]:
        number = fields.get("task_id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise bad_row(source, line, f"task_id is {number!r:.100}", _ALLOWED)
        key = "text" if "text" in fields else "prompt"
        row = {
            "id": f"{self.name}/{number}",
            "task_id": number,
            key: text_field(source, line, fields, key, _ALLOWED),
            "code": text_field(source, line, fields, "code", _ALLOWED),
            "test_list": texts_field(source, line, fields, "test_list", _ALLOWED),
        }
        if fields.get("test_setup_code"):
            row["test_setup_code"] = text_field(source, line, fields, "test_setup_code", _ALLOWED)
        if fields.get("test_imports"):
            row["test_imports"] = texts_field(source, line, fields, "test_imports", _ALLOWED)
        return row


class MbppSanitized(Mbpp):
    """The 427 rows that were checked by hand."""

    name = "mbpp-sanitized"
    _subset = "sanitized"


def _text(row: Row) -> str:
    return str(row["text"] if "text" in row else row["prompt"])
