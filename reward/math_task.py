r"""`math`, `math500`, `aime24`, `aime25`: problems whose answer stands in a `\boxed{}`.

A row in a file (`.jsonl`, `.jsonl.gz`) is one of

- your own: `{"id": "sum-1", "prompt": "1/2 + 1/3?", "gold": "\\frac{5}{6}"}`; `id` and `prompt` may be left out (rows
  without a prompt can only be graded), `gold` is LaTeX or a number;
- as published: `{"problem": "..", "answer": ".."}` or `{"problem": "..", "solution": ".. \\boxed{..}"}`. Rows with an
  empty answer (MATH's training split has two) are left out.

Without a file the rows come from the hub. MATH-500 is a part of MATH's test split; it and AIME have no training rows.

The answer is read from the completion only, by the rules of `reward.math.extract`, and compared by those of
`reward.math.compare`. An answer that can be neither confirmed nor refuted is wrong with `undecided` set. A comparison
that takes too long, or a worker that dies twice, is a failure and not a score.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from reward.config import TaskConfig
from reward.files import NumberedRow, bad_row, read_jsonl, text_field
from reward.math import Verifier, final_answer
from reward.math.extract import last_box
from reward.splits import SplitTask
from reward.tasks import Example, Row, Split
from rollout.records import Failed, Prompt, Scored

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
MATH_TIMEOUT = "math_timeout"
MATH_ERROR = "math_error"
_ALLOWED = '{"id"?, "prompt"?, "gold": "\\\\frac{5}{6}"}, or {"problem", "answer"} or {"problem", "solution"}'

log = logging.getLogger(__name__)


class Hub(NamedTuple):
    """Where a task's rows are on the hub, and what its splits are called there."""

    id: str
    splits: Mapping[str, str]


class Math(SplitTask):
    """Problems with a known answer, from local files or from the hub."""

    name = "math"
    hub = Hub("DigitalLearningGmbH/MATH-lighteval", {"train": "train", "test": "test"})

    def __init__(self, config: TaskConfig, *, verifier: Verifier | None = None) -> None:
        super().__init__(config)
        self._verifier = verifier if verifier is not None else Verifier()

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the file; without one, of the hub's split."""
        source = f"{self.hub.id}:{split}" if path is None else path
        rows: dict[str, Row] = {}
        num_empty = 0
        for line, fields in self._from_hub(split) if path is None else read_jsonl(path, allowed=_ALLOWED):
            gold = gold_of(fields)
            if gold is None:
                raise bad_row(source, line, f"no answer among {sorted(fields)}", _ALLOWED)
            if not gold and "gold" not in fields:
                num_empty += 1
                continue
            row = self._row(source, line, fields, gold, self.row_id(split, len(rows)))
            if row["id"] in rows:
                raise bad_row(
                    source, line, f"id {row['id']!r} stands in an earlier row too", "ids that differ, or none"
                )
            rows[row["id"]] = row
        if num_empty:
            log.warning("%s: %d rows without an answer are left out", source, num_empty)
        return tuple(rows.values())

    def prompt(self, row: Row) -> Prompt:
        """One user turn: the problem and how to give the answer; your own prompts as they stand."""
        if "prompt" in row:
            return Prompt(id=row["id"], task=self.name, text=row["prompt"], gold=row)
        if "problem" not in row:
            raise ValueError(f"row {row['id']!r} of task {self.name} has no prompt; it can only be graded")
        content = f"{row['problem']}\n\n{INSTRUCTION}"
        return Prompt(id=row["id"], task=self.name, messages=({"role": "user", "content": content},), gold=row)

    def solution(self, row: Row) -> str:
        """The published solution, or the answer in a box."""
        return str(row.get("solution") or f"\\boxed{{{row['gold']}}}")

    def grade(self, row: Row, completion: str) -> Scored | Failed:
        """Right if the answer of the completion equals the known one.

        `format`: there is an answer that can be read; `no_answer`: there is none at all; `undecided`: it could be
        neither confirmed nor refuted.
        """
        gold = gold_of(row)
        if not gold:
            raise ValueError(f"task {self.name}: no answer in a row with {sorted(row)}; allowed: {_ALLOWED}")
        answer = final_answer(completion)
        if answer.text is None:
            return _scored(no_answer=True)
        verdict = self._verifier.judge(gold, answer.text, task=str(row.get("problem") or row.get("prompt") or ""))
        match verdict.outcome:
            case "timeout":
                return Failed(MATH_TIMEOUT, f"{gold!r} against {answer.text!r}: {verdict.why}")
            case "error":
                return Failed(MATH_ERROR, f"{gold!r} against {answer.text!r}: {verdict.why}")
        return _scored(
            correct=verdict.outcome == "equal", format=verdict.readable, undecided=verdict.outcome == "undecided"
        )

    def example(self) -> Example:
        """A made-up row that needs the worker process."""
        row = {"id": "example", "problem": "What is the diagonal of a cube of side 2?", "gold": "2\\sqrt{3}"}
        return Example(row, right="It is $\\boxed{\\sqrt{12}}$.", wrong="It is $\\boxed{\\sqrt{13}}$.")

    def open(self) -> None:
        """Start the worker process; RuntimeError says why that is not possible."""
        self._verifier.open()

    def close(self) -> None:
        """End the worker process; the next answer that needs it starts another one."""
        self._verifier.close()

    def _row(self, source: str, line: int, fields: Mapping[str, Any], gold: str, row_id: str) -> Row:
        if "gold" in fields and not gold:
            raise bad_row(source, line, f"gold is {fields['gold']!r}", _ALLOWED)
        texts = ("problem", "solution") if "problem" in fields else ("prompt",)
        row = {
            key: text_field(source, line, dict(fields), key, _ALLOWED) for key in texts if fields.get(key) is not None
        }
        if "gold" in fields and fields.get("id") is not None:
            row_id = str(fields["id"])
        return {"id": row_id, **row, "gold": gold}

    def _from_hub(self, split: Split) -> Iterable[NumberedRow]:
        if split not in self.hub.splits:
            raise ValueError(f"task {self.name} is for evaluation and has no {split} rows; give it {split}_file")
        from datasets import load_dataset

        try:
            loaded = load_dataset(self.hub.id, split=self.hub.splits[split])
        except OSError as error:
            raise ValueError(
                f"{self.name} has no {split}_file and {self.hub.id} cannot be fetched ({error}); give the task "
                f"{split}_file: a .jsonl or .jsonl.gz file in the published format"
            ) from error
        return enumerate((dict(row) for row in loaded), start=1)


class Math500(Math):
    """The 500 test problems of MATH that OpenAI chose."""

    name = "math500"
    hub = Hub("HuggingFaceH4/MATH-500", {"test": "test"})


class Aime24(Math):
    """The 30 problems of AIME I and II 2024, answers from 0 to 999."""

    name = "aime24"
    hub = Hub("HuggingFaceH4/aime_2024", {"test": "train"})


class Aime25(Aime24):
    """The 30 problems of AIME I and II 2025."""

    name = "aime25"
    hub = Hub("math-ai/aime25", {"test": "test"})


def gold_of(fields: Mapping[str, Any]) -> str | None:
    """The known answer of a row of any of the formats, out of its box if it stands in one: empty if the row's is,
    None if the row has none."""
    for key in ("gold", "answer"):
        value = fields.get(key)
        if isinstance(value, str):
            return (last_box(value) or value).strip()
        if isinstance(value, float) and math.isfinite(value):
            return format(Decimal(repr(value)), "f")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            return None
    solution = fields.get("solution")
    return last_box(solution) if isinstance(solution, str) else None


def _scored(**parts: bool) -> Scored:
    values = {name: float(parts.get(name, False)) for name in ("correct", "format", "no_answer", "undecided")}
    return Scored(value=values["correct"], parts=values)
