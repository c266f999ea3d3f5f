r"""`countdown`: reach a target with every given number used exactly once, by + - * / and parentheses.

A row, as in the published file: `{"input": "30,100,93", "output": "23"}`. The prompt is `030,100,093=023:`, an answer
`030+093-100`. Intermediate results may be fractions or negative. Numbers are written with at least three digits, so
that a small character-level model finds each of them at a fixed place; graders read any width.

The published file has 256 rows of three numbers from 1 to 100 and a target from 1 to 100. By the simplest solution, 12
add all three numbers, 189 subtract one, 28 subtract two, and 27 need * or / (by the two operators: `*/` 7, `*-` 7, `-/`
6, `+/` 5, `*+` 2; three rows that `*-` and `-/` both solve are counted two and one). Generated rows have the same
mix: a kind is drawn with these weights, then numbers, uniformly, until one of that kind comes up.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

from reward.answer import last_line, marked_answer
from reward.config import TaskConfig
from reward.expression import ExpressionError, evaluate
from reward.files import bad_row, bundled, read_jsonl, text_field
from reward.generated import GeneratedTask
from reward.tasks import Example, Row, Split
from rollout.records import Prompt, Scored

TEST_FILE = "countdown_cd3_test.jsonl"
MAX_NUMBERS = 6
_LARGEST = 100
_MIX = {"++": 12, "+-": 189, "--": 28, "*/": 7, "*-": 7, "-/": 6, "+/": 5, "*+": 2}
"""Operators of the simplest solution, and how many of the published rows have it."""
_INPUT = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})+")
_ALLOWED = f'{{"input": "30,100,93", "output": "23"}}, 2 to {MAX_NUMBERS} numbers and a target, digits only, at most 9'

_Key = tuple[tuple[int, ...], int]


class Countdown(GeneratedTask):
    """Number puzzles. `format_bonus` is the value of a wrong answer that is well-formed and uses each number once."""

    name = "countdown"

    def __init__(self, config: TaskConfig, *, format_bonus: float = 0.0) -> None:
        super().__init__(config)
        self._format_bonus = format_bonus
        self._held_out: frozenset[_Key] | None = None

    def prompt(self, row: Row) -> Prompt:
        """`030,100,093=023:`."""
        text = _fixed_width(f"{row['input']}={row['output']}:")
        return Prompt(id=row["id"], task=self.name, text=text, gold=row)

    def solution(self, row: Row) -> str:
        """The simplest expression: added numbers first, in the order given, then subtracted ones, if that will do."""
        numbers, target = _problem(row)
        found = solve(numbers, target)
        if found is None:
            raise ValueError(f"no expression uses each of {row['input']} once and gives {target}")
        return _fixed_width(found)

    def grade(self, row: Row, completion: str) -> Scored:
        """Right if the answer (tag, box, else the last line) is an expression of all the numbers with the target's
        value.

        `format`: it parses and uses each number exactly once. A tail such as `=23` is allowed if it names the target.
        Division by zero is wrong.
        """
        numbers, target = _problem(row)
        marked = marked_answer(completion)
        value, well_formed = _read(last_line(completion) if marked is None else marked, numbers, target)
        correct = float(well_formed and value == target)
        parts = {"correct": correct, "format": float(well_formed)}
        return Scored(value=max(correct, self._format_bonus * parts["format"]), parts=parts)

    def example(self) -> Example:
        """The first row of the published file."""
        row = {"id": "example", "input": "30,100,93", "output": "23"}
        return Example(row, right="30+93-100", wrong="30+100-93")

    def read(self, path: Path | str, split: Split) -> Sequence[Row]:
        """Checked rows of a JSONL file; whether a solution exists is not checked."""
        rows: list[Row] = []
        for line, fields in read_jsonl(path, allowed=_ALLOWED):
            row = {key: text_field(path, line, fields, key, _ALLOWED) for key in ("input", "output")}
            try:
                _problem(row)
            except ValueError as error:
                raise bad_row(path, line, str(error), _ALLOWED) from error
            rows.append({"id": self.row_id(split, len(rows)), **row})
        return tuple(rows)

    def own_test_rows(self) -> Sequence[Row]:
        """The 256 rows that d1 evaluates on."""
        return self.read(bundled(TEST_FILE), "test")

    def generate(self, random_source: random.Random) -> dict[str, Any]:
        """A solvable row; in no order of its numbers one of the published file or of `test_file`."""
        held_out = self._held_out_keys()
        kind = random_source.choices(tuple(_MIX), weights=tuple(_MIX.values()))[0]
        while True:
            numbers, target = _draw(random_source, kind)
            if _key(numbers, target) not in held_out:
                return {"input": ",".join(map(str, numbers)), "output": str(target)}

    def _held_out_keys(self) -> frozenset[_Key]:
        if self._held_out is None:
            rows = (*self.own_test_rows(), *self.rows("test"))
            self._held_out = frozenset(_key(*_problem(row)) for row in rows)
        return self._held_out


def _fixed_width(text: str) -> str:
    """The text with every number filled up to three digits."""
    return re.sub(r"[0-9]+", lambda match: match[0].zfill(3), text)


class _Term(NamedTuple):
    """A partial result with its text; `rank` is 1 for a sum or difference, 2 for a product or quotient, 3 for a
    number."""

    value: Fraction
    text: str
    rank: int


def solve(numbers: Sequence[int], target: int) -> str | None:
    """The first expression that uses every number once and gives the target; None if there is none.

    Sums with the fewest subtracted numbers come first, then a search over all expressions.
    """
    for num_subtracted in range(len(numbers)):
        for subtracted in combinations(range(len(numbers)), num_subtracted):
            if sum(numbers) - 2 * sum(numbers[i] for i in subtracted) == target:
                added = "+".join(str(n) for i, n in enumerate(numbers) if i not in subtracted)
                return "".join([added, *(f"-{numbers[i]}" for i in subtracted)])
    return _search([_Term(Fraction(n), str(n), 3) for n in numbers], target)


def _search(terms: list[_Term], target: int) -> str | None:
    """Join any two terms by any operator until one is left."""
    if len(terms) == 1:
        return terms[0].text if terms[0].value == target else None
    for i, j in permutations(range(len(terms)), 2):
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        for joined in _joined(terms[i], terms[j], commute=i < j):
            found = _search([*rest, joined], target)
            if found is not None:
                return found
    return None


def _joined(a: _Term, b: _Term, *, commute: bool) -> Iterator[_Term]:
    """All terms `a op b`; the commuting operators only if `commute`, so that each pair gives them once."""
    if commute:
        yield _Term(a.value * b.value, f"{_inside(a, 2)}*{_inside(b, 2)}", 2)
        yield _Term(a.value + b.value, f"{a.text}+{b.text}", 1)
    yield _Term(a.value - b.value, f"{a.text}-{_inside(b, 2)}", 1)
    if b.value:
        yield _Term(a.value / b.value, f"{_inside(a, 2)}/{_inside(b, 3)}", 2)


def _inside(term: _Term, rank: int) -> str:
    return term.text if term.rank >= rank else f"({term.text})"


def _draw(source: random.Random, kind: str) -> tuple[list[int], int]:
    """Numbers and a target of a kind of `_MIX`."""
    while True:
        a, b, c = (1 + int(source.random() * _LARGEST) for _ in range(3))
        target = _sum_target(kind, a, b, c) if kind in ("++", "+-", "--") else _product_target(source, kind, a, b, c)
        if target is None or not 1 <= target <= _LARGEST:
            continue
        numbers = [a, b, c]
        source.shuffle(numbers)
        return numbers, target


def _sum_target(kind: str, a: int, b: int, c: int) -> int:
    return {"++": a + b + c, "+-": a + b - c, "--": a - b - c}[kind]


def _product_target(source: random.Random, kind: str, a: int, b: int, c: int) -> int | None:
    """A whole result that two operators give and sums do not, for one of the expressions of that kind."""
    numerator, denominator = source.choice(_PRODUCTS[kind])(a, b, c)
    if denominator == 0 or numerator % denominator:
        return None
    target = numerator // denominator
    reachable_by_sums = (a + b + c, a + b - c, a - b + c, b + c - a, a - b - c, b - a - c, c - a - b)
    return None if target in reachable_by_sums else target


_PRODUCTS: dict[str, tuple[Callable[[int, int, int], tuple[int, int]], ...]] = {
    "*/": (lambda a, b, c: (a * b, c),),
    "*-": (lambda a, b, c: (a * b - c, 1), lambda a, b, c: (c - a * b, 1), lambda a, b, c: (a * (b - c), 1)),
    "-/": (lambda a, b, c: (a - c * b, b), lambda a, b, c: (c * b - a, b), lambda a, b, c: (a - b, c)),
    "+/": (lambda a, b, c: (a + c * b, b), lambda a, b, c: (a + b, c)),
    "*+": (lambda a, b, c: (a * b + c, 1), lambda a, b, c: (a * (b + c), 1)),
}
"""Numerator and denominator of the expressions with two given operators, for instance a / b + c = (a + c b) / b."""


def _problem(row: Row) -> tuple[list[int], int]:
    if not _INPUT.fullmatch(row["input"]) or not re.fullmatch(r"[0-9]{1,9}", row["output"]):
        raise ValueError(f"input is {row['input']!r}, output {row['output']!r}; allowed: {_ALLOWED}")
    numbers = [int(number) for number in row["input"].split(",")]
    if len(numbers) > MAX_NUMBERS:
        raise ValueError(f"{len(numbers)} numbers; allowed: {_ALLOWED}")
    return numbers, int(row["output"])


def _key(numbers: Sequence[int], target: int) -> _Key:
    return tuple(sorted(numbers)), target


def _read(text: str, numbers: Sequence[int], target: int) -> tuple[Fraction | None, bool]:
    """Value of the answer, and whether it is well-formed and uses the numbers exactly once."""
    left, equals, right = text.partition("=")
    if equals and right.strip() != str(target):
        return None, False
    try:
        value, used = evaluate(left)
    except ExpressionError:
        return None, False
    return value, Counter(used) == Counter(numbers)
