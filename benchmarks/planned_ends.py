"""Answers that end where a plan says: how random weights get answers of ragged lengths.

The plan of a sequence is part of its seed, and whatever token is committed at the planned slot becomes the end token.
Every decoder that keeps to this rule gives the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from samplers import BlockState, Commit, Evaluate, StepSampler

_SPAN = 2**20


def log_normal_ends(number: int, *, mean: float, sigma: float, cap: int, seed: int = 0) -> list[int]:
    """Slots of the end tokens, log-normal with this mean before they are cut to 1..cap; `cap` means no end."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, number)
    return [int(end) for end in np.clip(np.rint(drawn), 1, cap)]


def planned_seed(index: int, end: int) -> int:
    """Seed of sequence `index` that carries its plan."""
    if not 0 <= end < _SPAN:
        raise ValueError(f"end is {end}; it must be in 0..{_SPAN - 1}")
    return index * _SPAN + end


@dataclass(frozen=True)
class EndsAsPlanned:
    """A sampler whose token at the planned slot becomes the end token."""

    inner: StepSampler
    eos_token_id: int

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Commit what the inner sampler commits."""
        commit = self.inner.step(state, evaluate)
        slot_K = state.slot_RL[commit.row_K, commit.column_K]
        ends_K = slot_K == state.seed_R[commit.row_K] % _SPAN
        return replace(commit, token_K=torch.where(ends_K, self.eos_token_id, commit.token_K))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
