"""4x4 Sudoku: published files, generated puzzles, grading by rules and givens."""

import csv
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reward
from reward.files import bundled
from reward.sudoku import all_grids, completions, is_valid, read_grid

TASK = reward.task("sudoku4", seed=2, num_train_rows=3_000_000)
PUZZLE, GRID = "0310200404001043", "4312213434211243"
ROW = {"id": "r", "Puzzle": PUZZLE, "Solution": GRID}
D1 = str(bundled("4x4_test_sudoku.csv"))


def parts(completion, row=ROW):
    score = TASK.grade(row, completion)
    assert score.value == score.parts["correct"]
    return tuple(score.parts[name] for name in ("correct", "cells", "format"))


def brute_force(puzzle):
    """All completions by trying digits cell by cell."""
    if "0" not in puzzle:
        return [puzzle] if is_valid(puzzle) else []
    cell = puzzle.index("0")
    row, column = divmod(cell, 4)
    taken = {puzzle[4 * row + k] for k in range(4)} | {puzzle[4 * k + column] for k in range(4)}
    box = 8 * (row // 2) + 2 * (column // 2)
    taken |= {puzzle[box + k] for k in (0, 1, 4, 5)}
    return [
        grid
        for digit in "1234"
        if digit not in taken
        for grid in brute_force(puzzle[:cell] + digit + puzzle[cell + 1 :])
    ]


def test_there_are_288_grids():
    assert len(set(all_grids())) == 288
    assert set(all_grids()) == set(brute_force("0" * 16))


def test_spg_rows_all_have_one_solution_and_it_is_accepted():
    rows = TASK.rows("test")
    assert len(rows) == 256
    for row in rows:
        assert list(completions(row["Puzzle"])) == brute_force(row["Puzzle"]) == [row["Solution"]]
        assert parts(TASK.solution(row), row) == (1, 1, 1)


def test_d1_rows_are_read_and_every_completion_is_accepted():
    rows = reward.task("sudoku4", test_file=D1).rows("test")
    assert len(rows) == 500
    num_solutions = Counter(len(completions(row["Puzzle"])) for row in rows)
    assert num_solutions == {1: 376, 2: 115, 3: 8, 4: 1}
    for row in rows:
        for grid in completions(row["Puzzle"]):
            assert parts(grid, row) == (1, 1, 1)


def test_rows_keep_the_published_fields():
    with bundled("spg_test_sudoku_split_new.csv").open() as file:
        published = list(csv.DictReader(file))
    assert [{k: row[k] for k in ("Puzzle", "Solution")} for row in TASK.rows("test")] == published


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2_999_999))
def test_every_generated_puzzle_has_one_solution_and_is_graded_right(index):
    row = TASK.rows("train")[index]
    assert row["Puzzle"].count("0") in (7, 8, 9, 11, 12)
    assert brute_force(row["Puzzle"]) == [row["Solution"]]
    assert parts(TASK.solution(row), row) == (1, 1, 1)
    assert parts(row["Puzzle"], row) == (0, 0, 0)


def test_generated_blanks_are_distributed_as_in_the_spg_file():
    blanks = Counter(row["Puzzle"].count("0") for row in TASK.rows("train")[:2000])
    expected = Counter(row["Puzzle"].count("0") for row in TASK.rows("test"))
    assert set(blanks) == set(expected) == {7, 8, 9, 11, 12}
    # Three standard deviations of 2000 draws of a share of a third: 0.032.
    assert all(abs(blanks[n] / 2000 - expected[n] / 256) < 0.032 for n in expected)


def test_training_shares_no_grid_with_spg_and_no_puzzle_with_d1():
    rows = TASK.rows("train")[:4000]
    grids = {row["Solution"] for row in rows}
    assert not grids & {row["Solution"] for row in TASK.rows("test")}
    assert len(grids) == 200
    d1 = {row["Puzzle"] for row in reward.task("sudoku4", test_file=D1).rows("test")}
    assert not d1 & {row["Puzzle"] for row in rows}


def test_training_avoids_the_puzzles_of_a_test_file(tmp_path):
    taken = TASK.rows("train")[0]
    path = tmp_path / "test.csv"
    path.write_text(f"Puzzle,Solution\n{taken['Puzzle']},{taken['Solution']}\n")
    other = reward.task("sudoku4", seed=2, test_file=str(path)).rows("train")
    assert other[0]["Puzzle"] != taken["Puzzle"]
    assert other[1] == TASK.rows("train")[1]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 287), st.integers(0, 2**32))
def test_an_answer_is_right_exactly_if_it_is_a_completion(index, seed):
    rng = random.Random(seed)
    row = TASK.rows("test")[rng.randrange(256)]
    answer = all_grids()[index]
    assert parts(answer, row)[0] == float(answer == row["Solution"])
    changed = list(row["Solution"])
    cell = rng.randrange(16)
    changed[cell] = rng.choice([d for d in "1234" if d != changed[cell]])
    assert parts("".join(changed), row)[0] == 0


def test_cells_counts_blanks_that_agree():
    # Blanks are cells 0, 3, 5, 6, 8, 10, 11, 13: eight. One blank wrong: 7/8; a given wrong as well: still 7/8.
    one_blank_wrong = "3" + GRID[1:]
    assert parts(one_blank_wrong) == (0, 7 / 8, 1)
    assert parts(one_blank_wrong[:15] + "1") == (0, 7 / 8, 1)
    assert parts(GRID[:15] + "1") == (0, 1, 1)


def test_cells_counts_against_the_best_of_several_completions():
    # The two completions of this puzzle of d1 differ in four cells; half of one and half of the other agree with
    # either in two of these four, so in 6 of the 8 blanks.
    puzzle = next(row for row in reward.task("sudoku4", test_file=D1).rows("test") if two_apart(row["Puzzle"]))[
        "Puzzle"
    ]
    first, second = completions(puzzle)
    apart = [cell for cell in range(16) if first[cell] != second[cell]]
    mixed = "".join(second[cell] if cell in apart[:2] else first[cell] for cell in range(16))
    row = {"id": "x", "Puzzle": puzzle, "Solution": first}
    assert parts(first, row) == parts(second, row) == (1, 1, 1)
    assert parts(mixed, row) == (0, 6 / 8, 1)


def two_apart(puzzle):
    found = completions(puzzle)
    return len(found) == 2 and sum(a != b for a, b in zip(*found, strict=True)) == 4


@pytest.mark.parametrize(
    ("completion", "grid"),
    [
        (GRID, GRID),
        (f"  {GRID}\n", GRID),
        ("4312 2134 3421 1243", GRID),
        ("4 3 1 2\n2 1 3 4\n3 4 2 1\n1 2 4 3", GRID),
        (f"<answer>{GRID}</answer> 1111111111111111", GRID),
        (f"\\boxed{{{GRID}}}", GRID),
        (f"{PUZZLE}\n{GRID}", GRID),
        (f"Step 12 {GRID}", GRID),
        (f"{GRID} and 5 more", GRID),
        (f"1111222233334444 or: {GRID}", GRID),
        (f"{GRID} {PUZZLE}", None),
        (PUZZLE, None),
        (GRID[:15], None),
        (GRID + "1", None),
        (GRID * 2, None),
        ("4" * 100_000, None),
        ("4 " * 100_000, None),
        ("5" * 16, None),
        ("٤٣١٢٢١٣٤٣٤٢١١٢٤٣", None),
        ("", None),
        (f"<answer>{GRID}", GRID),
        (f"<answer></answer>{GRID}", None),
    ],
)
def test_the_last_run_of_sixteen_digits_is_the_answer(completion, grid):
    assert read_grid(completion) == grid


def test_prompt_is_one_short_line():
    assert TASK.prompt(ROW).text == "0310200404001043:"


def test_a_row_that_is_no_puzzle_is_an_error():
    with pytest.raises(ValueError, match="puzzle is '12'"):
        TASK.grade({"id": "x", "Puzzle": "12"}, GRID)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("Puzzle,Answer\n1,2\n", 1, "lacks Solution"),
        (f"Puzzle,Solution\n{PUZZLE},{GRID}\n{PUZZLE[1:]},{GRID}\n", 3, "not 16 digits"),
        (f"Puzzle,Solution\n{GRID},{GRID}\n", 2, "with a blank"),
        (f"Puzzle,Solution\n{PUZZLE},{GRID[::-1][:15]}5\n", 2, "no valid grid"),
        (f"Puzzle,Solution\n{PUZZLE},{'1234' * 4}\n", 2, "no valid grid"),
        (f"Puzzle,Solution\n{PUZZLE},1432324141232314\n", 2, "does not keep the givens"),
        (f"Puzzle,Solution\n{PUZZLE}\n", 2, "no value for Solution"),
        (f"Puzzle,Solution\n{PUZZLE},{GRID},7\n", 2, "more values"),
        (f'Puzzle,Solution\n"{PUZZLE},{GRID}\n', 2, "unexpected end"),
    ],
)
def test_a_broken_file_names_line_and_reason(tmp_path, text, line, why):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="allowed") as caught:
        reward.task("sudoku4", test_file=str(path)).rows("test")
    assert f"{path}, line {line}: " in str(caught.value)
    assert why in str(caught.value)


def test_the_shared_copies_are_the_bundled_ones():
    shared = Path(__file__).parents[3] / "shared" / "data" / "sudoku4x4"
    if not shared.exists():
        pytest.skip("no shared data")
    for path in shared.iterdir():
        assert path.read_bytes() == bundled(path.name).read_bytes()
