"""Which groups are worth a place in an update."""

import pytest
from pydantic import ValidationError

from learner.config import GroupsConfig
from learner.groups import is_informative, training_groups
from rollout.records import Failed, Group, Prompt, Scored
from tests.learner.small_models import trajectory

ANY = GroupsConfig()


def group(*corrects, values=None):
    """None marks a failed answer."""
    values = corrects if values is None else values
    scores = [
        Failed("grader", "died") if correct is None else Scored(value, {"correct": correct})
        for correct, value in zip(corrects, values, strict=True)
    ]
    return Group(Prompt("p", "t", text="1+1="), [trajectory([7], [0]) for _ in scores], scores)


def test_group_of_one_score_teaches_nothing():
    assert not is_informative(group(1.0, 1.0, 1.0), ANY)
    assert not is_informative(group(0.0, None, 0.0), ANY)
    assert not is_informative(group(1.0, None, None), ANY)
    assert not is_informative(group(None, None), ANY)
    assert is_informative(group(1.0, 0.0, None), ANY)
    # All wrong, but some are better: a share of tests passed, a shorter answer.
    assert is_informative(group(0.0, 0.0, values=[0.2, 0.4]), ANY)


def test_pass_rate_counts_graded_answers_and_its_ends_are_in():
    middle = GroupsConfig(pass_rate=(0.25, 0.5))
    assert is_informative(group(1.0, 0.0, 0.0, 0.0), middle)
    assert is_informative(group(1.0, 0.0, None), middle)
    assert not is_informative(group(1.0, 1.0, 0.0), middle)
    assert not is_informative(group(1.0, 0.0, 0.0, 0.0, 0.0), middle)


def test_only_drop_takes_groups_out_of_an_update():
    groups = [group(1.0, 1.0), group(1.0, 0.0)]
    assert training_groups(groups, GroupsConfig(on_uninformative="drop")) == groups[1:]
    for kind in ("keep", "refill"):  # refilled ones never come this far, until the refills of a step are used up
        assert training_groups(groups, GroupsConfig(on_uninformative=kind)) == groups


@pytest.mark.parametrize("pass_rate", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_impossible_rates_are_refused(pass_rate):
    with pytest.raises(ValidationError, match="must be two shares, 0 <= low <= high <= 1"):
        GroupsConfig(pass_rate=pass_rate)
