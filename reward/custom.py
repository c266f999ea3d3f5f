r"""`jsonl`: your own rows with a known answer.

A row: `{"id": "capital-1", "prompt": "Capital of France?", "answer": "Paris"}`, or with `messages` (chat turns) in
place of `prompt`; `id` may be left out, further fields are ignored. The answer is a text or a number.

A completion's answer is its last `<answer>` tag or `\boxed{}`, or else all of it. It is right if it equals `answer`
after normalisation (Unicode NFC, case folded, runs of white space as one space, no full stop at the end), or if both
are numbers of the same value.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from reward.answer import MAX_COMPLETION_CHARS, marked_answer, read_number
from reward.config import TaskConfig
from reward.files import bad_row, read_jsonl, text_field
from reward.splits import SplitTask
from reward.tasks import Example, Row, Split
from rollout.records import Prompt, Scored

_ROLES = ("system", "user", "assistant")
_ALLOWED = (
    '{"id"?: text, "prompt": text, "answer": text or number}, or "messages": [{"role": "user", "content": text}, ..] '
    'in place of "prompt"'
)


class Jsonl(SplitTask):
    """Question and answer rows from `train_file` and `test_file`."""

    name = "jsonl"

    def __init__(self, config: TaskConfig) -> None:
        if config.train_file is None and config.test_file is None:
            raise ValueError("task jsonl has no rows of its own; give it train_file, test_file or both")
        super().__init__(config)

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the split's file."""
        if path is None:
            raise ValueError(f"task jsonl has no {split} rows; give it {split}_file")
        rows: dict[str, Row] = {}
        for line, fields in read_jsonl(path, allowed=_ALLOWED):
            own_id = text_field(path, line, fields, "id", _ALLOWED) if "id" in fields else None
            row_id = self.row_id(split, len(rows)) if own_id is None else own_id
            if row_id in rows:
                raise bad_row(path, line, f"id {row_id!r} stands in an earlier row too", "ids that differ, or none")
            rows[row_id] = {"id": row_id, **_question(path, line, fields), "answer": _answer(path, line, fields)}
        return tuple(rows.values())

    def prompt(self, row: Row) -> Prompt:
        """The row's text or chat turns as they stand."""
        if "messages" in row:
            return Prompt(id=row["id"], task=self.name, messages=tuple(row["messages"]), gold=row)
        return Prompt(id=row["id"], task=self.name, text=row["prompt"], gold=row)

    def solution(self, row: Row) -> str:
        """The answer."""
        return str(row["answer"])

    def grade(self, row: Row, completion: str) -> Scored:
        """Right if equal after normalisation or in value; `format`: there is an answer at all."""
        marked = marked_answer(completion)
        answer = completion[-MAX_COMPLETION_CHARS:].strip() if marked is None else marked
        correct = float(_equal(_answer_text(row["answer"]), answer))
        return Scored(value=correct, parts={"correct": correct, "format": float(bool(answer))})

    def example(self) -> Example:
        """A made-up row."""
        row = {"id": "example", "prompt": "Capital of France?", "answer": "Paris"}
        return Example(row, right="<answer>paris.</answer>", wrong="<answer>London</answer>")


def _question(path: str, line: int, fields: dict[str, Any]) -> dict[str, Any]:
    if ("prompt" in fields) == ("messages" in fields):
        seen = "both prompt and messages" if "prompt" in fields else "neither prompt nor messages"
        raise bad_row(path, line, seen, _ALLOWED)
    if "prompt" in fields:
        return {"prompt": text_field(path, line, fields, "prompt", _ALLOWED)}
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages or not all(_is_turn(turn) for turn in messages):
        roles = ", ".join(_ROLES)
        raise bad_row(path, line, f"messages is {messages!r:.200}", f"{_ALLOWED}; roles: {roles}")
    return {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in messages]}


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)


def _answer(path: str, line: int, fields: dict[str, Any]) -> str:
    answer = fields.get("answer")
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
    return _answer_text(answer) if is_number else text_field(path, line, fields, "answer", _ALLOWED)


def _answer_text(answer: Any) -> str:
    """A number as its digits, without an exponent."""
    return format(Decimal(repr(answer)), "f") if isinstance(answer, float) else str(answer)


def _equal(gold: str, answer: str) -> bool:
    if _normal(gold) == _normal(answer):
        return bool(answer)
    number = read_number(gold)
    return number is not None and number == read_number(answer)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).removesuffix(".")
