"""The learner: one or more ranks that act as one.

All ranks get every call, because most of their methods are collective. A rank that is gone or late leaves the others
waiting in a collective that nobody will join, so the first failure of a call ends the whole group: all ranks are
killed, and `LearnerLostError` names the failed one and quotes its log. `restart` makes a new group of the same ranks;
to bring it to the last checkpoint is the run's affair (`cluster.recovery`).

While the ranks work, the driver does what `alongside` names: with a staleness above 0 it draws and grades prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.actors import Launcher, wait
from cluster.calls import ActorError, ActorSpec, CallFailure, Future, Handle
from cluster.config import SftRecipe, TrainRecipe
from cluster.placement import Placement
from cluster.pool import POLL_S
from learner.records import BatchStats, Sample, balance
from learner.worker import LearnerRank

if TYPE_CHECKING:
    from learner.agdo import Guide
    from learner.config import AgdoConfig
    from learner.guide import FinishedText
    from learner.sft import MaskedExample

logger = logging.getLogger(__name__)


PEER_TIMEOUT_S = 5.0
"""How long the other ranks are waited for after one failed."""


class LearnerLostError(ActorError):
    """A rank failed; the group has been killed."""


class LearnerGroup:
    """The ranks of one learner."""

    def __init__(
        self,
        recipe: TrainRecipe | SftRecipe,
        *,
        launcher: Launcher,
        placement: Placement | None = None,
        rank: Callable[..., Any] = LearnerRank,
    ) -> None:
        self._engine = recipe.learner.engine
        self._keep_zero_advantage = recipe.learner.objective.kl_coef > 0
        self._is_local = launcher.mode == "local"
        self._meanwhile: Callable[[Sequence[Future]], None] | None = None
        self._running: Sequence[Future] = ()
        place = placement or Placement()
        self._ranks: list[Handle] = [
            launcher.launch(
                ActorSpec(
                    f"learner-{number}",
                    rank,
                    (recipe.model, recipe.learner),
                    {
                        "rank": number,
                        "world_size": self._engine.num_ranks,
                        "total_steps": recipe.steps if isinstance(recipe, TrainRecipe) else recipe.sft.steps,
                        "seed": recipe.seed,
                    },
                    num_cpus=self._engine.cpus_per_rank,
                    num_gpus=self._engine.gpus_per_rank,
                    bundle=place.bundle("learner", number),
                )
            )
            for number in range(self._engine.num_ranks)
        ]

    def start(self) -> dict[str, Any]:
        """Loads the model on all ranks; the meeting point is rank 0's address and a port that is free there now."""
        timeout_s = self._engine.start_timeout_s
        address = self._join([self._ranks[0].call("address", timeout_s=timeout_s)])
        port = self._join([self._ranks[0].call("free_port", timeout_s=timeout_s)])
        description: dict[str, Any] = self._all("start", address, port, timeout_s=timeout_s)
        return description

    def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One policy update from all samples of a step, dealt out so that the ranks have equal work."""
        stats = BatchStats.of(samples)
        shares = balance(samples, len(self._ranks), keep_zero_advantage=self._keep_zero_advantage)
        calls = [
            handle.call("update", share, stats, timeout_s=self._engine.timeout_s)
            for handle, share in zip(self._ranks, shares, strict=True)
        ]
        metrics: dict[str, float] = self._join(calls)
        return metrics

    def sft_step(self, masked: Sequence[MaskedExample]) -> dict[str, float]:
        """One supervised update from all examples of a step."""
        return self._supervised("sft_step", masked)

    def sft_evaluate(self, masked: Sequence[MaskedExample]) -> dict[str, float]:
        """The supervised loss of examples, without an update."""
        return self._supervised("sft_evaluate", masked)

    def sft_guides(self, texts: Sequence[FinishedText], config: AgdoConfig) -> list[Guide]:
        """Order and influence of finished texts under the weights as they are."""
        num_ranks = len(self._ranks)
        calls = [
            handle.call("sft_guides", texts[rank::num_ranks], config, timeout_s=self._engine.timeout_s)
            for rank, handle in enumerate(self._ranks)
        ]
        self._join(calls)
        shares: list[list[Guide]] = [call.outcome() for call in calls]  # type: ignore[misc]
        return [shares[index % num_ranks][index // num_ranks] for index in range(len(texts))]

    def keep_weights(self) -> Any:
        """A reference to the trained weights, gathered by all ranks and held by rank 0's node.

        An actor's memory is written into the object store as it is; in this process only a copy outlives an update.
        """
        return self._all("weights", timeout_s=self._engine.timeout_s, keep=True, copy=self._is_local)

    def save(self, path: str, state: dict[str, Any]) -> str:
        """Writes a checkpoint with the run's counters; complete when this returns nothing, else why it is absent."""
        problem: str = self._all("save", path, state, timeout_s=self._engine.timeout_s)
        return problem

    def load(self, path: str) -> dict[str, Any]:
        """Restores a checkpoint and returns the run's counters."""
        state: dict[str, Any] = self._all("load", path, timeout_s=self._engine.start_timeout_s)
        return state

    def describe(self) -> list[str]:
        """How many ranks are waited for."""
        num_running = sum(not future.is_done() for future in self._running)
        return [f"learner: {num_running} of {len(self._ranks)} ranks have not ended their last call"]

    @contextmanager
    def alongside(self, work: Callable[[Sequence[Future]], None]) -> Iterator[None]:
        """In the body, `work(calls)` is done again and again while calls of the ranks are under way.

        It has to return when one of the calls ends, or soon.
        """
        self._meanwhile = work
        try:
            yield
        finally:
            self._meanwhile = None

    def restart(self) -> None:
        """New processes in place of all ranks, with the weights that the run began with."""
        for handle in self._ranks:
            handle.restart()
        self.start()

    def close(self) -> None:
        """Kills all ranks."""
        for handle in self._ranks:
            handle.kill()

    def _supervised(self, method: str, masked: Sequence[MaskedExample]) -> dict[str, float]:
        calls = [
            handle.call(method, masked[rank :: len(self._ranks)], len(masked), timeout_s=self._engine.timeout_s)
            for rank, handle in enumerate(self._ranks)
        ]
        metrics: dict[str, float] = self._join(calls)
        return metrics

    def _all(self, method: str, *args: object, timeout_s: float, keep: bool = False, **kwargs: Any) -> Any:
        return self._join(
            [handle.call(method, *args, timeout_s=timeout_s, keep=keep, **kwargs) for handle in self._ranks]
        )

    def _join(self, calls: Sequence[Future]) -> Any:
        """Rank 0's value once all have answered; the first failure ends the group."""
        running, failures = list(calls), list[CallFailure]()
        while running and not failures:
            self._running = running
            if self._meanwhile is not None and not any(future.is_done() for future in running):
                self._meanwhile(running)
                continue
            ended, running = wait(running, timeout_s=POLL_S)
            failures += _failures(ended)
        if not failures:
            return calls[0].outcome()
        # The peers of a lost rank raise when its connection closes, often before its end is known: name the lost one.
        late, _ = wait(running, timeout_s=PEER_TIMEOUT_S)
        cause = min([*failures, *_failures(late)], key=lambda failure: failure.kind == "raised")
        logger.error("%s failed, the learner is stopped", cause.actor)
        self.close()
        raise LearnerLostError(cause)


def _failures(ended: Sequence[Future]) -> list[CallFailure]:
    return [outcome for future in ended if isinstance(outcome := future.outcome(), CallFailure)]
