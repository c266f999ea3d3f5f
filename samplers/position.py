"""Position rules: which masked slot goes first. Higher score first, ties to the lower slot.

Every rule here is position-first: its score depends on the prediction, on attention or on nothing, never on the token
drawn, so the likelihood of a commit is exactly p_k(o_k) and replaying the step map gives the likelihood of the answer.
R sequences, L slots of the widest active block, M slots looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch

from samplers.prediction import Need
from samplers.randomness import POSITION_STREAM
from samplers.records import ProbeSpec
from samplers.view import View

Layers = Literal["last", "all"] | tuple[int, ...]


class PositionRule(ABC):
    """Score of masked slots."""

    needs: Need = Need.NOTHING
    probe: ProbeSpec | None = None

    @property
    def exact_likelihood(self) -> bool:
        """Whether every token is drawn at the request's temperature."""
        return True

    inexact_because: str = ""
    """Why not, where it is not: the end of a sentence that begins with the sampler's name."""

    @abstractmethod
    def score(self, view: View) -> torch.Tensor:
        """Score (M,) of each slot, a floating-point tensor."""

    def temperature(self, view: View) -> torch.Tensor | None:
        """Draw temperature (M,) of each slot that is drawn and not greedy; None: the request's."""
        return None


class LeftToRight(PositionRule):
    """`ar`: the leftmost masked slot first."""

    def score(self, view: View) -> torch.Tensor:
        """Minus the column."""
        return -view.slots.column_M.to(torch.float32)


class Random(PositionRule):
    """`random`: a fresh uniform number each step, independent of the tokens and of the weights."""

    def score(self, view: View) -> torch.Tensor:
        """Uniform number of (sequence, step, slot)."""
        return view.slots.uniform(stream=POSITION_STREAM).to(torch.float32)


class Confidence(PositionRule):
    """`confidence` (token-probability position, TPP): the slot with the highest max_v p_k(v)."""

    needs = Need.TOP_PROB

    def score(self, view: View) -> torch.Tensor:
        """Highest probability."""
        return view.predicted.top_prob_M


class Margin(PositionRule):
    """`margin`: highest minus second highest probability (Dream's `topk_margin`)."""

    needs = Need.TOP_PROB | Need.SECOND_PROB

    def score(self, view: View) -> torch.Tensor:
        """Gap between the two highest probabilities."""
        assert view.predicted.second_prob_M is not None
        return view.predicted.top_prob_M - view.predicted.second_prob_M


class Entropy(PositionRule):
    """`entropy`: the slot with the lowest entropy first (Dream's `entropy`)."""

    needs = Need.ENTROPY

    def score(self, view: View) -> torch.Tensor:
        """Minus the entropy."""
        assert view.predicted.entropy_M is not None
        return -view.predicted.entropy_M


@dataclass(frozen=True)
class EntropyThenConfidence(PositionRule):
    """`egi` (Jeon et al. 2026): the first token of an answer where the entropy is highest, drawn at a temperature of
    its own; the rest by confidence.

    With a temperature of its own the replay at the request's temperature is not exact. A greedy request stays greedy.
    """

    first_temperature: float | None = 0.9
    """None: the request's."""

    needs = Need.TOP_PROB | Need.ENTROPY

    def __post_init__(self) -> None:
        if self.first_temperature is not None and not self.first_temperature > 0:
            raise ValueError(f"first_temperature is {self.first_temperature}; it must be above 0, or None")

    @property
    def exact_likelihood(self) -> bool:
        """Whether the request's temperature holds for the first token too."""
        return self.first_temperature is None

    inexact_because = "draws its first token at a temperature of its own (first_temperature: null does not)"

    def score(self, view: View) -> torch.Tensor:
        """Highest probability, at most 1; 2 at the first slot of an answer."""
        return torch.where(self._opens(view), 2.0, view.predicted.top_prob_M)

    def temperature(self, view: View) -> torch.Tensor | None:
        """`first_temperature` at the first slot of an answer, the request's elsewhere."""
        if self.first_temperature is None:
            return None
        return torch.where(self._opens(view), self.first_temperature, view.state.temperature_R[view.slots.row_M])

    def _opens(self, view: View) -> torch.Tensor:
        entropy_M = view.predicted.entropy_M
        assert entropy_M is not None
        entropy_RL = view.slots.spread(entropy_M, -1.0).masked_fill(~view.allowed_RL, -1.0)
        row_M = view.slots.row_M
        return (view.state.step_R[row_M] == 0) & (entropy_RL.argmax(dim=1)[row_M] == view.slots.column_M)


@dataclass(frozen=True)
class AttentionColumn(PositionRule):
    """`attn` (Attn-Sampler, 2604.08564): the slot that the other masked slots of its block look at most."""

    layers: Layers = "all"
    local: bool = False
    probe: ProbeSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "probe", ProbeSpec("column", self.layers, self.local))

    def score(self, view: View) -> torch.Tensor:
        """Column sum of the attention over masked rows, its own left out."""
        assert view.attention_M is not None
        return view.attention_M


@dataclass(frozen=True)
class MaxS(PositionRule):
    """`max_s` (a by-product of AGDO): of the slots with max_v p_k(v) above `min_prob`, the one that looks most at known
    tokens; where no slot is above, the one with the highest max_v p_k(v)."""

    min_prob: float = 0.9
    layers: Layers = "last"
    probe: ProbeSpec = field(init=False)

    needs = Need.TOP_PROB

    def __post_init__(self) -> None:
        if not 0 <= self.min_prob <= 1:
            raise ValueError(f"min_prob is {self.min_prob}; it must lie in 0..1 (0 lets every slot pass)")
        object.__setattr__(self, "probe", ProbeSpec("row", self.layers))

    def score(self, view: View) -> torch.Tensor:
        """float64: row sum + 2 of slots that pass, the probability of the others."""
        top_M, seen_M = view.predicted.top_prob_M, view.attention_M
        assert seen_M is not None
        return torch.where(top_M > self.min_prob, seen_M.to(torch.float64) + 2, top_M.to(torch.float64))
