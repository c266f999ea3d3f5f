"""Every drawn prompt is trained, dropped or failed, and a step is never short."""

import pytest

from cluster.buffer import GroupBuffer
from cluster.calls import CallFailure
from cluster.config import TrainRecipe
from cluster.cursor import Cursor
from cluster.errors import RunError
from cluster.gather import MAX_LOST_STEPS, REFILLED, Gatherer
from cluster.stopwatch import Stopwatch
from rollout.records import Failed, Scored
from tests.cluster.standins import InstantPool, LetterTask, trajectory

RIGHT = Scored(1.0, {"correct": 1.0})
BROKEN = Failed("grader_timeout", "no answer within 60 s")


def gatherer(*, lost=(), broken=(), learner=None):
    """Two prompts of three answers a step; visits in `lost` get no answer, those in `broken` no verdict."""
    recipe = TrainRecipe.model_validate(
        {
            "tasks": [{"name": "arithmetic"}],
            "prompts_per_step": 2,
            "rollout": {"num_samples": 3},
            "learner": learner or {},
        }
    )
    died = CallFailure("actor_lost", "rollout-0", "generate", "the actor was killed")

    def answer(ask):
        return died if ask.key in lost else [trajectory(ask.prompt.id, sample) for sample in range(ask.num_samples)]

    def grade(batch):
        # one verdict is left of three, fewer than the two that a comparison needs
        return [BROKEN, BROKEN, RIGHT] if batch.key in broken else [RIGHT] * len(batch.triples)

    cursor = Cursor([LetterTask("a", 100)], [1.0], seed=0)
    buffer = GroupBuffer(groups_per_step=2, staleness=0, max_in_flight=2)
    rollouts = InstantPool(answer)
    parts = Gatherer(recipe, cursor=cursor, buffer=buffer, rollouts=rollouts, graders=InstantPool(grade))
    return parts, cursor, buffer, rollouts


def test_a_step_has_the_oldest_visits_in_order_whatever_finished_first():
    parts, cursor, buffer, rollouts = gatherer()
    gathered = parts.step(0, Stopwatch())
    assert gathered.visits == [0, 1]
    assert [group.prompt.id for group in gathered.groups] == [ask.prompt.id for ask in rollouts.asked]
    assert all(len(group.trajectories) == 3 for group in gathered.groups)
    assert cursor.frontier == 0
    cursor.finish(gathered.visits)
    buffer.commit(gathered.visits)
    assert parts.step(1, Stopwatch()).visits == [2, 3]
    buffer.commit([2, 3])
    assert buffer.counts == {"trained": 4, "dropped": 0, "failed": 0, "drawn": 4}


def test_failed_and_dropped_visits_are_replaced_counted_and_never_drawn_again():
    parts, cursor, buffer, _ = gatherer(lost={0}, broken={2})
    gathered = parts.step(0, Stopwatch())
    # 0 failed, its place went to 2, which was dropped, and that place to 3
    assert gathered.visits == [1, 3]
    assert gathered.failures == {"prompt": 1, "grader_timeout": 2}
    buffer.commit(gathered.visits)
    assert buffer.counts == {"trained": 2, "dropped": 1, "failed": 1, "drawn": 4}
    cursor.finish(gathered.visits)
    assert cursor.state().frontier == 4


def test_a_group_with_enough_verdicts_is_kept_with_its_failure():
    parts, _, _, _ = gatherer()
    parts._graders = InstantPool(lambda batch: [RIGHT, BROKEN, RIGHT])
    gathered = parts.step(0, Stopwatch())
    assert [score for group in gathered.groups for score in group.scores] == [RIGHT, BROKEN, RIGHT] * 2
    assert gathered.failures == {}


WRONG = Scored(0.0, {"correct": 0.0})


def test_groups_that_teach_nothing_are_replaced_by_other_prompts_and_counted():
    parts, cursor, buffer, _ = gatherer(learner={"groups": {"on_uninformative": "refill"}})
    parts._graders = InstantPool(lambda batch: [RIGHT, WRONG if batch.key in (1, 4) else RIGHT, RIGHT])
    gathered = parts.step(0, Stopwatch())
    # 0, 2 and 3 are all right: their places went to 2, 3 and 4.
    assert gathered.visits == [1, 4]
    assert gathered.failures == {REFILLED: 3}
    assert buffer.counts["dropped"] == 3
    cursor.finish(gathered.visits)
    assert cursor.state().frontier == 5


def test_after_the_last_refill_of_a_step_groups_are_kept_as_they_come():
    parts, _, buffer, _ = gatherer(learner={"groups": {"on_uninformative": "refill", "max_refills": 1.5}})
    gathered = parts.step(0, Stopwatch())
    # All of them are right: 1.5 times 2 prompts are replaced, then the next two are taken.
    assert gathered.failures == {REFILLED: 3}
    assert len(gathered.groups) == 2
    assert buffer.counts["dropped"] == 3


def test_a_step_that_loses_prompt_after_prompt_stops_with_the_cause():
    parts, _, buffer, _ = gatherer(lost=set(range(100)))
    with pytest.raises(RunError, match=r"9 prompts of one step came to nothing.*the actor was killed"):
        parts.step(0, Stopwatch())
    assert MAX_LOST_STEPS * 2 + 1 == 9
    assert buffer.counts["failed"] == 9
