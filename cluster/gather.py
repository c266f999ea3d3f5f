"""From prompts to graded groups: draws visits, keeps rollout workers and graders busy, and hands out full steps.

    cursor -> rollout pool -> grader pool -> buffer

Answers are graded as they come in, while others are still being made. How far this runs ahead of the learner is decided
by the buffer alone: while the learner works, `turn` keeps the pools busy, which with a staleness of 0 is nothing to do.

A visit without an answer after the last retry is *failed*, and its row is quarantined: later epochs leave it out. A
group with fewer than `min_valid` graded answers is *dropped*. Both are counted, neither is drawn again, and another
visit takes their place, so that a step is never short unnoticed. A group that got too old in the buffer is drawn again,
`MAX_REDRAWS` times, and then dropped.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.actors import wait
from cluster.buffer import Entry, GroupBuffer
from cluster.calls import CallFailure, Future
from cluster.config import TrainRecipe
from cluster.cursor import Cursor, Visit
from cluster.errors import RunError
from cluster.evaluate import decoding_of
from cluster.grader_pool import Batch, GraderPool, verdicts
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
MAX_REDRAWS = 2
TURN_S = 1.0
"""Longest wait before the driver looks whether it was told to stop."""


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
        self,
        recipe: TrainRecipe,
        *,
        cursor: Cursor,
        buffer: GroupBuffer,
        rollouts: RolloutPool,
        graders: GraderPool,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        """`interrupt` is called between turns and may raise: nothing is half done then."""
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
        self._interrupt = interrupt
        self._again: deque[Visit] = deque()
        self._num_redraws: Counter[int] = Counter()
        self.quarantined: dict[str, str] = {}
        """Rows that no worker could answer, by id, and why."""

    def step(self, version: int, watch: Stopwatch) -> Gathered:
        """The groups of the next step, drawn while `version` is the newest; waits for them."""
        self._num_lost = 0
        self._interrupt()
        while (taken := self._reserve(version)) is None:
            self._interrupt()
            with watch.stage("generate"):
                self._draw(version)
            with watch.stage("generate" if self._rollouts.num_pending else "reward"):
                wait([*self._rollouts.futures(), *self._graders.futures()], timeout_s=TURN_S)
            with watch.stage("generate"):
                answered = self._rollouts.collect()
            with watch.stage("reward"):
                self._take(answered)
        self._buffer.check()
        failures, self._failures = dict(self._failures), Counter()
        for pool in (self._rollouts, self._graders):
            failures |= pool.take_failures()
        return Gathered([entry.group for entry in taken], [entry.visit.number for entry in taken], failures)

    def turn(self, version: int, others: Sequence[Future]) -> None:
        """Draws, and takes what has ended, while the driver waits for `others`; returns when anything ends, or soon."""
        self._draw(version)
        wait([*others, *self._rollouts.futures(), *self._graders.futures()], timeout_s=TURN_S)
        self._take(self._rollouts.collect())

    def note_failure(self, kind: str) -> None:
        """Counts a failure to the next step."""
        self._failures[kind] += 1

    def abandon(self) -> None:
        """Forgets every visit that is under way: the weights that answer it are no longer those of the run."""
        for pool in (self._rollouts, self._graders):
            pool.abandon()
        self._visits, self._answers = {}, {}
        self._again.clear()
        self._num_redraws.clear()

    def _reserve(self, version: int) -> list[Entry] | None:
        for entry in self._buffer.expire(version):
            self._redraw(entry.visit)
        return self._buffer.reserve()

    def _redraw(self, visit: Visit) -> None:
        self._num_redraws[visit.number] += 1
        if self._num_redraws[visit.number] <= MAX_REDRAWS:
            self._again.append(visit)
            return
        logger.warning("group %s is dropped: it was too old %d times", visit.prompt.id, MAX_REDRAWS + 1)
        self._failures["stale"] += 1
        self._buffer.start([visit])
        self._buffer.drop(visit)
        self._cursor.finish([visit.number])
        self._lost("its answers were too old")

    def _take(self, answered: Sequence[tuple[Ask, Answers | CallFailure]]) -> None:
        for ask, outcome in answered:
            self._take_answers(ask.key, outcome)
        for batch, verdict in self._graders.collect():
            self._take_verdicts(batch.key, verdicts(batch, verdict))

    def _draw(self, version: int) -> None:
        num_free = self._buffer.free(version)
        visits = [self._again.popleft() for _ in range(min(num_free, len(self._again)))]
        while len(visits) < num_free:
            visits += self._admit(self._cursor.draw(num_free - len(visits)))
        self._buffer.start(visits)
        self._visits |= {visit.number: visit for visit in visits}
        settings = (self._recipe.rollout.num_samples, self._recipe.seed, self._decoding)
        self._rollouts.ask([Ask(visit.prompt, *settings, key=visit.number) for visit in visits])

    def _admit(self, visits: Sequence[Visit]) -> list[Visit]:
        """The visits whose rows are not quarantined; the others end here."""
        for visit in visits:
            if (why := self.quarantined.get(row_of(visit))) is not None:
                self._failures["quarantined"] += 1
                self._buffer.start([visit])
                self._buffer.fail(visit)
                self._cursor.finish([visit.number])
                self._lost(why)
        return [visit for visit in visits if row_of(visit) not in self.quarantined]

    def _take_answers(self, number: int, outcome: Answers | CallFailure) -> None:
        visit = self._visits[number]
        if isinstance(outcome, CallFailure):
            logger.error("prompt %s is given up: %s", visit.prompt.id, outcome.headline)
            self._failures["prompt"] += 1
            self.quarantined[row_of(visit)] = outcome.headline
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


def row_of(visit: Visit) -> str:
    """Id of the task row, the same in every epoch."""
    return visit.prompt.id.rpartition("#")[0]
