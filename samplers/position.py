"""Position rules: which masked slot goes first. Higher score first, ties to the lower slot index.

Every rule here is position-first: its score depends on the prediction (or on nothing), never on the token drawn, so the
likelihood of a commit is exactly p_k(o_k) and replaying the step map gives the likelihood of the answer.
M masked slots. Scores are float32.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch

from samplers.prediction import Prediction
from samplers.randomness import POSITION_STREAM, uniform


class PositionRule(Protocol):
    """Score of masked slots."""

    needs_prediction: ClassVar[bool]
    needs_second: ClassVar[bool]
    needs_entropy: ClassVar[bool]

    def score(
        self, prediction: Prediction | None, seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor
    ) -> torch.Tensor:
        """Score (M,) of each slot; `prediction` is None where `needs_prediction` is False."""
        ...


class LeftToRight:
    """`ar`: the leftmost masked slot first."""

    needs_prediction: ClassVar[bool] = False
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False

    def score(
        self, prediction: Prediction | None, seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor
    ) -> torch.Tensor:
        """Minus the slot index."""
        return -slot_M.to(torch.float32)


class Random:
    """`random`: a fresh uniform number each step, independent of the tokens and of the weights."""

    needs_prediction: ClassVar[bool] = False
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False

    def score(
        self, prediction: Prediction | None, seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor
    ) -> torch.Tensor:
        """Uniform number of (sequence, step, slot)."""
        return uniform(seed_M, step_M, slot_M, stream=POSITION_STREAM).to(torch.float32)


class Confidence:
    """`confidence` (token-probability position, TPP): the slot with the highest max_v p_k(v)."""

    needs_prediction: ClassVar[bool] = True
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False

    def score(
        self, prediction: Prediction | None, seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor
    ) -> torch.Tensor:
        """Highest probability."""
        assert prediction is not None
        return prediction.top_prob_M


class Margin:
    """`margin`: highest minus second highest probability (Dream's `topk_margin`)."""

    needs_prediction: ClassVar[bool] = True
    needs_second: ClassVar[bool] = True
    needs_entropy: ClassVar[bool] = False

    def score(
        self, prediction: Prediction | None, seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor
    ) -> torch.Tensor:
        """Gap between the two highest probabilities."""
        assert prediction is not None
        assert prediction.second_prob_M is not None
        return prediction.top_prob_M - prediction.second_prob_M


class Entropy:
    """`entropy`: the slot with the lowest entropy first (Dream's `entropy`)."""

    needs_prediction: ClassVar[bool] = True
    needs_second: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = True

    def score(
        self, prediction: Prediction | None, seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor
    ) -> torch.Tensor:
        """Minus the entropy."""
        assert prediction is not None
        assert prediction.entropy_M is not None
        return -prediction.entropy_M
