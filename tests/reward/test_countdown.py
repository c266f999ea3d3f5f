"""Countdown: published rows, generated rows, the solver and the grader."""

import json
from fractions import Fraction
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reward
from reward.config import TaskConfig
from reward.countdown import Countdown, solve
from reward.expression import evaluate
from reward.files import bundled

TASK = reward.task("countdown", seed=5, num_train_rows=1_000_000)
ROW = {"id": "r", "input": "30,100,93", "output": "23"}


def parts(completion, row=ROW):
    score = TASK.grade(row, completion)
    assert score.value == score.parts["correct"]
    return score.parts["correct"], score.parts["format"]


@cache
def reachable(values):
    """All values that expressions over all the numbers (in ascending order) can have: any two halves, any operator."""
    if len(values) == 1:
        return {Fraction(values[0])}
    results = set()
    for size in range(1, len(values)):
        for half in combinations(range(len(values)), size):
            for a in reachable(tuple(values[i] for i in half)):
                for b in reachable(tuple(values[i] for i in range(len(values)) if i not in half)):
                    results |= {a + b, a - b, a * b} | ({a / b} if b else set())
    return results


def test_all_published_rows_are_solved_and_their_solutions_graded_right():
    rows = TASK.rows("test")
    assert len(rows) == 256
    assert [TASK.grade(row, TASK.solution(row)).value for row in rows] == [1.0] * 256


def test_published_rows_keep_the_published_fields_and_order():
    lines = bundled("countdown_cd3_test.jsonl").read_text().splitlines()
    assert [{"input": row["input"], "output": row["output"]} for row in TASK.rows("test")] == [
        json.loads(line) for line in lines
    ]


def test_operators_of_published_rows_are_those_the_generator_is_told():
    # Counted by solving: 12 rows add all numbers, 189 subtract one, 28 subtract two, 27 need * or /.
    kinds = {"": 0, "-": 0, "--": 0, "other": 0}
    for row in TASK.rows("test"):
        solution = TASK.solution(row)
        kinds["other" if "*" in solution or "/" in solution else "-" * solution.count("-")] += 1
    assert kinds == {"": 12, "-": 189, "--": 28, "other": 27}


def test_generated_rows_have_the_operator_mix_of_the_published_ones():
    rows = TASK.rows("train")[:3000]
    solutions = [TASK.solution(row) for row in rows]
    share = sum("*" in s or "/" in s for s in solutions) / 3000
    one_minus = sum(s.count("-") == 1 and "+" in s and "*" not in s and "/" not in s for s in solutions) / 3000
    # Published: 27 / 256 = 0.105 and 189 / 256 = 0.738; three standard deviations of 3000 draws are 0.017 and 0.024.
    assert abs(share - 27 / 256) < 0.017
    assert abs(one_minus - 189 / 256) < 0.024


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 999_999))
def test_every_generated_row_is_in_bounds_solvable_and_graded_right(index):
    row = TASK.rows("train")[index]
    numbers = [int(n) for n in row["input"].split(",")]
    assert len(numbers) == 3
    assert all(1 <= n <= 100 for n in numbers)
    assert 1 <= int(row["output"]) <= 100
    assert parts(TASK.solution(row), row) == (1, 1)
    assert parts(TASK.solution(row) + f"={row['output']}", row) == (1, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.integers(0, 40))
def test_solver_finds_a_solution_exactly_where_one_exists(numbers, target):
    found = solve(numbers, target)
    assert (found is not None) == (target in reachable(tuple(sorted(numbers))))
    if found is not None:
        assert evaluate(found).value == target
        assert sorted(evaluate(found).numbers) == sorted(numbers)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=4), st.integers(1, 99))
def test_solver_is_exhaustive_for_four_numbers(numbers, target):
    found = solve(numbers, target)
    assert (found is not None) == (target in reachable(tuple(sorted(numbers))))
    assert found is None or evaluate(found).value == target


@pytest.mark.parametrize(
    ("numbers", "target", "solution"),
    [
        ([30, 100, 93], 23, "30+93-100"),
        ([1, 2, 3], 6, "1+2+3"),
        ([9, 2, 3], 4, "9-2-3"),
        ([8, 4, 2], 16, "8*4/2"),
        ([3, 3, 8, 8], 24, "8/(3-8/3)"),
    ],
)
def test_the_simplest_solution_is_written(numbers, target, solution):
    assert solve(numbers, target) == solution


@pytest.mark.parametrize(
    "completion",
    [
        "30+93-100",
        " 30 + 93 - 100 \n",
        "-100+93+30",
        "(30+93)-100",
        "30-(100-93)",
        "30+93-100=23",
        "30+93\N{MINUS SIGN}100 = 23",
        "<answer>30+93-100</answer>",
        "So \\boxed{30 + 93 - 100}.",
        "<reasoning>30+100-93=37, too much.</reasoning>\n<answer>\n30+93-100\n</answer>",
        "first try 1+1\n30+93-100",
    ],
)
def test_right_answers_in_every_accepted_form(completion):
    assert parts(completion) == (1, 1)


@pytest.mark.parametrize(
    ("completion", "well_formed"),
    [
        ("30+100-93", 1),  # 37
        ("30/(100-100)*93", 0),  # uses 100 twice
        ("93/(30-30)", 0),
        ("23", 0),
        ("", 0),
        ("30-100", 0),
        ("30+93-100+0", 0),
        ("30+93-100+30-30", 0),
        ("30+93-100=24", 0),
        ("30+93-100=23=23", 0),
        ("23=30+93-100", 0),
        ("30+93-100 is it", 0),
        ("the answer is 30+93-100", 0),
        ("30+93\n-100", 0),
        ("30+93-100\nor not", 0),
        ("<answer>30+93-100</answer><answer>1</answer>", 0),
        ("<answer>30+93-100", 0),
        ("\\boxed{30+93-100", 0),
        ("3 0+93-100", 0),
        ("30+93-1e2", 0),
        ("٣٠+93-100", 0),
        ("30+93-100" + ")" * 5000, 0),
        ("9" * 100_000, 0),
        ("(" * 100_000, 0),
    ],
)
def test_wrong_answers_are_scored_zero_not_failed(completion, well_formed):
    assert parts(completion) == (0, well_formed)


def test_division_by_zero_is_wrong_not_failed():
    row = {"id": "z", "input": "5,5,7", "output": "7"}
    assert parts("7/(5-5)", row) == (0, 1)


def test_equal_numbers_must_both_be_used():
    row = {"id": "d", "input": "90,43,90", "output": "43"}
    assert parts("90-90+43", row) == (1, 1)
    assert parts("43", row) == (0, 0)


def test_format_bonus_rewards_only_well_formed_wrong_answers():
    task = Countdown(TaskConfig(name="countdown"), format_bonus=0.1)
    values = [task.grade(ROW, text).value for text in ("30+93-100", "30+100-93", "30+93")]
    assert values == [1.0, 0.1, 0.0]


def test_prompt_is_the_published_fields_in_one_line_of_three_digit_numbers():
    prompt = TASK.prompt(ROW)
    assert (prompt.text, prompt.messages, prompt.id, prompt.task) == (
        "030,100,093=023:",
        None,
        "r",
        "countdown",
    )
    assert prompt.gold == ROW


def test_training_rows_are_no_reordered_test_rows(tmp_path):
    def key(row):
        return tuple(sorted(row["input"].split(","))), row["output"]

    published = {key(row) for row in TASK.rows("test")}
    assert not published & {key(row) for row in TASK.rows("train")[:4000]}
    # A row of the training split becomes a test row in another order: training no longer has it.
    taken = TASK.rows("train")[0]
    path = tmp_path / "test.jsonl"
    turned = ",".join(reversed(taken["input"].split(",")))
    path.write_text(json.dumps({"input": turned, "output": taken["output"]}))
    other = reward.task("countdown", seed=5, test_file=str(path))
    assert len(other.rows("test")) == 1
    assert key(other.rows("train")[0]) != key(taken)
    assert other.rows("train")[1] == TASK.rows("train")[1]


def test_a_row_without_a_solution_says_so():
    with pytest.raises(ValueError, match="no expression uses each of 1,1 once and gives 50"):
        TASK.solution({"id": "x", "input": "1,1", "output": "50"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"input": "30,100,93"}', "no field 'output'"),
        ('{"input": "30,100,93", "output": 23}', "output is 23, not a text"),
        ('{"input": "30;100;93", "output": "23"}', "30;100;93"),
        ('{"input": "30", "output": "23"}', "input is '30'"),
        ('{"input": "1,2,3,4,5,6,7", "output": "23"}', "7 numbers"),
        ('{"input": "30,100,93", "output": "2.5"}', "output '2.5'"),
        ('{"input": "30,100,٣", "output": "23"}', "allowed"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
    ],
)
def test_a_broken_row_names_file_line_and_what_is_allowed(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "1,2", "output": "3"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match="allowed") as caught:
        reward.task("countdown", train_file=str(path)).rows("train")
    assert f"{path}, line 3: " in str(caught.value)
    assert why in str(caught.value)
