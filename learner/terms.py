"""Which scored slots an objective sees together: the terms of a loss that is not a sum over slots.

    slot       each scored slot of each canvas                            most estimators with a ratio a token
    place      one slot of one answer, over its canvases: sum of weight * l             coupled-GRPO
    answer     all slots of one answer over its canvases: mean of weight * l            GSPO, ESPO

The slots of a term may lie in several micro-batches, so its loss cannot be taken one micro-batch at a time. It can
still be differentiated that way: the loss is a function of the M log-probabilities, its derivative by each of them is
a number, and the gradient by the weights is that of the sum of number * log-probability (the chain rule;
`learner.update`).

Symbols: M scored slots, U terms, I samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.objective import LossTerms, bound_loss, is_clipped, lower_bound, policy_loss, upper_bound
from learner.objective_config import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class Slots:
    """What is known of each scored slot; flat tensors on the CPU, in the order of the plan."""

    sample_M: torch.Tensor
    """int64."""
    slot_M: torch.Tensor
    """int64. Slot of the answer."""
    factor_M: torch.Tensor
    """Weight by the estimator."""
    normaliser_M: torch.Tensor
    advantage_M: torch.Tensor
    size_M: torch.Tensor
    """Scored slots T' of the sample."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of a rank's slots."""

    term_M: torch.Tensor
    """int64. Which term each slot adds to."""
    factor_M: torch.Tensor
    """What its log-probability is multiplied with there."""
    advantage_U: torch.Tensor
    weight_U: torch.Tensor
    size_U: torch.Tensor
    """Scored slots that the term speaks for."""
    first_U: torch.Tensor
    """int64. A slot of each term."""

    def gather(self, logprob_M: torch.Tensor) -> torch.Tensor:
        """l of each term."""
        summand_M = self.factor_M.to(logprob_M.dtype) * logprob_M
        return logprob_M.new_zeros(len(self.weight_U)).index_add(0, self.term_M, summand_M)


def make_terms(slots: Slots, objective: ObjectiveConfig) -> Terms:
    """Terms of an objective that is not separable."""
    if objective.ratio == "sequence":
        key_M, factor_M = slots.sample_M, slots.factor_M / slots.size_M
    else:
        key_M, factor_M = _places(slots), slots.factor_M
    _, term_M = key_M.unique(return_inverse=True)
    num_terms = int(term_M.max()) + 1 if len(term_M) else 0
    order_M = torch.arange(len(term_M)).flip(0)
    first_U = torch.zeros(num_terms, dtype=torch.int64).index_put((term_M.flip(0),), order_M)
    is_answer = objective.ratio == "sequence"
    size_U = slots.size_M[first_U] if is_answer else torch.ones(num_terms)
    return Terms(
        term_M=term_M,
        factor_M=factor_M,
        advantage_U=slots.advantage_M[first_U],
        weight_U=slots.normaliser_M[first_U] * size_U,
        size_U=size_U,
        first_U=first_U,
    )


def term_loss(
    terms: Terms,
    logprob_M: torch.Tensor,
    *,
    old_logprob_M: torch.Tensor,
    config: ObjectiveConfig,
    reference_logprob_M: torch.Tensor | None,
    importance_M: torch.Tensor | None,
) -> LossTerms:
    """The loss over terms, differentiable by the log-probabilities of the slots."""
    return policy_loss(
        terms.gather(logprob_M),
        old_logprob_M=terms.gather(old_logprob_M),
        advantage_M=terms.advantage_U,
        weight_M=terms.weight_U,
        config=config,
        reference_logprob_M=None if reference_logprob_M is None else terms.gather(reference_logprob_M),
        importance_M=None if importance_M is None else importance_M[terms.first_U],
        size_M=terms.size_U,
    )


def sandwich_loss(slots: Slots, logprob_M: torch.Tensor, config: ObjectiveConfig) -> LossTerms:
    """SPG's loss; its normaliser is that of each answer's slots."""
    samples, sample_M = slots.sample_M.unique(return_inverse=True)
    places, place_M = _places(slots).unique(return_inverse=True)
    first_U = torch.zeros(len(places), dtype=torch.int64).index_put((place_M,), torch.arange(len(place_M)))
    first_I = torch.zeros(len(samples), dtype=torch.int64).index_put((sample_M,), torch.arange(len(sample_M)))
    factor_M = slots.factor_M.to(logprob_M.dtype)
    lower_I = lower_bound(logprob_M, factor_M, sample_M, len(samples))
    upper_I = upper_bound(logprob_M, factor_M, place_M, sample_M[first_U], len(samples), beta=config.bound_beta)
    advantage_I = slots.advantage_M[first_I]
    loss = bound_loss(
        lower_I,
        upper_I,
        advantage_I=advantage_I,
        weight_I=slots.normaliser_M[first_I],
        mix=config.bound_weight,
    )
    ratio_I = torch.ones_like(advantage_I)
    return LossTerms(loss, ratio_I, is_clipped(ratio_I, advantage_I, clip_low=0.0, clip_high=0.0), None)


def _places(slots: Slots) -> torch.Tensor:
    """A number for each (sample, slot)."""
    width = int(slots.slot_M.max()) + 1 if len(slots.slot_M) else 1
    return slots.sample_M * width + slots.slot_M
