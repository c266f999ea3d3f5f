"""Verdicts come back in order, and a grader that is lost or late is never a score."""

import pytest

from cluster.actors import Launcher
from cluster.calls import CallFailure
from cluster.grader_pool import ANSWERS_PER_CALL, Batch, GraderPool, verdicts
from reward import task
from reward.config import RewardConfig, TaskConfig
from rollout.records import Failed, Scored

TASKS = (TaskConfig(name="arithmetic"),)


@pytest.fixture
def pool():
    pool = GraderPool(TASKS, RewardConfig(num_workers=2), launcher=Launcher(mode="local"))
    pool.start()
    return pool


def triples(num_rows):
    """Right answers at even places, wrong ones at odd places."""
    arithmetic = task("arithmetic")
    rows = arithmetic.rows("train")[:num_rows]
    return [
        ("arithmetic", row, arithmetic.solution(row) if place % 2 == 0 else "no idea") for place, row in enumerate(rows)
    ]


def test_verdicts_come_in_the_order_of_the_answers(pool):
    scores = pool.grade(triples(2 * ANSWERS_PER_CALL + 5))
    assert [score.value for score in scores] == [float(place % 2 == 0) for place in range(len(scores))]


def test_a_killed_grader_costs_no_verdict(pool):
    for member in pool._members:
        member.handle.kill()
    scores = pool.grade(triples(ANSWERS_PER_CALL + 1))
    assert all(isinstance(score, Scored) for score in scores)
    assert pool.num_restarts == 2


def test_without_a_grader_every_answer_of_the_batch_is_failed_and_has_no_number():
    batch = Batch(tuple(triples(2)))
    late = CallFailure("timeout", "grader-0", "grade", "no answer within 60 s")
    scores = verdicts(batch, late)
    assert [score.kind for score in scores] == ["grader_timeout"] * 2
    assert all(isinstance(score, Failed) and "no answer within 60 s" in score.why for score in scores)


def test_no_answers_give_no_verdicts(pool):
    assert pool.grade([]) == []
