"""The graders of a run: answers in, verdicts out.

A grader that is lost or late is no verdict on an answer: after the last retry every answer of the batch gets `Failed`
with the kind of what happened, never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.actors import Launcher
from cluster.calls import ActorSpec, CallFailure, Future, Handle
from cluster.placement import Placement
from cluster.pool import WorkerPool
from reward.config import RewardConfig, TaskConfig
from reward.worker import GraderWorker
from rollout.records import Failed, Prompt, Score, Trajectory

ANSWERS_PER_CALL = 64
Triple = tuple[str, Mapping[str, Any], str]
"""Name of the task, row, completion."""


@dataclass(frozen=True)
class Batch:
    """Answers that are graded in one call."""

    triples: tuple[Triple, ...]
    key: int = -1
    """Whatever the asker knows it by."""

    @staticmethod
    def of(prompt: Prompt, trajectories: Sequence[Trajectory], key: int) -> Batch:
        """The answers to one prompt."""
        return Batch(tuple((prompt.task, prompt.gold, trajectory.text) for trajectory in trajectories), key)


class GraderPool(WorkerPool[Batch, list[Score]]):
    """Graders behind one queue."""

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        reward: RewardConfig,
        *,
        launcher: Launcher,
        placement: Placement | None = None,
        start_timeout_s: float = 600,
    ) -> None:
        place = placement or Placement()
        specs = [
            ActorSpec(
                f"grader-{index}",
                GraderWorker,
                (tuple(tasks),),
                num_cpus=reward.cpus_per_worker,
                bundle=place.bundle("grader", index),
            )
            for index in range(reward.num_workers)
        ]
        super().__init__(specs, launcher, max_retries=reward.max_retries, place_timeout_s=start_timeout_s)
        self._config = reward
        self._start_timeout_s = start_timeout_s
        self.metadata: dict[str, str] = {}
        """What the graders' self-tests found that a run should remember; there once the pool has started."""

    def grade(self, triples: Sequence[Triple]) -> list[Score]:
        """Verdicts in order; waits for them."""
        starts = range(0, len(triples), ANSWERS_PER_CALL)
        batches = [Batch(tuple(triples[start : start + ANSWERS_PER_CALL])) for start in starts]
        for batch in batches:
            self.submit([batch])
        outcomes = self.finish(batches)
        return [score for pair in zip(batches, outcomes, strict=True) for score in verdicts(*pair)]

    def _prepare(self, handle: Handle) -> list[Future]:
        return [handle.call(name, timeout_s=self._start_timeout_s) for name in ("self_test", "metadata")]

    def _wrong_with(self, handle: Handle, answers: Sequence[Any]) -> str:
        problems, metadata = answers[-2:]
        self.metadata |= metadata
        return "; ".join(problems)

    def _call(self, handle: Handle, items: Sequence[Batch]) -> Future:
        (batch,) = items
        return handle.call("grade", list(batch.triples), timeout_s=self._config.timeout_s)

    def _results(self, items: Sequence[Batch], value: list[Score]) -> list[list[Score]]:
        return [value]


def verdicts(batch: Batch, outcome: list[Score] | CallFailure) -> list[Score]:
    """One score for each answer of the batch."""
    if isinstance(outcome, CallFailure):
        return [Failed(f"grader_{outcome.kind}", outcome.headline)] * len(batch.triples)
    return outcome
