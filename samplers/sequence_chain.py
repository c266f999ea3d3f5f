"""Independent Metropolis-Hastings over whole answers or blocks: `imh_sequence`.

K + 1 runs of a position-first sampler that commits one token a step and raises each token's law to alpha. A run's
weight is W = prod over its steps of c_s, c_s = sum_v p_s(v)^alpha, which is p(answer)^alpha over the probability of the
run: a chain over runs (`samplers.chain`) is exact for p^alpha / Z of the joint law that the model has in the order that
the sampler takes. With `level` "block" each block has its own chain and the next one starts from the run it ends at:
such chains accept more often, and reach the global target only nearly.

The engine makes the runs (`rollout.chains`); a step of this sampler is a step of one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from samplers.chain import effective_size, resample, walk
from samplers.metropolis import Metropolis
from samplers.randomness import CHAIN_STREAM, uniform
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec

Level = Literal["response", "block"]
Pick = Literal["chain", "weight"]


@dataclass(frozen=True, slots=True)
class Picked:
    """The runs that chains end at."""

    index_R: torch.Tensor
    """int64. Number of the run."""
    accepted_R: torch.Tensor
    """int64. Runs that replaced another one; 0 where runs are drawn by weight."""
    effective_size_R: torch.Tensor
    """float64. (sum W)^2 / sum W^2 of the runs."""


@dataclass(frozen=True)
class SequenceChain:
    """K + 1 runs for each answer, of which one is kept."""

    name: str
    run: Metropolis
    """Makes a run; it has no candidates of its own."""
    candidates: int = 2
    """K, the runs beside the first."""
    level: Level = "response"
    pick: Pick = "chain"
    """`chain`: walk along the runs; `weight`: draw one in proportion to W."""

    exact_likelihood = False
    inexact_because = "keeps one of several runs, by a chain"
    probe: ProbeSpec | None = None
    memory = ()

    def __post_init__(self) -> None:
        if self.candidates < 0:
            raise ValueError(f"candidates is {self.candidates}; it must be 0 (one run) or more")
        assert self.run.candidates == 0

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """One step of one run."""
        return self.run.step(state, evaluate)

    def choose(self, log_weight_RK: torch.Tensor, seed_R: torch.Tensor, *, number: int = 0) -> Picked:
        """Which run each sequence goes on with: log W (R, K + 1), float64, and the sequences' own seeds.

        `number` counts the chains of a sequence.
        """
        rows, runs = log_weight_RK.shape
        run_RK = torch.arange(runs).expand(rows, -1)
        stream = CHAIN_STREAM + 1
        uniform_RK = uniform(seed_R[:, None], torch.full_like(run_RK, number), run_RK, stream=stream)
        chain = walk(log_weight_RK, uniform_RK[:, 1:])
        index_R, accepted_R = chain.current_R, chain.accepted_R
        if self.pick == "weight":
            index_R, accepted_R = resample(log_weight_RK, uniform_RK[:, 0]), torch.zeros_like(accepted_R)
        return Picked(index_R, accepted_R, effective_size(log_weight_RK))
