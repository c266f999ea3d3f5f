"""How-many rules: how many of the best-scored slots are committed in one step.

R sequences, L slots of the widest active block. Every rule commits at least one slot a sequence, so a block of n masked
slots ends after at most n steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from samplers.records import BlockState


class CountRule(Protocol):
    """Number of slots to commit."""

    needs_prediction: ClassVar[bool]

    def count(self, state: BlockState, top_prob_RL: torch.Tensor | None) -> torch.Tensor:
        """int64 (R,). `top_prob_RL` holds max_v p_k(v) of the candidates sorted by score, 0 elsewhere; None where
        `needs_prediction` is False. The first `count` of that order are committed."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The same number every step."""

    tokens_per_step: int = 1
    needs_prediction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step is {self.tokens_per_step}; it must be at least 1")

    def count(self, state: BlockState, top_prob_RL: torch.Tensor | None) -> torch.Tensor:
        """`tokens_per_step` for every sequence."""
        return torch.full_like(state.masked_R, self.tokens_per_step)


@dataclass(frozen=True)
class Threshold:
    """Every slot whose highest probability reaches tau; the single best where none does."""

    tau: float = 0.9
    needs_prediction: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}; it must be above 0 (above 1 commits one slot a step)")

    def count(self, state: BlockState, top_prob_RL: torch.Tensor | None) -> torch.Tensor:
        """Slots at or above tau."""
        assert top_prob_RL is not None
        return (top_prob_RL >= self.tau).sum(dim=1)


def scheduled(state: BlockState) -> torch.Tensor:
    """Even schedule of a step budget: n slots in S steps are n // S each, the first n % S steps take one more.

    0 where the sequence has no budget.
    """
    steps_R = state.block_steps_R.clamp(min=1)
    even_R = state.block_masked_R // steps_R
    extra_R = (state.block_step_R < state.block_masked_R % steps_R).to(even_R.dtype)
    return torch.where(state.block_steps_R > 0, even_R + extra_R, 0)
