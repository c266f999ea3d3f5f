"""How-many rules: how many of the best-scored slots are committed in one step.

R sequences, L slots of the widest active block. A rule marks slots of each row, which are sorted by score; where it
marks none, the best-scored slot is committed. So a block of n masked slots ends after at most n steps. p stands for the
prediction that the sampler scores on, c for max_v p(v), H for the entropy of p.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from samplers.prediction import Need
from samplers.records import BlockState


@dataclass(frozen=True, slots=True)
class Ranked:
    """The slots of each row, best score first; what is not a candidate comes last, with zeros."""

    state: BlockState
    allowed_RL: torch.Tensor
    """bool. Candidates, in this order."""
    top_prob_RL: torch.Tensor | None = None
    entropy_RL: torch.Tensor | None = None

    def rank(self) -> torch.Tensor:
        """0, 1, 2, ... as (L,)."""
        return torch.arange(self.allowed_RL.shape[1], device=self.allowed_RL.device)

    def confidence(self) -> torch.Tensor:
        """max_v p(v) as (R, L), for a rule that needs `TOP_PROB`."""
        assert self.top_prob_RL is not None
        return self.top_prob_RL

    def entropy(self) -> torch.Tensor:
        """Entropy as (R, L), for a rule that needs `ENTROPY`."""
        assert self.entropy_RL is not None
        return self.entropy_RL

    def first(self, count_R: torch.Tensor) -> torch.Tensor:
        """bool (R, L): the first `count_R` slots of each row."""
        return self.rank() < count_R[:, None]


class CountRule(ABC):
    """Which slots of a sorted row are committed."""

    needs: Need = Need.NOTHING

    @property
    def is_single(self) -> bool:
        """Whether it is always exactly the best slot."""
        return False

    def goes_first(self, top_prob_RL: torch.Tensor) -> torch.Tensor | None:
        """bool (R, L), unsorted: of slots of equal score these rank first; None: the lower slot does."""
        return None

    @abstractmethod
    def select(self, ranked: Ranked) -> torch.Tensor:
        """bool (R, L) in the sorted order; marks beyond the candidates do not count."""


@dataclass(frozen=True)
class Fixed(CountRule):
    """The same number every step."""

    tokens_per_step: int = 1

    def __post_init__(self) -> None:
        if self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step is {self.tokens_per_step}; it must be at least 1")

    @property
    def is_single(self) -> bool:
        """Whether the number is 1."""
        return self.tokens_per_step == 1

    def select(self, ranked: Ranked) -> torch.Tensor:
        """The first `tokens_per_step`."""
        return (ranked.rank() < self.tokens_per_step).expand_as(ranked.allowed_RL)


@dataclass(frozen=True)
class Threshold(CountRule):
    """Every slot with c >= tau, wherever it ranks."""

    tau: float = 0.9

    needs = Need.TOP_PROB

    def __post_init__(self) -> None:
        _above_zero("tau", self.tau, "above 1 commits one slot a step")

    def select(self, ranked: Ranked) -> torch.Tensor:
        """Slots at or above tau."""
        return ranked.confidence() >= self.tau


@dataclass(frozen=True)
class Factor(CountRule):
    """Fast-dLLM's factor rule (2505.22618): the longest prefix of j slots with (j + 1)(1 - c) < f for its least c.

    If n tokens all have a probability above 1 - e and (n + 1) e <= 1, committing them together equals committing them
    one by one, greedily. With slots sorted by confidence the least is the last one.
    """

    f: float = 1.0

    needs = Need.TOP_PROB

    def __post_init__(self) -> None:
        _above_zero("f", self.f, "larger commits more")

    def select(self, ranked: Ranked) -> torch.Tensor:
        """Prefixes that meet the bound; the left side never falls along the row."""
        least_RL = ranked.confidence().cummin(dim=1).values
        return (ranked.rank() + 2) * (1 - least_RL) < self.f


@dataclass(frozen=True)
class EntropyBound(CountRule):
    """EB (2505.24857): the longest prefix with sum H - max H <= gamma, a bound on the error of drawing jointly."""

    gamma: float = 0.1

    needs = Need.ENTROPY

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma is {self.gamma}; it must be 0 or more, in nats")

    def select(self, ranked: Ranked) -> torch.Tensor:
        """Prefixes within the bound: 0 for the first slot, and never falling along the row."""
        slack_RL = ranked.entropy().cumsum(dim=1) - ranked.entropy().cummax(dim=1).values
        return _prefix(slack_RL <= self.gamma)


@dataclass(frozen=True)
class AttentionPrefix(CountRule):
    """Attn-Sampler's parallel rule (2604.08564) in its prefix form: the longest prefix with c >= tau.

    With slots sorted by attention and, among equals, those below tau first, this is every slot at or above tau that is
    attended to more than each slot below tau. No such slot: the most attended one, the lower of equals.
    """

    tau: float = 0.9

    needs = Need.TOP_PROB

    def __post_init__(self) -> None:
        _above_zero("tau", self.tau, "above 1 commits one slot a step")

    def goes_first(self, top_prob_RL: torch.Tensor) -> torch.Tensor:
        """Slots below tau."""
        return top_prob_RL < self.tau

    def select(self, ranked: Ranked) -> torch.Tensor:
        """Slots before the first one below tau."""
        return _prefix(ranked.confidence() >= self.tau)


def _prefix(holds_RL: torch.Tensor) -> torch.Tensor:
    """True until the first False of a row."""
    return holds_RL.to(torch.uint8).cummin(dim=1).values.to(torch.bool)


def _above_zero(name: str, value: float, hint: str) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0 ({hint})")


def scheduled(state: BlockState) -> torch.Tensor:
    """Even schedule of a step budget: n slots in S steps are n // S each, the first n % S steps take one more.

    0 where the sequence has no budget.
    """
    steps_R = state.block_steps_R.clamp(min=1)
    even_R = state.block_masked_R // steps_R
    extra_R = (state.block_step_R < state.block_masked_R % steps_R).to(even_R.dtype)
    return torch.where(state.block_steps_R > 0, even_R + extra_R, 0)
