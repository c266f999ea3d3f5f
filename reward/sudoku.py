"""`sudoku4`: 4x4 Sudoku, every row, column and 2x2 box holding 1 to 4 once.

A row, as in the published files: `Puzzle,Solution` = `0310200404001043,4312213434211243`, 16 cells row by row, 0 for a
blank. The prompt is `0310200404001043:`, the answer 16 digits. An answer is right if it keeps the givens and is
a valid grid; it need not be the stored solution (124 of the 500 puzzles of d1's file have several).

There are 288 valid grids. Generated puzzles have one solution, the blanks of the SPG file's distribution, and stay away
from both bundled files: no solution grid of the SPG file (the 200 others are the ones that SPG trains on), no puzzle of
d1's file or of `test_file`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from reward.answer import MAX_COMPLETION_CHARS, marked_answer
from reward.config import TaskConfig
from reward.files import bad_row, bundled, read_csv
from reward.generated import GeneratedTask
from reward.tasks import Example, Row, Split
from rollout.records import Prompt, Scored

SPG_FILE = "spg_test_sudoku_split_new.csv"
D1_FILE = "4x4_test_sudoku.csv"
_NUM_BLANKS = {7: 82, 8: 83, 9: 76, 11: 12, 12: 3}
"""Blanks of a puzzle and how many of the 256 puzzles of the SPG file have them."""
_ALLOWED = "a line Puzzle,Solution such as 0310200404001043,4312213434211243 with 0 for a blank"
_UNITS = (
    *(tuple(range(4 * row, 4 * row + 4)) for row in range(4)),
    *(tuple(range(column, 16, 4)) for column in range(4)),
    *(tuple(corner + offset for offset in (0, 1, 4, 5)) for corner in (0, 2, 8, 10)),
)
_DIGIT_RUN = re.compile(r"[0-9](?:[ \t\r\n]*[0-9])*")


class Sudoku4(GeneratedTask):
    """4x4 puzzles."""

    name = "sudoku4"

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self._excluded: tuple[tuple[str, ...], frozenset[str]] | None = None

    def prompt(self, row: Row) -> Prompt:
        """`0310200404001043:`."""
        return Prompt(id=row["id"], task=self.name, text=f"{row['Puzzle']}:", gold=row)

    def solution(self, row: Row) -> str:
        """The stored grid."""
        return str(row["Solution"])

    def grade(self, row: Row, completion: str) -> Scored:
        """Right if the answer is a valid grid that keeps the givens.

        `format`: there is a run of 16 digits 1 to 4. `cells`: share of the blanks filled as in the valid completion of
        the puzzle that agrees best, whatever stands in the given cells; 0 without such a run.
        """
        puzzle = row["Puzzle"]
        if not re.fullmatch(r"[0-4]{16}", puzzle):
            raise ValueError(f"sudoku4 puzzle is {puzzle!r}; allowed: {_ALLOWED}")
        answer = read_grid(completion)
        if answer is None:
            return Scored(value=0.0, parts={"correct": 0.0, "cells": 0.0, "format": 0.0})
        correct = float(is_valid(answer) and keeps_givens(puzzle, answer))
        return Scored(value=correct, parts={"correct": correct, "cells": _cells(puzzle, answer), "format": 1.0})

    def example(self) -> Example:
        """The first row of the SPG file."""
        right = "4312213434211243"
        row = {"id": "example", "Puzzle": "0310200404001043", "Solution": right}
        return Example(row, right=right, wrong=right[1:] + right[0])

    def read(self, path: Path | str, split: Split) -> Sequence[Row]:
        """Checked rows of a CSV file."""
        rows: list[Row] = []
        for line, fields in read_csv(path, columns=("Puzzle", "Solution"), allowed=_ALLOWED):
            puzzle, solution = fields["Puzzle"], fields["Solution"]
            if not re.fullmatch(r"[0-4]{16}", puzzle) or "0" not in puzzle:
                raise bad_row(path, line, f"Puzzle is {puzzle!r}, not 16 digits 0 to 4 with a blank", _ALLOWED)
            if not re.fullmatch(r"[1-4]{16}", solution) or not is_valid(solution):
                raise bad_row(path, line, f"Solution is {solution!r}, no valid grid", _ALLOWED)
            if not keeps_givens(puzzle, solution):
                raise bad_row(path, line, f"Solution {solution} does not keep the givens of {puzzle}", _ALLOWED)
            rows.append({"id": self.row_id(split, len(rows)), "Puzzle": puzzle, "Solution": solution})
        return tuple(rows)

    def own_test_rows(self) -> Sequence[Row]:
        """The 256 puzzles that SPG evaluates on."""
        return self.read(bundled(SPG_FILE), "test")

    def generate(self, random_source: random.Random) -> dict[str, Any]:
        """A puzzle with one solution, neither of which is held out."""
        grids, held_out_puzzles = self._exclusions()
        solution = random_source.choice(grids)
        num_blanks = random_source.choices(tuple(_NUM_BLANKS), weights=tuple(_NUM_BLANKS.values()))[0]
        while True:
            blanks = random_source.sample(range(16), num_blanks)
            if not _is_unique(solution, blanks):
                continue
            cells = list(solution)
            for cell in blanks:
                cells[cell] = "0"
            puzzle = "".join(cells)
            if puzzle not in held_out_puzzles:
                return {"Puzzle": puzzle, "Solution": solution}

    def _exclusions(self) -> tuple[tuple[str, ...], frozenset[str]]:
        """Grids that training may use, and puzzles that it may not."""
        if self._excluded is None:
            held_out_grids = {row["Solution"] for row in self.read(bundled(SPG_FILE), "test")}
            held_out_rows = (*self.read(bundled(D1_FILE), "test"), *self.rows("test"))
            grids = tuple(grid for grid in all_grids() if grid not in held_out_grids)
            self._excluded = grids, frozenset(row["Puzzle"] for row in held_out_rows)
        return self._excluded


def read_grid(completion: str) -> str | None:
    """The last run of exactly 16 digits, all 1 to 4; white space may stand between digits.

    A run is cut at white space where only that makes 16 digits, so a grid after a copy of its puzzle is found.
    """
    marked = marked_answer(completion)
    text = completion[-MAX_COMPLETION_CHARS:] if marked is None else marked
    for run in reversed(_DIGIT_RUN.findall(text)):
        words = run.split()
        digits = "".join(words)
        whole = [digits] if len(digits) == 16 else [word for word in words if len(word) == 16]
        if whole:
            return whole[-1] if set(whole[-1]) <= set("1234") else None
    return None


def is_valid(grid: str) -> bool:
    """Whether each row, column and box of 16 cells holds 1 to 4 once."""
    return all({grid[cell] for cell in unit} == set("1234") for unit in _UNITS)


def keeps_givens(puzzle: str, grid: str) -> bool:
    """Whether the grid agrees with every cell of the puzzle that is not blank."""
    return all(given in ("0", cell) for given, cell in zip(puzzle, grid, strict=True))


@cache
def all_grids() -> tuple[str, ...]:
    """All 288 valid grids in ascending order."""
    grids = [""]
    for cell in range(16):
        units = [[other for other in unit if other < cell] for unit in _UNITS if cell in unit]
        grids = [
            grid + digit
            for grid in grids
            for digit in "1234"
            if all(grid[other] != digit for unit in units for other in unit)
        ]
    return tuple(grids)


@lru_cache(maxsize=4096)
def completions(puzzle: str) -> tuple[str, ...]:
    """All valid grids that keep the givens; the answers of a group share one search."""
    givens = [(cell, given) for cell, given in enumerate(puzzle) if given != "0"]
    return tuple(grid for grid in all_grids() if all(grid[cell] == given for cell, given in givens))


@cache
def _differences(solution: str) -> tuple[int, ...]:
    """Bit sets of the cells in which another valid grid differs, without those that contain a smaller one."""
    masks = sorted(
        {
            sum(1 << cell for cell in range(16) if grid[cell] != solution[cell])
            for grid in all_grids()
            if grid != solution
        },
        key=int.bit_count,
    )
    minimal: list[int] = []
    for mask in masks:
        if all(mask & smaller != smaller for smaller in minimal):
            minimal.append(mask)
    return tuple(minimal)


def _is_unique(solution: str, blanks: Sequence[int]) -> bool:
    """Whether blanking these cells leaves one solution: no other grid differs within the blanks alone."""
    blank_mask = sum(1 << cell for cell in blanks)
    return all(mask & ~blank_mask for mask in _differences(solution))


def _cells(puzzle: str, answer: str) -> float:
    blanks = [cell for cell, given in enumerate(puzzle) if given == "0"]
    best = max((sum(answer[cell] == grid[cell] for cell in blanks) for grid in completions(puzzle)), default=0)
    return best / len(blanks) if blanks else 0.0
