"""The memory that a dry run names for a learner rank is what a rank takes, within 20 %, on the built-in model."""

import sys

import pytest

from benchmarks.memory import TOLERANCE, cases, estimated, measured, recipe_of


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_estimate_is_within_a_fifth_of_what_a_rank_takes():
    case = next(case for case in cases("tiny") if case.name == "float32, ZeRO 1")
    recipe = recipe_of(case, "tiny")
    assert abs(estimated(recipe) / measured(recipe) - 1) < TOLERANCE
