"""`arithmetic`: sums, differences and products of whole numbers.

A row, as in a file: `{"input": "37+485", "output": "522"}`; the prompt is `37+485=`, the answer `522`. One-digit terms
are written with two digits and results with three (`07+09=`, `016`), so that a small character-level model finds each
digit at a fixed place; graders read any width. Differences of generated rows are never negative. A row belongs to the
test split if the hash of its content says so: one in `_TEST_SHARE`, the two orders of a sum or a product together,
whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward.answer import last_line, marked_answer, read_number
from reward.config import TaskConfig
from reward.files import bad_row, read_jsonl, text_field
from reward.generated import GeneratedTask
from reward.tasks import Example, Row, Split
from rollout.records import Prompt, Scored

NUM_TEST_ROWS = 512
_TEST_SHARE = 16
_MIX = {"+": 0.4, "-": 0.4, "*": 0.2}
"""Share of each operator among generated rows."""
_TERM_DIGITS = (1, 2)
"""Digits of the numbers of a sum or a difference."""
_FACTOR_DIGITS = (1,)
"""Digits of the second factor; the first one has two."""
_INPUT = re.compile(r"([0-9]{1,18})([-+*])([0-9]{1,18})")
_ALLOWED = '{"input": "37+485", "output": "522"} with one of + - * between whole numbers of at most 18 digits'


class Arithmetic(GeneratedTask):
    """Rows `a+b`, `a-b`, `a*b`."""

    name = "arithmetic"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self._held_out: frozenset[str] | None = None

    def prompt(self, row: Row) -> Prompt:
        """`37+485=`."""
        text = re.sub(r"[0-9]+", lambda match: match[0].zfill(2), f"{row['input']}=")
        return Prompt(id=row["id"], task=self.name, text=text, gold=row)

    def solution(self, row: Row) -> str:
        """The result in digits, at least three of them."""
        result = _result(row["input"])
        return f"{'-' * (result < 0)}{abs(result):03d}"

    def grade(self, row: Row, completion: str) -> Scored:
        r"""Right if the answer (tag, box, else the last line) is the result; `format`: it reads as a number."""
        marked = marked_answer(completion)
        number = read_number(last_line(completion) if marked is None else marked)
        correct = float(number == _result(row["input"]))
        return Scored(value=correct, parts={"correct": correct, "format": float(number is not None)})

    def example(self) -> Example:
        """37 + 485."""
        return Example({"id": "example", "input": "37+485", "output": "522"}, right="522", wrong="512")

    def read(self, path: Path | str, split: Split) -> Sequence[Row]:
        """Checked rows of a JSONL file."""
        rows: list[Row] = []
        for line, fields in read_jsonl(path, allowed=_ALLOWED):
            problem = text_field(path, line, fields, "input", _ALLOWED)
            output = text_field(path, line, fields, "output", _ALLOWED)
            if not _INPUT.fullmatch(problem):
                raise bad_row(path, line, f"input is {problem!r}", _ALLOWED)
            if output != str(_result(problem)):
                raise bad_row(path, line, f"output is {output!r}, but {problem} is {_result(problem)}", _ALLOWED)
            rows.append({"id": self.row_id(split, len(rows)), "input": problem, "output": output})
        return tuple(rows)

    def own_test_rows(self) -> Sequence[Row]:
        """`NUM_TEST_ROWS` different problems that no training split has, the same for every seed."""
        source = random.Random(f"{self.name}/{self.version}/test")
        problems: dict[str, str] = {}
        while len(problems) < NUM_TEST_ROWS:
            problem = _draw(source)
            key = _content(problem)
            if _is_test(key):
                problems.setdefault(key, problem)
        return tuple(
            {"id": self.row_id("test", index), "input": problem, "output": str(_result(problem))}
            for index, problem in enumerate(problems.values())
        )

    def generate(self, random_source: random.Random) -> dict[str, Any]:
        """A problem whose hash is not a test row's, and that does not stand in `test_file`."""
        while True:
            problem = _draw(random_source)
            key = _content(problem)
            if not _is_test(key) and key not in self._file_contents():
                return {"input": problem, "output": str(_result(problem))}

    def _file_contents(self) -> frozenset[str]:
        if self._held_out is None:
            rows = self.rows("test") if self.config.test_file is not None else ()
            self._held_out = frozenset(_content(row["input"]) for row in rows)
        return self._held_out


def _draw(source: random.Random) -> str:
    operator = source.choices(tuple(_MIX), weights=tuple(_MIX.values()))[0]
    if operator == "*":
        return f"{_whole(source, 2)}*{_whole(source, source.choice(_FACTOR_DIGITS))}"
    a, b = (_whole(source, source.choice(_TERM_DIGITS)) for _ in range(2))
    return f"{max(a, b)}-{min(a, b)}" if operator == "-" else f"{a}+{b}"


def _whole(source: random.Random, num_digits: int) -> int:
    return source.randrange(10 ** (num_digits - 1), 10**num_digits)


def _result(problem: str) -> int:
    match = _INPUT.fullmatch(problem)
    if match is None:
        raise ValueError(f"arithmetic input is {problem!r}; allowed: {_ALLOWED}")
    a, b = int(match[1]), int(match[3])
    return {"+": a + b, "-": a - b, "*": a * b}[match[2]]


def _content(problem: str) -> str:
    """The problem with the two orders of a sum or a product as one."""
    match = _INPUT.fullmatch(problem)
    assert match is not None
    a, operator, b = match.groups()
    return problem if operator == "-" else operator.join(sorted((a, b)))


def _is_test(content: str) -> bool:
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _TEST_SHARE == 0
