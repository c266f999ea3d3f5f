"""`code-tiny`: one line of Python from a formula, small enough for the built-in character model.

A row: `{"input": "3a+2b-7"}`. The prompt is `f(a,b)=3a+2b-7:`, the answer `return 3*a+2*b-7`: the body of a function
that is run in the sandbox against asserts which no prompt shows. Factors are 2 to 9, the last term 1 to 9, and each of
the two signs + or -: 2304 formulas, of which those whose hash says so, one in eight, are test rows.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward.code.problem import Problem
from reward.code.task import CodeTask
from reward.files import bad_row, read_jsonl, text_field
from reward.generated import GeneratedTask
from reward.tasks import Example, Row, Split
from rollout.records import Prompt

_TEST_SHARE = 8
_FORMULA = re.compile(r"([2-9])a([-+])([2-9])b([-+])([1-9])")
_ALLOWED = '{"input": "3a+2b-7"}: a factor 2-9 and a, a sign, a factor 2-9 and b, a sign, a digit 1-9'
_POINTS = ((0, 0), (1, 0), (0, 1), (2, 3), (-4, 5))


class CodeTiny(CodeTask, GeneratedTask):
    """Formulas to write as Python."""

    name = "code-tiny"

    def prompt(self, row: Row) -> Prompt:
        """`f(a,b)=3a+2b-7:`."""
        return Prompt(id=row["id"], task=self.name, text=f"f(a,b)={row['input']}:", gold=row)

    def solution(self, row: Row) -> str:
        """`return 3*a+2*b-7`."""
        return "return " + re.sub(r"([0-9])([ab])", r"\1*\2", row["input"])

    def problem(self, row: Row) -> Problem:
        """The formula's value at five points, as hidden asserts."""
        return Problem(tests=tuple(f"assert f({a}, {b}) == {_value(row['input'], a, b)}" for a, b in _POINTS))

    def program(self, row: Row, completion: str) -> str:
        """The completion as the body of `f`."""
        body = completion.strip().replace("\n", "\n    ")
        return f"def f(a, b):\n    {body}\n" if body else ""

    def example(self) -> Example:
        """3a + 2b - 7."""
        return Example({"id": "example", "input": "3a+2b-7"}, right="return 3*a+2*b-7", wrong="return 3*a+2*b+7")

    def read(self, path: Path | str, split: Split) -> Sequence[Row]:
        """Checked rows of a JSONL file."""
        rows: list[Row] = []
        for line, fields in read_jsonl(path, allowed=_ALLOWED):
            formula = text_field(path, line, fields, "input", _ALLOWED)
            if not _FORMULA.fullmatch(formula):
                raise bad_row(path, line, f"input is {formula!r}", _ALLOWED)
            rows.append({"id": self.row_id(split, len(rows)), "input": formula})
        return tuple(rows)

    def own_test_rows(self) -> Sequence[Row]:
        """Every formula that no training split has, in an order of its own."""
        formulas = [formula for formula in _all_formulas() if _is_test(formula)]
        random.Random(f"{self.name}/{self.version}/test").shuffle(formulas)
        return tuple({"id": self.row_id("test", i), "input": formula} for i, formula in enumerate(formulas))

    def generate(self, random_source: random.Random) -> dict[str, Any]:
        """A formula that is no test row."""
        while _is_test(formula := random_source.choice(_all_formulas())):
            pass
        return {"input": formula}


def _all_formulas() -> list[str]:
    return [
        f"{p}a{first}{q}b{second}{r}"
        for p in range(2, 10)
        for first in "+-"
        for q in range(2, 10)
        for second in "+-"
        for r in range(1, 10)
    ]


def _value(formula: str, a: int, b: int) -> int:
    match = _FORMULA.fullmatch(formula)
    if match is None:
        raise ValueError(f"code-tiny input is {formula!r}; allowed: {_ALLOWED}")
    p, first, q, second, r = match.groups()
    signed = {"+": 1, "-": -1}
    return int(p) * a + signed[first] * int(q) * b + signed[second] * int(r)


def _is_test(formula: str) -> bool:
    return hashlib.blake2b(formula.encode(), digest_size=8).digest()[0] % _TEST_SHARE == 0
