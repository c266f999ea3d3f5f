"""The objectives on flat tensors: pure functions of log-probabilities.

U terms of any number of samples, in any order: a term is one scored slot, or what several slots of a sample sum up to
(`learner.terms`). GRPO, JustGRPO, Dr. GRPO, DAPO's clip, GSPO, ESPO and AGDO are settings of the clipped objective

    ratio = exp(l - l_old)
    J     = min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A);   with a dual clip, J >= c * A where A < 0
    loss  = sum over terms of weight * (-importance * J + kl_coef * size * kl(l, l_anchor))

and `likelihood` (wd1) has A * l in the place of J. SPG's loss needs every draw of a slot at once (`bound_loss`).

The weights hold the normaliser, whose counts are those of the whole batch (`BatchStats`): a sum over terms,
micro-batches and ranks in any grouping gives the same loss and the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from learner.config import ObjectiveConfig
from learner.records import BatchStats


def policy_ratio(logprob_U: torch.Tensor, old_logprob_U: torch.Tensor) -> torch.Tensor:
    """exp(l - l_old), the change of each term's probability since the old weights."""
    return (logprob_U - old_logprob_U).exp()


def clipped_surrogate(
    ratio_U: torch.Tensor,
    advantage_U: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float | None = None,
) -> torch.Tensor:
    """min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), to be maximised (PPO, equation 7).

    `clip_dual` c: where A < 0, not below c * A (dual-clip PPO, 1912.09729).
    """
    clipped_ratio_U = ratio_U.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate_U = torch.minimum(ratio_U * advantage_U, clipped_ratio_U * advantage_U)
    if clip_dual is None:
        return surrogate_U
    return torch.where(advantage_U < 0, torch.maximum(surrogate_U, clip_dual * advantage_U), surrogate_U)


def is_clipped(ratio_U: torch.Tensor, advantage_U: torch.Tensor, *, clip_low: float, clip_high: float) -> torch.Tensor:
    """Bool: the terms that the clip has switched off, because they already moved far enough in their own direction."""
    too_high_U = (advantage_U > 0) & (ratio_U > 1.0 + clip_high)
    too_low_U = (advantage_U < 0) & (ratio_U < 1.0 - clip_low)
    return too_high_U | too_low_U


def divergence(
    logprob_U: torch.Tensor, anchor_logprob_U: torch.Tensor, *, kind: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Estimate of the divergence from the anchor by d = l - l_anchor (Schulman's k1, k2, k3).

    k1: d, unbiased, of high variance; k2: d^2 / 2, whose gradient is that of the divergence; k3: e^-d - 1 + d, unbiased
    and never negative.
    """
    d_U = logprob_U - anchor_logprob_U
    if kind == "k1":
        return d_U
    if kind == "k2":
        return d_U.square() / 2
    return torch.expm1(-d_U) + d_U


def influenced(advantage_M: torch.Tensor, influence_M: torch.Tensor, *, delta: float) -> torch.Tensor:
    """A + sign(A) * delta * I of each slot (AGDO, 2606.12273): what is attended to more is pushed harder; 0 stays 0."""
    return advantage_M + advantage_M.sign() * delta * influence_M


def normaliser_weights(
    normaliser: str,
    *,
    num_scored_M: torch.Tensor,
    num_slots_M: torch.Tensor,
    stats: BatchStats,
    num_canvases_M: torch.Tensor | None = None,
    canvas_slots_M: torch.Tensor | None = None,
) -> torch.Tensor:
    """Factor of each slot's term in the loss.

    num_scored_M and num_slots_M: scored slots, and slots T of the canvas, of the sample that the slot belongs to;
    num_canvases_M: canvases of that sample; canvas_slots_M: scored slots of the slot's own canvas.

        token:     1 / scored slots of the batch                 every token counts the same
        sequence:  1 / (samples * scored slots of the sample)    every answer counts the same
        fixed:     1 / (samples * T)                             every token counts the same, whatever the lengths drawn
        canvas:    1 / (samples * its canvases * slots of the canvas)    every canvas of an answer counts the same
    """
    if normaliser == "token":
        return torch.full(num_scored_M.shape, 1.0 / max(stats.num_tokens, 1))
    if normaliser == "sequence":
        return 1.0 / (stats.num_samples * num_scored_M.to(torch.float32))
    if normaliser == "fixed":
        return 1.0 / (stats.num_samples * num_slots_M.to(torch.float32))
    if normaliser == "canvas":
        assert num_canvases_M is not None
        assert canvas_slots_M is not None
        return 1.0 / (stats.num_samples * (num_canvases_M * canvas_slots_M).to(torch.float32))
    raise ValueError(f"normaliser {normaliser!r} is unknown: choose token, sequence, fixed or canvas")


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
    """The loss of U terms and, detached, what the metrics add up."""

    loss: torch.Tensor
    """Scalar; the only one with a gradient."""
    ratio_M: torch.Tensor
    is_clipped_M: torch.Tensor
    kl_M: torch.Tensor | None
    """Divergence of each term; None without an anchor."""


def policy_loss(
    logprob_M: torch.Tensor,
    *,
    old_logprob_M: torch.Tensor,
    advantage_M: torch.Tensor,
    weight_M: torch.Tensor,
    config: ObjectiveConfig,
    reference_logprob_M: torch.Tensor | None = None,
    importance_M: torch.Tensor | None = None,
    size_M: torch.Tensor | None = None,
) -> LossTerms:
    """The clipped or the plain likelihood loss of the module's docstring, a term each.

    No importance weights, no sizes: weights and sizes of 1.
    """
    ratio_M = policy_ratio(logprob_M, old_logprob_M)
    if config.loss == "likelihood":
        ratio_M, surrogate_M = torch.ones_like(ratio_M), advantage_M * logprob_M
    else:
        surrogate_M = clipped_surrogate(
            ratio_M,
            advantage_M,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            clip_dual=config.clip_dual,
        )
    term_M, kl_M = -surrogate_M if importance_M is None else -importance_M * surrogate_M, None
    if reference_logprob_M is not None:
        kl_M = divergence(logprob_M, reference_logprob_M, kind=config.kl)
        if size_M is not None:
            kl_M = size_M * kl_M
        term_M = term_M + config.kl_coef * kl_M
    ratio_M = ratio_M.detach()
    return LossTerms(
        loss=(weight_M * term_M).sum(),
        ratio_M=ratio_M,
        is_clipped_M=is_clipped(ratio_M, advantage_M, clip_low=config.clip_low, clip_high=config.clip_high),
        kl_M=None if kl_M is None else kl_M.detach(),
    )


def lower_bound(
    logprob_M: torch.Tensor, weight_M: torch.Tensor, sample_M: torch.Tensor, num_samples: int
) -> torch.Tensor:
    """Sum of weight * l over each sample's scored slots: the ELBO of answers whose weights are those of `elbo`."""
    return logprob_M.new_zeros(num_samples).index_add(0, sample_M, weight_M * logprob_M)


def upper_bound(
    logprob_M: torch.Tensor,
    weight_M: torch.Tensor,
    place_M: torch.Tensor,
    sample_U: torch.Tensor,
    num_samples: int,
    *,
    beta: float,
) -> torch.Tensor:
    """1/beta * sum over slots of ln(sum over draws of weight * p^beta): SPG's upper bound (2510.09541).

    place_M: which of U (sample, slot) pairs each scored slot is a draw of; sample_U: the sample of each pair. A slot
    that no draw has masked says nothing and is left out.
    """
    # ln sum exp over the draws of each place; the largest is taken out first and needs no gradient.
    value_M = beta * logprob_M + weight_M.log()
    top_U = value_M.detach().new_full((len(sample_U),), -torch.inf)
    top_U = top_U.scatter_reduce(0, place_M, value_M.detach(), reduce="amax")
    sum_U = value_M.new_zeros(len(sample_U)).index_add(0, place_M, (value_M - top_U[place_M]).exp())
    return value_M.new_zeros(num_samples).index_add(0, sample_U, (sum_U.log() + top_U) / beta)


def bound_loss(
    lower_I: torch.Tensor, upper_I: torch.Tensor, *, advantage_I: torch.Tensor, weight_I: torch.Tensor, mix: float
) -> torch.Tensor:
    """-sum of weight * A * E over I samples: E the lower bound where A > 0, else mix * upper + (1 - mix) * lower (SPG).

    A positive advantage raises a lower bound of the likelihood, a negative one lowers an upper bound of it.
    """
    bound_I = torch.where(advantage_I > 0, lower_I, mix * upper_I + (1 - mix) * lower_I)
    return -(weight_I * advantage_I * bound_I).sum()
