"""Which groups are worth training on: dynamic sampling and the filter by pass rate.

A group whose answers all have the same score has no advantage anywhere. It costs no forward of the learner, but it
counts in the denominators of an update and takes a place in it: with many of them an update is short. What happens to
it is `on_uninformative`:

    keep     it counts as it is                                                   GRPO
    drop     it leaves the update: the denominators count the others only
    refill   it is dropped, and another prompt is drawn in its place              DAPO (2503.14476, dynamic sampling)

`pass_rate` widens that to groups that are too easy or too hard (TraceRL's framework trains on rates of 0.2 to 0.8).
"""

from __future__ import annotations

from collections.abc import Sequence

from learner.config import GroupsConfig
from rollout.records import Group, Scored


def is_informative(group: Group, config: GroupsConfig) -> bool:
    """Whether the scores of a group differ, and its share of right answers lies in the wanted range.

    Failed answers take no part; a group with fewer than two graded answers is not informative.
    """
    scored = [score for score in group.scores if isinstance(score, Scored)]
    if len(scored) < 2:
        return False
    values = [score.value for score in scored]
    if max(values) <= min(values):
        return False
    low, high = config.pass_rate
    if (low, high) == (0.0, 1.0):
        return True
    return low <= sum(score.parts["correct"] for score in scored) / len(scored) <= high


def training_groups(groups: Sequence[Group], config: GroupsConfig) -> list[Group]:
    """The groups of an update: all, or with `drop` the informative ones."""
    if config.on_uninformative != "drop":
        return list(groups)
    return [group for group in groups if is_informative(group, config)]
