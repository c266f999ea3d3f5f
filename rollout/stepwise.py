"""The engine driven from outside: look at a step, decide elsewhere, commit.

The same continuous batch as `Engine.run`, cut in two halves: `observe` runs one forward for all active sequences and
shows what an unmasking policy may see, `act` commits the slots that somebody chose. A step may commit nothing; a
sequence ends after as many steps as it has slots, and what is masked then stays masked.

R active sequences, T response slots of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rollout.batch import Batch
from rollout.canvas import BlockView
from rollout.engine import Engine
from rollout.records import Trajectory
from rollout.request import Request
from samplers.policy.observation import Looked, Undecided, look


class StepwiseRun:
    """One run over a list of requests, with an engine whose sampler is `Undecided`."""

    def __init__(
        self, engine: Engine, requests: Sequence[Request], *, num_probs: int = 1, eos_guard: bool | None = None
    ) -> None:
        if not isinstance(engine.sampler, Undecided):
            raise ValueError(f"the engine's sampler {engine.sampler.name!r} decides by itself; give it Undecided()")
        for request in requests:
            request.check(max_length=engine.denoiser.max_length, vocab_size=engine.denoiser.vocab_size)
        self._batch = Batch(engine, requests)
        self._num_probs = num_probs
        self._guard = engine.layout.decode_length() is None if eos_guard is None else eos_guard
        self._looked: tuple[BlockView, Looked] | None = None

    @torch.inference_mode()
    def observe(self) -> tuple[list[int], Looked] | None:
        """Request of each row, and what the policy may see; None when all requests are finished."""
        if not self._batch.admit():
            return None
        view, state, evaluate = self._batch.look()
        looked = look(state, evaluate, num_probs=self._num_probs, guard=self._guard)
        self._looked = view, looked
        return self._batch.active, looked

    @torch.inference_mode()
    def act(self, chosen_RT: torch.Tensor) -> list[tuple[int, Trajectory]]:
        """Commit the chosen slots (bool) of the rows observed last; give the answers that are finished."""
        if self._looked is None:
            raise RuntimeError("call observe() before act()")
        (view, looked), self._looked = self._looked, None
        if bool((chosen_RT & ~looked.candidate_RT).any()):
            raise ValueError("a chosen slot is not masked, or lies outside the active block")
        return self._batch.take(view, looked.commit(chosen_RT))


def is_finished(trajectory: Trajectory) -> bool:
    """Whether an answer has no masked slot before its end."""
    return trajectory.finish_reason == "eos" or bool(trajectory.committed.all())
