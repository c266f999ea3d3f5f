"""Chains over proposals that were drawn independently of each other: independent Metropolis-Hastings.

R chains of K1 = K + 1 proposals. A proposal's weight W is target over proposal law, up to a factor that all proposals
of a chain share. From the current proposal c the chain goes on to v with probability min(1, W_v / W_c); its stationary
law is the target. Accepting improvements only would be hill climbing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.draw import invert_cumulative


@dataclass(frozen=True, slots=True)
class Walk:
    """Where chains end; int64 (R,) each."""

    current_R: torch.Tensor
    """Number of the proposal."""
    proposed_R: torch.Tensor
    """Proposals that differed from the one they would replace."""
    accepted_R: torch.Tensor
    """Those that did replace it."""


def walk(log_weight_RK: torch.Tensor, uniform_RK: torch.Tensor, *, same_RK: torch.Tensor | None = None) -> Walk:
    """Start at proposal 0 and try 1, 2, ... K.

    log_weight_RK: (R, K1) log W, float64. uniform_RK: (R, K) in [0, 1). same_RK: (R, K1) a number for each proposal,
    equal where proposals are the same; they are all different if None.
    """
    rows, number = log_weight_RK.shape
    assert uniform_RK.shape == (rows, number - 1)
    if same_RK is None:
        same_RK = torch.arange(number, device=log_weight_RK.device).expand(rows, -1)
    current_R = torch.zeros(rows, dtype=torch.int64, device=log_weight_RK.device)
    proposed_R, accepted_R = current_R, current_R
    for index in range(1, number):
        log_weight_R = log_weight_RK.gather(1, current_R[:, None])[:, 0]
        accepts_R = uniform_RK[:, index - 1] < (log_weight_RK[:, index] - log_weight_R).exp()
        differs_R = same_RK[:, index] != same_RK.gather(1, current_R[:, None])[:, 0]
        proposed_R = proposed_R + differs_R
        accepted_R = accepted_R + (differs_R & accepts_R)
        current_R = torch.where(accepts_R, index, current_R)
    return Walk(current_R, proposed_R, accepted_R)


def resample(log_weight_RK: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Number (R,) of one proposal, drawn in proportion to W."""
    return invert_cumulative(log_weight_RK.softmax(dim=1).to(torch.float32), uniform_R)


def effective_size(log_weight_RK: torch.Tensor) -> torch.Tensor:
    """(sum W)^2 / sum W^2 of each row (R,): K1 where all weights are equal, 1 where one outweighs the others."""
    return (2 * log_weight_RK.logsumexp(dim=1) - (2 * log_weight_RK).logsumexp(dim=1)).exp()


def first_equal(token_RK: torch.Tensor) -> torch.Tensor:
    """Number (R, K1) of the first proposal of the same token."""
    number_K = torch.arange(token_RK.shape[1], device=token_RK.device)
    equal_RKK = token_RK[:, :, None] == token_RK[:, None, :]
    return torch.where(equal_RKK, number_K, len(number_K)).amin(dim=2)


def log_mass(log_q_MV: torch.Tensor, alpha: float) -> torch.Tensor:
    """log sum_v q(v)^alpha (M,), float32: exactly 0 at alpha 1, below 0 above it."""
    if alpha == 1:
        return torch.zeros_like(log_q_MV[:, 0])
    return (alpha * log_q_MV).logsumexp(dim=-1)
