"""Every drawn prompt is trained, dropped or failed, and a step is never short."""

import pytest

from cluster.buffer import GroupBuffer
from cluster.calls import CallFailure
from cluster.config import TrainRecipe
from cluster.cursor import Cursor
from cluster.errors import RunError
from cluster.gather import MAX_LOST_STEPS, MAX_REDRAWS, REFILLED, Gatherer
from cluster.stopwatch import Stopwatch
from rollout.records import Failed, Scored
from tests.cluster.standins import InstantPool, LetterTask, trajectory

RIGHT = Scored(1.0, {"correct": 1.0})
BROKEN = Failed("grader_timeout", "no answer within 60 s")
NEWEST = 1
"""Weights of all answers; none is too old."""


def gatherer(*, lost=(), broken=(), staleness=0, version=NEWEST, num_rows=100, learner=None):
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
        return (
            died
            if ask.key in lost
            else [
                trajectory(ask.prompt.id, sample, weights_version=(version, version))
                for sample in range(ask.num_samples)
            ]
        )

    def grade(batch):
        # one verdict is left of three, fewer than the two that a comparison needs
        return [BROKEN, BROKEN, RIGHT] if batch.key in broken else [RIGHT] * len(batch.triples)

    cursor = Cursor([LetterTask("a", num_rows)], [1.0], seed=0)
    buffer = GroupBuffer(groups_per_step=2, staleness=staleness, max_in_flight=2 * (staleness + 1))
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


class Later:
    """A call that ends after some looks at it."""

    remaining_s = 0.0

    def __init__(self, looks):
        self.looks = looks

    def is_done(self):
        self.looks -= 1
        return self.looks < 0


def while_the_learner_works(parts, version):
    """What the driver does until the update has ended."""
    update = Later(20)
    while not update.is_done():
        parts.turn(version, [update])


def test_with_staleness_one_the_next_step_is_made_while_the_learner_works():
    parts, _, buffer, rollouts = gatherer(staleness=1)
    first = parts.step(0, Stopwatch())
    while_the_learner_works(parts, version=0)
    # two in the learner's hands and two made beside it: (staleness 1 + version 0 + 1) * 2
    assert len(rollouts.asked) == 4
    assert len(buffer) == 2
    buffer.commit(first.visits)
    assert parts.step(1, Stopwatch()).visits == [2, 3]


def test_a_synchronous_run_makes_nothing_while_the_learner_works():
    parts, _, buffer, rollouts = gatherer(staleness=0)
    parts.step(0, Stopwatch())
    while_the_learner_works(parts, version=0)
    assert len(rollouts.asked) == 2
    assert len(buffer) == 0


def test_a_group_that_got_too_old_is_drawn_again_and_at_last_dropped():
    parts, _, buffer, rollouts = gatherer(staleness=1, version=0)
    # with version 2 out, answers of version 0 are never taken: each visit is tried three times, then dropped; another
    # takes its place, until more are lost than a step may lose
    with pytest.raises(RunError, match=r"came to nothing.*too old"):
        parts.step(2, Stopwatch())
    tries = [sum(ask.key == visit for ask in rollouts.asked) for visit in (0, 1)]
    assert tries == [MAX_REDRAWS + 1] * 2
    assert buffer.counts["dropped"] == MAX_LOST_STEPS * 2 + 1
    buffer.check()


def test_a_row_that_no_worker_could_answer_is_left_out_of_later_epochs():
    # five rows, so visits 5 to 9 are the second epoch; the row of visit 0 comes once in it
    parts, cursor, buffer, rollouts = gatherer(lost={0}, num_rows=5)
    for version in range(4):
        gathered = parts.step(version, Stopwatch()) if version <= NEWEST else None
        if gathered:
            buffer.commit(gathered.visits)
            cursor.finish(gathered.visits)
    (row,) = parts.quarantined
    assert "the actor was killed" in parts.quarantined[row]
    asked_before = len(rollouts.asked)
    parts._draw(4)
    second_epoch = [ask.prompt.id for ask in rollouts.asked[asked_before:]]
    assert second_epoch
    assert f"{row}#1" not in [ask.prompt.id for ask in rollouts.asked]
