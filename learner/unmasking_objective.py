"""Arithmetic of training an unmasking policy by group-relative policy gradients (2512.09106): pure functions.

M steps of all episodes of a round, one row each; T response slots.

    reward          R = 1[correct] * ((T - n + 1) / T)^alpha after n steps       (multiplicative, released form)
    advantage       A = R - mean of the group; no standard deviation, no critic
    per-step ratio  rho_t = exp(ln pi_new(u_t) - ln pi_old(u_t)), the joint probability of all bits of a step
    loss            - mean over episodes of the mean over their steps of min(rho A, clip(rho, 1 - eps, 1 + eps) A)
    expert steps    ln pi is ln[G / (G + E) * pi(u) + 1 / (G + E)], old and new: the law of a group of G policy answers
                    and E expert ones
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from learner.unmasking_config import RewardForm


def shaped_reward(*, correct: float, num_steps: int, num_slots: int, alpha: float, form: RewardForm) -> float:
    """Reward of one answer of T slots after n steps.

    multiplicative: 1[correct] * ((T - n + 1) / T)^alpha: speed counts for right answers only.
    additive: 1[correct] - alpha * n / T, which pays for speed whatever the answer is (a baseline).
    """
    if not 1 <= num_steps <= num_slots:
        raise ValueError(f"an answer of {num_slots} slots took {num_steps} steps; expected 1 to {num_slots}")
    if form == "additive":
        return correct - alpha * num_steps / num_slots
    return correct * float(((num_slots - num_steps + 1) / num_slots) ** alpha)


def mixture_log_prob(log_prob_M: torch.Tensor, *, num_samples: int, num_experts: int) -> torch.Tensor:
    """ln[G / (G + E) * pi + 1 / (G + E)]: probability of an expert's step in a group with E experts."""
    total = num_samples + num_experts
    expert_M = torch.full_like(log_prob_M, -math.log(total))
    return torch.logaddexp(log_prob_M + math.log(num_samples / total), expert_M)


def clipped_loss(
    log_prob_M: torch.Tensor,
    old_log_prob_M: torch.Tensor,
    advantage_M: torch.Tensor,
    weight_M: torch.Tensor,
    *,
    clip: float,
) -> torch.Tensor:
    """Minus the weighted sum of the clipped surrogate; weights of a round add up to 1 (`step_weights`)."""
    ratio_M = (log_prob_M - old_log_prob_M).exp()
    clipped_M = ratio_M.clamp(1 - clip, 1 + clip)
    return -(weight_M * torch.minimum(ratio_M * advantage_M, clipped_M * advantage_M)).sum()


def step_weights(episode_M: torch.Tensor, counts_M: torch.Tensor, *, num_episodes: int) -> torch.Tensor:
    """1 / (episodes * steps of the episode) for steps that had a choice, 0 for the others (M,), float32.

    `episode_M`: episode of each step; `counts_M`: whether some slot was eligible.
    """
    steps_E = torch.zeros(num_episodes).scatter_add(0, episode_M, counts_M.float())
    return torch.where(counts_M, 1.0 / (num_episodes * steps_E.clamp(min=1)[episode_M]), 0.0)


def learning_rate(
    update: int, *, peak: float, warmup: int, total: int, schedule: Literal["cosine", "constant"]
) -> float:
    """Linear warm-up, then a half cosine down to 0 at `total` (or constant); `update` counts from 0."""
    if update < warmup:
        return peak * (update + 1) / warmup
    if schedule == "constant" or total <= warmup:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))
