"""What the learner is given: samples with their advantages, and the counts of the whole batch. No torch.

T is the number of response slots of a trajectory, P the number of its prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rollout.records import Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded answer."""

    trajectory: Trajectory
    advantage: float
    """How much better than its group the answer is; 0 teaches nothing."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.advantage):
            raise ValueError(
                f"sample {self.trajectory.sample_index} of prompt {self.trajectory.prompt_id!r} has advantage "
                f"{self.advantage}: advantages must be finite; leave answers without a score out of the batch"
            )


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts over all ranks and micro-batches: what losses are divided by.

    Because every rank divides by the same global counts and gradients are summed, no split of the batch changes the
    gradient. Samples with advantage 0 are counted although they cost no forward: they are answers like any other, whose
    contribution to the mean happens to be 0.
    """

    num_samples: int
    num_tokens: int
    """Scored slots, up to and including each answer's first end token."""

    @staticmethod
    def of(samples: Iterable[Sample]) -> BatchStats:
        """Count the samples of one update, those of all ranks together."""
        num_scored = [int(sample.trajectory.scored.sum()) for sample in samples]
        return BatchStats(num_samples=len(num_scored), num_tokens=sum(num_scored))


def balance(samples: Sequence[Sample], num_ranks: int, *, keep_zero_advantage: bool = False) -> list[list[Sample]]:
    """Split samples over ranks so that each has about the same canvas tokens to compute.

    The most expensive sample goes to the least loaded rank, and so on down. Samples with advantage 0 cost nothing
    unless they are kept for a divergence term; they are dealt out evenly.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    costs = [_cost(s) if keep_zero_advantage or s.advantage != 0 else 0 for s in samples]
    shares: list[list[Sample]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in sorted(range(len(samples)), key=lambda i: (-costs[i], i)):
        rank = min(range(num_ranks), key=lambda r: (loads[r], len(shares[r]), r))
        shares[rank].append(samples[index])
        loads[rank] += costs[index]
    return shares


def _cost(sample: Sample) -> int:
    """Canvas tokens of an exact replay: one canvas of P + T tokens for each step that commits a scored slot."""
    trajectory = sample.trajectory
    num_canvases = len(np.unique(trajectory.step_map[trajectory.scored]))
    return num_canvases * (len(trajectory.prompt_tokens) + len(trajectory.tokens))
