"""Arithmetic: generated rows, the fixed test split and the grader."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reward

TASK = reward.task("arithmetic", seed=7, num_train_rows=1_000_000)
ROW = {"id": "r", "input": "37+485", "output": "522"}


def content(row):
    """The problem without the order of a sum or a product."""
    for operator in "+*":
        if operator in row["input"]:
            return operator, *sorted(row["input"].split(operator))
    return ("-", *row["input"].split("-"))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 999_999))
def test_every_generated_row_is_right_and_in_bounds(index):
    row = TASK.rows("train")[index]
    operator, a, b = content(row)
    first, second = row["input"].split(operator)
    result = {"+": int(a) + int(b), "-": int(first) - int(second), "*": int(a) * int(b)}[operator]
    assert str(result) == row["output"]
    assert str(result).zfill(3) == TASK.solution(row)
    assert result >= 0
    assert sorted(map(len, (a, b)))[-1] <= 2
    assert TASK.grade(row, row["output"]).value == 1
    assert TASK.grade(row, str(result + 1)).value == 0
    assert TASK.grade(row, row["output"] + "0").value == float(result == 0)


def test_all_three_operators_come_up_in_their_shares():
    operators = [content(row)[0] for row in TASK.rows("train")[:2000]]
    # Three standard deviations of 2000 draws: 0.033.
    assert abs(operators.count("+") / 2000 - 0.4) < 0.033
    assert abs(operators.count("-") / 2000 - 0.4) < 0.033
    assert abs(operators.count("*") / 2000 - 0.2) < 0.033


def test_test_rows_are_512_different_ones_and_the_same_for_every_seed():
    rows = TASK.rows("test")
    assert len(rows) == len({content(row) for row in rows}) == 512
    assert rows == reward.task("arithmetic", seed=8).rows("test")
    assert all(TASK.grade(row, TASK.solution(row)).value == 1 for row in rows)


def test_no_training_row_is_a_test_row_in_either_order():
    held_out = {content(row) for row in TASK.rows("test")}
    for seed in (0, 7):
        task = reward.task("arithmetic", seed=seed, num_train_rows=8000)
        assert not held_out & {content(row) for row in task.rows("train")}


def test_training_avoids_the_rows_of_a_test_file(tmp_path):
    taken = TASK.rows("train")[0]
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"input": taken["input"], "output": taken["output"]}))
    other = reward.task("arithmetic", seed=7, test_file=str(path)).rows("train")
    assert other[0]["input"] != taken["input"]
    assert other[1] == TASK.rows("train")[1]


@pytest.mark.parametrize(
    ("completion", "correct", "well_formed"),
    [
        ("522", 1, 1),
        (" 522\n", 1, 1),
        ("522.0", 1, 1),
        ("\\boxed{522}", 1, 1),
        ("thinking 511\n522", 1, 1),
        ("523", 0, 1),
        ("-522", 0, 1),
        ("5220", 0, 1),
        ("5 22", 0, 0),
        ("522522", 0, 1),
        ("522\n7", 0, 1),
        ("", 0, 0),
        ("٥٢٢", 0, 0),
        ("37+485", 0, 0),
        ("5.22e2", 0, 0),
        ("9" * 1_000_000, 0, 0),
    ],
)
def test_grading(completion, correct, well_formed):
    score = TASK.grade(ROW, completion)
    assert (score.value, score.parts) == (correct, {"correct": correct, "format": well_formed})


def test_prompt_is_the_problem_and_an_equals_sign():
    assert TASK.prompt(ROW).text == "37+485="


def test_rows_of_a_file_may_have_negative_results(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "3-10", "output": "-7"}\n')
    row = reward.task("arithmetic", train_file=str(path)).rows("train")[0]
    assert row == {"id": "arithmetic/train/0", "input": "3-10", "output": "-7"}
    assert TASK.grade(row, "-7").value == TASK.grade(row, "\N{MINUS SIGN}7").value == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"input": "37+485", "output": "523"}', "37+485 is 522"),
        ('{"input": "37/485", "output": "0"}', "input is '37/485'"),
        ('{"input": "1+2+3", "output": "6"}', "input is '1+2+3'"),
        ('{"output": "6"}', "no field 'input'"),
    ],
)
def test_a_broken_row_names_what_is_wrong(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match="allowed") as caught:
        reward.task("arithmetic", test_file=str(path)).rows("test")
    assert f"{path}, line 1: " in str(caught.value)
    assert why in str(caught.value)
