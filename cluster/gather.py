"""From prompts to graded groups: draws visits, keeps rollout workers and graders busy, and hands out full steps.

    cursor -> rollout pool -> grader pool -> buffer

Answers are graded as they come in, while others are still being made. How far this runs ahead of the learner is decided
by the buffer alone. A visit without an answer after the last retry is *failed*, a group with fewer than `min_valid`
graded answers is *dropped*; both are counted, neither is drawn again, and another visit takes their place, so that a
step is never short unnoticed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.actors import wait
from cluster.buffer import GroupBuffer
from cluster.calls import CallFailure
from cluster.config import TrainRecipe
from cluster.cursor import Cursor, Visit
from cluster.errors import RunError
from cluster.evaluate import decoding_of
from cluster.grader_pool import Batch, GraderPool, verdicts
from cluster.pool import POLL_S
from cluster.rollout_pool import Answers, Ask, RolloutPool
from cluster.stopwatch import Stopwatch
from learner.groups import is_informative
from reward.shaping import shape_all
from rollout.records import Failed, Group, Score, Scored

logger = logging.getLogger(__name__)

REFILLED = "uninformative"
"""Key under which groups that other prompts replaced are counted; they are no failures."""
MAX_LOST_STEPS = 4
"""A step that loses more visits than this many steps hold is stopped: something is wrong that retries do not mend."""


@dataclass(frozen=True)
class Gathered:
    """The groups of one step."""

    groups: list[Group]
    visits: list[int]
    """Numbers of their visits."""
    failures: Mapping[str, int]
    """Failures by kind that no score of the groups carries."""


class Gatherer:
    """Owns the visits between the cursor and the learner."""

    def __init__(
        self, recipe: TrainRecipe, *, cursor: Cursor, buffer: GroupBuffer, rollouts: RolloutPool, graders: GraderPool
    ) -> None:
        self._recipe = recipe
        self._decoding = decoding_of(recipe.rollout)
        self._cursor = cursor
        self._buffer = buffer
        self._rollouts = rollouts
        self._graders = graders
        self._visits: dict[int, Visit] = {}
        self._answers: dict[int, Answers] = {}
        self._failures: Counter[str] = Counter()
        self._num_lost = 0

    def step(self, version: int, watch: Stopwatch) -> Gathered:
        """The groups of the next step, drawn while `version` is the newest; waits for them."""
        self._num_lost = 0
        while (taken := self._buffer.take()) is None:
            with watch.stage("generate"):
                self._draw(version)
            with watch.stage("generate" if self._rollouts.num_pending else "reward"):
                wait([*self._rollouts.futures(), *self._graders.futures()], timeout_s=POLL_S)
            with watch.stage("generate"):
                answered = self._rollouts.collect()
            with watch.stage("reward"):
                for ask, outcome in answered:
                    self._take_answers(ask.key, outcome)
                for batch, verdict in self._graders.collect():
                    self._take_verdicts(batch.key, verdicts(batch, verdict))
        self._buffer.check()
        failures, self._failures = dict(self._failures), Counter()
        for pool in (self._rollouts, self._graders):
            failures |= pool.take_failures()
        return Gathered([group for _, group in taken], [number for number, _ in taken], failures)

    def _draw(self, version: int) -> None:
        visits = self._cursor.draw(self._buffer.free(version))
        self._buffer.start(visits)
        self._visits |= {visit.number: visit for visit in visits}
        settings = (self._recipe.rollout.num_samples, self._recipe.seed, self._decoding)
        self._rollouts.ask([Ask(visit.prompt, *settings, key=visit.number) for visit in visits])

    def _take_answers(self, number: int, outcome: Answers | CallFailure) -> None:
        visit = self._visits[number]
        if isinstance(outcome, CallFailure):
            logger.error("prompt %s is given up: %s", visit.prompt.id, outcome.headline)
            self._failures["prompt"] += 1
            self._end(number)
            self._buffer.fail(visit)
            self._lost(str(outcome))
        else:
            self._answers[number] = outcome
            self._graders.submit([Batch.of(visit.prompt, outcome, number)])

    def _take_verdicts(self, number: int, scores: list[Score]) -> None:
        visit, answers = self._visits[number], self._answers.pop(number)
        scores = shape_all(scores, answers, self._recipe.reward.shaping)
        group = Group(visit.prompt, answers, scores)
        if sum(isinstance(score, Scored) for score in scores) >= self._recipe.learner.objective.min_valid:
            if self._is_refilled(group):
                self._failures[REFILLED] += 1
                self._end(number)
                self._buffer.drop(visit)
                return
            del self._visits[number]
            self._buffer.put(visit, group)
            return
        failed = [score for score in scores if isinstance(score, Failed)]
        logger.warning("group %s is dropped: %d of %d answers failed", visit.prompt.id, len(failed), len(scores))
        self._failures.update(score.kind for score in failed)
        self._end(number)
        self._buffer.drop(visit)
        self._lost(failed[0].why)

    def _is_refilled(self, group: Group) -> bool:
        """Whether another prompt takes the place of a group that teaches nothing."""
        groups = self._recipe.learner.groups
        is_left = self._failures[REFILLED] < groups.max_refills * self._recipe.prompts_per_step
        return groups.on_uninformative == "refill" and is_left and not is_informative(group, groups)

    def _end(self, number: int) -> None:
        del self._visits[number]
        self._cursor.finish([number])

    def _lost(self, why: str) -> None:
        self._num_lost += 1
        if self._num_lost > MAX_LOST_STEPS * self._recipe.prompts_per_step:
            raise RunError(
                f"{self._num_lost} prompts of one step came to nothing, more than {MAX_LOST_STEPS} times the "
                f"{self._recipe.prompts_per_step} that it needs; the last one because: {why}"
            )
