"""The clipped objective of GRPO on flat tensors: pure functions of log-probabilities.

M scored slots of any number of samples, in any order. JustGRPO, Dr. GRPO and DAPO's clip are settings of it:

    ratio = exp(l - l_old)
    J     = min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)
    loss  = sum over slots of weight * (-importance * J + kl_coef * k3(l, l_ref))

The weights hold the normaliser, whose counts are those of the whole batch (`BatchStats`): a sum over slots,
micro-batches and ranks in any grouping gives the same loss and the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.config import ObjectiveConfig
from learner.records import BatchStats


def policy_ratio(logprob_M: torch.Tensor, old_logprob_M: torch.Tensor) -> torch.Tensor:
    """exp(l - l_old), the change of each token's probability since the old weights."""
    return (logprob_M - old_logprob_M).exp()


def clipped_surrogate(
    ratio_M: torch.Tensor, advantage_M: torch.Tensor, *, clip_low: float, clip_high: float
) -> torch.Tensor:
    """min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), to be maximised (PPO, equation 7)."""
    clipped_ratio_M = ratio_M.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio_M * advantage_M, clipped_ratio_M * advantage_M)


def is_clipped(ratio_M: torch.Tensor, advantage_M: torch.Tensor, *, clip_low: float, clip_high: float) -> torch.Tensor:
    """Bool: the slots that the clip has switched off, because they already moved far enough in their own direction."""
    too_high_M = (advantage_M > 0) & (ratio_M > 1.0 + clip_high)
    too_low_M = (advantage_M < 0) & (ratio_M < 1.0 - clip_low)
    return too_high_M | too_low_M


def k3(logprob_M: torch.Tensor, reference_logprob_M: torch.Tensor) -> torch.Tensor:
    """e^-d - 1 + d with d = l - l_ref: a non-negative estimate of the divergence from the reference (Schulman's k3)."""
    d_M = logprob_M - reference_logprob_M
    return torch.expm1(-d_M) + d_M


def normaliser_weights(
    normaliser: str, *, num_scored_M: torch.Tensor, num_slots_M: torch.Tensor, stats: BatchStats
) -> torch.Tensor:
    """Factor of each slot's term in the loss.

    num_scored_M and num_slots_M: scored slots, and slots T of the canvas, of the sample that the slot belongs to.

        token:     1 / scored slots of the batch                 every token counts the same
        sequence:  1 / (samples * scored slots of the sample)    every answer counts the same
        fixed:     1 / (samples * T)                             every token counts the same, whatever the lengths drawn
    """
    if normaliser == "token":
        return torch.full(num_scored_M.shape, 1.0 / max(stats.num_tokens, 1))
    if normaliser == "sequence":
        return 1.0 / (stats.num_samples * num_scored_M.to(torch.float32))
    if normaliser == "fixed":
        return 1.0 / (stats.num_samples * num_slots_M.to(torch.float32))
    raise ValueError(f"normaliser {normaliser!r} is unknown: choose token, sequence or fixed")


def truncated_weights(
    proximal_logprob_M: torch.Tensor,
    behaviour_logprob_M: torch.Tensor,
    *,
    cap: float = 2.0,
    unit_M: torch.Tensor | None = None,
) -> torch.Tensor:
    """min(exp(sum of l_prox - l_behaviour), cap): importance weights for answers that another law drew.

    The sum is over the slots of one unit (a denoising step, an answer), named by `unit_M` (int64, from 0); without it
    each slot is its own. All slots of a unit have its weight. Detached, and valid only for a likelihood that scores the
    law the tokens were drawn from. Without staleness they are 1 up to rounding.
    """
    if cap < 1:
        raise ValueError(f"cap must be at least 1, got {cap}: a smaller one would scale down fresh answers too")
    gap_M = (proximal_logprob_M - behaviour_logprob_M).detach()
    if unit_M is not None and len(unit_M):
        gap_M = gap_M.new_zeros(int(unit_M.max()) + 1).index_add(0, unit_M, gap_M)[unit_M]
    return gap_M.exp().clamp(max=cap)


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss of M slots and, detached, what the metrics add up."""

    loss: torch.Tensor
    """Scalar; the only one with a gradient."""
    ratio_M: torch.Tensor
    is_clipped_M: torch.Tensor
    kl_M: torch.Tensor | None
    """k3 of each slot; None without a reference."""


def policy_loss(
    logprob_M: torch.Tensor,
    *,
    old_logprob_M: torch.Tensor,
    advantage_M: torch.Tensor,
    weight_M: torch.Tensor,
    config: ObjectiveConfig,
    reference_logprob_M: torch.Tensor | None = None,
    importance_M: torch.Tensor | None = None,
) -> LossTerms:
    """The loss of the module's docstring; no importance weights are weights of 1."""
    ratio_M = policy_ratio(logprob_M, old_logprob_M)
    surrogate_M = clipped_surrogate(ratio_M, advantage_M, clip_low=config.clip_low, clip_high=config.clip_high)
    term_M, kl_M = -surrogate_M if importance_M is None else -importance_M * surrogate_M, None
    if reference_logprob_M is not None:
        kl_M = k3(logprob_M, reference_logprob_M)
        term_M = term_M + config.kl_coef * kl_M
    ratio_M = ratio_M.detach()
    return LossTerms(
        loss=(weight_M * term_M).sum(),
        ratio_M=ratio_M,
        is_clipped_M=is_clipped(ratio_M, advantage_M, clip_low=config.clip_low, clip_high=config.clip_high),
        kl_M=None if kl_M is None else kl_M.detach(),
    )
