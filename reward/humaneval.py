"""`humaneval`: complete a Python function from its head and docstring. Evaluation only: there is no training split.

A row, as in the published file: `{"task_id": "HumanEval/2", "prompt": "def truncate_number(..) -> float: ..",
"entry_point": "truncate_number", "canonical_solution": "    return number % 1.0", "test": "def check(candidate): .."}`.

A completion is the whole function (then what stands before it in the prompt is put in front: imports, helpers), or text
that goes on where the prompt ends (then it ends before the first line that is not indented).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.code.extract import body_of, defines, program_of
from reward.code.problem import Problem
from reward.code.rows import code_rows
from reward.code.task import CodeTask, fenced, question
from reward.files import bad_row, text_field
from reward.tasks import Example, Row, Split
from rollout.records import Prompt

HUB_ID = "openai/openai_humaneval"
_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_ALLOWED = f"an object with the texts {', '.join(_FIELDS)}; `test` defines check(candidate)"


class HumanEval(CodeTask):
    """HumanEval from a local file, or from the hub."""

    name = "humaneval"

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the file; without one, of the hub."""
        if path is None and split == "train":
            raise ValueError("humaneval has no training rows, it is for evaluation; to train, give it train_file")
        source, numbered = code_rows(path, hub=(HUB_ID, None, "test"), allowed=_ALLOWED)
        rows: list[Row] = []
        for line, fields in numbered:
            row = {key: text_field(source, line, fields, key, _ALLOWED) for key in _FIELDS}
            if not defines(row["prompt"], row["entry_point"]):
                raise bad_row(source, line, f"the prompt does not define {row['entry_point']!r}", _ALLOWED)
            rows.append({"id": row["task_id"].replace("HumanEval", self.name), **row})
        return tuple(rows)

    def prompt(self, row: Row) -> Prompt:
        """One user turn: the function to complete."""
        content = question(f"Complete this Python function.\n\n{fenced(row['prompt'])}")
        return Prompt(id=row["id"], task=self.name, messages=({"role": "user", "content": content},), gold=row)

    def solution(self, row: Row) -> str:
        """The published function, whole."""
        return fenced(row["prompt"] + row["canonical_solution"])

    def problem(self, row: Row) -> Problem:
        """The published `check`; the prompt's helpers are there for it."""
        return Problem(tests=(row["test"],), style="check", prelude=row["prompt"], entry_point=row["entry_point"])

    def program(self, row: Row, completion: str) -> str:
        """The whole function with what stands before it in the prompt, or the prompt and what follows it."""
        found = program_of(completion)
        if defines(found, row["entry_point"]):
            return _before(row["prompt"], row["entry_point"]) + found
        body = body_of(found)
        return row["prompt"] + body if body.strip() else ""

    def example(self) -> Example:
        """A made-up row."""
        row: dict[str, Any] = {
            "id": "example",
            "task_id": "HumanEval/example",
            "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum of the numbers."""\n',
            "entry_point": "total",
            "canonical_solution": "    return sum(xs)\n",
            "test": "def check(candidate):\n    assert candidate([]) == 0\n    assert candidate([1, 2]) == 3\n",
        }
        return Example(row, right="    return sum(xs)\n", wrong="    return len(xs)\n")


def _before(prompt: str, entry_point: str) -> str:
    """The prompt's imports and helpers: all before the function that is to be completed."""
    lines = prompt.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if defines(line, entry_point)), 0)
    while start and lines[start - 1].startswith("@"):
        start -= 1
    return "".join(lines[:start])
