"""The comparison at equal forwards, on numbers that can be worked out by hand."""

import numpy as np
import pytest

from benchmarks.policy_frontier import Point, gap

ROWS = 40


def point(sampler, forwards, accuracy, seeds=1):
    """Every row takes `forwards`; so many rows are right."""
    correct_RS = np.zeros((ROWS, seeds))
    correct_RS[: round(accuracy * ROWS)] = 1.0
    return Point(sampler, "", correct_RS, np.full((ROWS, seeds), float(forwards)))


SWEEP = [point("threshold", 6, 0.6), point("threshold", 2, 0.2), point("threshold", 4, 0.5)]


@pytest.mark.parametrize(
    ("forwards", "accuracy", "above"),
    [(4, 0.5, 0.0), (3, 0.35, 0.0), (5, 0.6, 5.0), (3, 0.2, -15.0), (1, 0.2, 0.0), (9, 0.6, 0.0)],
)
def test_a_policy_is_compared_with_the_threshold_at_its_own_forwards(forwards, accuracy, above):
    mean, low, high = gap(point("policy", forwards, accuracy), SWEEP)
    assert mean == pytest.approx(above)
    assert low <= mean <= high


def test_policies_of_one_label_are_each_compared_where_they_stand():
    slow, fast = point("policy", 6, 0.6), point("policy", 2, 0.3)
    both = Point(
        "policy",
        "",
        np.concatenate([slow.correct_RS, fast.correct_RS], axis=1),
        np.concatenate([slow.forwards_RS, fast.forwards_RS], axis=1),
        num_policies=2,
    )
    assert [gap(one, SWEEP)[0] for one in both.each()] == pytest.approx([0.0, 10.0])
    assert gap(both, SWEEP)[0] == pytest.approx(5.0)
