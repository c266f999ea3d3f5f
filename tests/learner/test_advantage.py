import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner import group_advantages

NAN = float("nan")


def advantages(rows, kind="mean", min_valid=2):
    """None marks a failed answer."""
    score = torch.tensor([[NAN if value is None else value for value in row] for row in rows])
    valid = torch.tensor([[value is not None for value in row] for row in rows])
    return group_advantages(score, valid, kind=kind, min_valid=min_valid).tolist()


def test_mean_subtracts_each_groups_own_mean():
    # Means .5 and 2: a baseline over the whole batch (1.25) would give other numbers.
    assert advantages([[1.0, 0.0, 0.0, 1.0], [2.0, 1.0, 2.0, 3.0]]) == [[0.5, -0.5, -0.5, 0.5], [0.0, -1.0, 0.0, 1.0]]


def test_std_divides_by_the_sample_standard_deviation_plus_epsilon():
    # (1, 0, 0, 1): sum of squares 4 * .25 = 1, over n - 1 = 3: s = sqrt(1/3) = .57735; .5 / (.57735 + .0001) = .865875
    assert advantages([[1.0, 0.0, 0.0, 1.0]], "std")[0] == pytest.approx([0.865875, -0.865875, -0.865875, 0.865875])


def test_leave_one_out_subtracts_the_mean_of_the_others():
    # For a 1: the others are (0, 0, 1), mean 1/3. For a 0: (1, 0, 1), mean 2/3.
    assert advantages([[1.0, 0.0, 0.0, 1.0]], "loo")[0] == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


def test_failed_answer_does_not_move_its_group():
    # (1, 0, failed, 1): mean of the valid ones 2/3.
    assert advantages([[1.0, 0.0, None, 1.0]])[0] == pytest.approx([1 / 3, -2 / 3, 0.0, 1 / 3])


def test_std_and_leave_one_out_count_valid_answers_only():
    # (1, 0, failed, 1): squares 1/9 + 4/9 + 1/9 = 2/3 over 2: s = .57735; (1/3) / .57745 = .57725.
    assert advantages([[1.0, 0.0, None, 1.0]], "std")[0] == pytest.approx([0.57725, -1.15450, 0.0, 0.57725], abs=1e-5)
    # The others of the first are (0, 1): 1 - .5; of the second (1, 1): 0 - 1.
    assert advantages([[1.0, 0.0, None, 1.0]], "loo")[0] == pytest.approx([0.5, -1.0, 0.0, 0.5])


def test_softmax_difference_weighs_good_against_bad_answers_of_a_group():
    # A = (.5, .5, -.5, -.5): e^.5 / (2 e^.5 + 2 e^-.5) = .36552 and .13447; the difference is +-.23106.
    assert advantages([[1.0, 1.0, 0.0, 0.0], [3.0, None, 3.0, 3.0]], "softmax") == [
        pytest.approx([0.231059, 0.231059, -0.231059, -0.231059], abs=1e-5),
        [0.0] * 4,
    ]
    # A = (.5, -.5) over two valid ones: tanh(.5).
    assert advantages([[1.0, None, 0.0]], "softmax")[0] == pytest.approx([math.tanh(0.5), 0.0, -math.tanh(0.5)])


@pytest.mark.parametrize("kind", ["mean", "std", "loo", "softmax"])
def test_group_of_equal_scores_gets_exactly_zero(kind):
    # The float32 mean of three times 0.9 is not 0.9.
    assert advantages([[0.9, 0.9, 0.9], [0.7, None, 0.7]], kind) == [[0.0] * 3, [0.0] * 3]


def test_group_with_too_few_valid_answers_gets_zero():
    assert advantages([[1.0, None, None], [None, None, None]]) == [[0.0] * 3, [0.0] * 3]
    assert advantages([[1.0, 0.0, None], [1.0, 0.0, 2.0]], min_valid=3) == [[0.0] * 3, [0.0, -1.0, 1.0]]


_scores = st.lists(st.lists(st.one_of(st.none(), st.floats(-4, 4, width=32)), min_size=5, max_size=5), min_size=1)


@given(_scores, st.sampled_from(["mean", "std", "loo", "softmax"]))
def test_advantages_of_a_group_sum_to_zero(rows, kind):
    for row in advantages(rows, kind):
        assert sum(row) == pytest.approx(0.0, abs=1e-4)


@given(_scores, st.floats(-3, 3, width=32))
def test_adding_a_constant_to_all_scores_of_a_prompt_changes_nothing(rows, constant):
    moved = [[None if value is None else value + constant for value in row] for row in rows]
    for before, after in zip(advantages(rows), advantages(moved), strict=True):
        assert before == pytest.approx(after, abs=1e-5)


def test_std_does_not_depend_on_the_scale_of_the_scores():
    small, large = advantages([[1.0, 0.0, 3.0]], "std")[0], advantages([[10.0, 0.0, 30.0]], "std")[0]
    assert small == pytest.approx(large, abs=1e-3)


def test_bad_input_is_refused_with_what_is_allowed():
    score, valid = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(2, 3\) and valid \(2, 2\) must have one shape \(B, G\)"):
        group_advantages(score, valid[:, :2], kind="mean")
    with pytest.raises(ValueError, match="choose mean, std, loo or softmax"):
        group_advantages(score, valid, kind="median")
    with pytest.raises(ValueError, match="min_valid must be at least 2"):
        group_advantages(score, valid, kind="mean", min_valid=1)
    with pytest.raises(ValueError, match="not finite"):
        group_advantages(torch.full((1, 2), NAN), torch.tensor([[True, True]]), kind="mean")
