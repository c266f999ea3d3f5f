"""Action laws: how logits of slots become a set of slots to commit, and the probability of that choice.

R sequences, T response slots. An action is int64 (R, T): 0 for a slot that is left alone, and for one that is committed
its place 1, 2, ... in the order of the draw (always 1 where the order has no meaning). Slots that are not eligible
never take part: their action is 0, they add nothing to the log-probability, and their logits get no gradient.

    Bernoulli   s_k = min(1, beta * sigmoid(b_k / temperature)), each slot by itself
                log pi(u) = sum over eligible k of u_k ln s_k + (1 - u_k) ln(1 - s_k)
    DPLS        dynamic Plackett-Luce: the first slot from softmax(b / temperature) over the eligible ones, then
                Plackett-Luce without replacement over the others and STOP (logit -ln beta) until STOP
                log pi = that of the sequence of picks; never empty

Both are those of 2512.09106 at beta 1. Above 1 beta commits more at a time; its use with STOP is ours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from samplers.policy.config import LawName

Uniform = Callable[[int], torch.Tensor]
"""Number of a stream (0, 1, ..) -> float64 (R, T + 1) in [0, 1), a number for each slot and one more for STOP."""
LOG_EPSILON = math.log(1e-7)
"""s is clamped to [1e-7, 1 - 1e-7]; done on logarithms, which float32 holds to the last bit."""


@dataclass(frozen=True)
class Law(ABC):
    """A law of actions given logits."""

    temperature: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "beta"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} of the unmasking policy is {value}; it must be a number above 0")

    @abstractmethod
    def draw(self, logit_RT: torch.Tensor, eligible_RT: torch.Tensor, uniform: Uniform) -> torch.Tensor:
        """Draw an action (R, T)."""

    @abstractmethod
    def log_prob(self, logit_RT: torch.Tensor, eligible_RT: torch.Tensor, action_RT: torch.Tensor) -> torch.Tensor:
        """log pi of an action (R,), float32; 0 in rows without an eligible slot."""


class Bernoulli(Law):
    """Every eligible slot by itself; an action may be empty."""

    def draw(self, logit_RT: torch.Tensor, eligible_RT: torch.Tensor, uniform: Uniform) -> torch.Tensor:
        """Slots whose uniform number lies below s."""
        share_RT = self.beta * torch.sigmoid(logit_RT.to(torch.float64) / self.temperature)
        return (eligible_RT & (uniform(0)[:, :-1] < share_RT)).long()

    def log_prob(self, logit_RT: torch.Tensor, eligible_RT: torch.Tensor, action_RT: torch.Tensor) -> torch.Tensor:
        """Sum of ln s over the slots committed and ln(1 - s) over those left."""
        log_s_RT, log_rest_RT = self._logs(logit_RT.float())
        term_RT = torch.where(action_RT > 0, log_s_RT, log_rest_RT)
        return torch.where(eligible_RT, term_RT, 0.0).sum(dim=1)

    def _logs(self, logit_RT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ln s and ln(1 - s), clamped."""
        scaled_RT = logit_RT / self.temperature
        log_s_RT, log_rest_RT = F.logsigmoid(scaled_RT), F.logsigmoid(-scaled_RT)
        if self.beta != 1:
            log_s_RT = (log_s_RT + math.log(self.beta)).clamp(max=0.0)
            log_rest_RT = (-log_s_RT.exp()).log1p()
        return log_s_RT.clamp(min=LOG_EPSILON), log_rest_RT.clamp(min=LOG_EPSILON)


class Dpls(Law):
    """Slots one after the other until STOP; at least one."""

    def draw(self, logit_RT: torch.Tensor, eligible_RT: torch.Tensor, uniform: Uniform) -> torch.Tensor:
        """Gumbel noise, sorted: the first pick before all, the rest in order of their keys down to STOP's."""
        stop_R1 = torch.full_like(logit_RT[:, :1], -math.log(self.beta), dtype=torch.float64)
        scaled_RT = (logit_RT.to(torch.float64) / self.temperature).masked_fill(~eligible_RT, -torch.inf)
        # The rest needs numbers of its own: those of the first pick are conditioned on who came first.
        first_R1 = (scaled_RT + _gumbel(uniform(0)[:, :-1])).argmax(dim=1, keepdim=True)
        key_RK = torch.cat([scaled_RT, stop_R1], dim=1) + _gumbel(uniform(1))
        is_first_RT = torch.zeros_like(eligible_RT).scatter(1, first_R1, True)
        key_RT = key_RK[:, :-1].masked_fill(is_first_RT, torch.inf)
        picked_RT = eligible_RT & (key_RT > key_RK[:, -1:])
        place_RT = (key_RT[:, None, :] >= key_RT[:, :, None]).masked_fill(~picked_RT[:, None, :], False).sum(dim=2)
        return torch.where(picked_RT, place_RT, 0)

    def log_prob(self, logit_RT: torch.Tensor, eligible_RT: torch.Tensor, action_RT: torch.Tensor) -> torch.Tensor:
        """log-softmax of the first pick, then Plackett-Luce of the others and STOP."""
        # A finite floor keeps gradients finite; exp(-1e30) is 0.
        scaled_RT = (logit_RT.float() / self.temperature).masked_fill(~eligible_RT, -1e30)
        first_RT = action_RT == 1
        log_first_R = torch.where(first_RT, scaled_RT.log_softmax(dim=1), 0.0).sum(dim=1)
        stop_R1 = torch.full_like(scaled_RT[:, :1], -math.log(self.beta))
        # Sorted: picks 2, 3, .. first, then STOP, then the slots left alone; the first pick is out of the race.
        rank_RT = torch.where(action_RT > 0, action_RT, action_RT.shape[1] + 2).masked_fill(
            first_RT | ~eligible_RT, action_RT.shape[1] + 3
        )
        order_RT = rank_RT.argsort(dim=1, stable=True)
        sorted_RT = scaled_RT.masked_fill(first_RT, -1e30).gather(1, order_RT)
        drawn_RT = rank_RT.gather(1, order_RT) <= action_RT.shape[1]
        # Who is still in the race at each pick: everything sorted behind it, and STOP.
        behind_RT = sorted_RT.flip(1).logcumsumexp(dim=1).flip(1)
        race_RT = torch.logaddexp(behind_RT, stop_R1)
        log_rest_R = torch.where(drawn_RT, sorted_RT - race_RT, 0.0).sum(dim=1)
        left_RT = torch.where((action_RT == 0) & eligible_RT, scaled_RT, -1e30)
        log_stop_R = stop_R1[:, 0] - torch.logaddexp(left_RT.logsumexp(dim=1), stop_R1[:, 0])
        return torch.where(eligible_RT.any(dim=1), log_first_R + log_rest_R + log_stop_R, 0.0)


def law(name: LawName, *, temperature: float = 1.0, beta: float = 1.0) -> Law:
    """A law by name."""
    return {"bernoulli": Bernoulli, "dpls": Dpls}[name](temperature, beta)


def log_prob_with_fallback(
    chosen: Law,
    logit_RT: torch.Tensor,
    eligible_RT: torch.Tensor,
    action_RT: torch.Tensor,
    best_RT: torch.Tensor,
) -> torch.Tensor:
    """log-probability (R,) of what is committed where an empty action commits the one slot of `best_RT` instead.

    Committing exactly that slot has two ways: it was drawn alone, or nothing was drawn.
    """
    log_prob_R = chosen.log_prob(logit_RT, eligible_RT, action_RT)
    if not isinstance(chosen, Bernoulli):
        return log_prob_R
    empty_R = chosen.log_prob(logit_RT, eligible_RT, torch.zeros_like(action_RT))
    is_best_R = ((action_RT > 0) == best_RT).all(dim=1)
    return torch.where(is_best_R, torch.logaddexp(log_prob_R, empty_R), log_prob_R)


def _gumbel(uniform_RK: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel numbers, float64."""
    return -(-uniform_RK.clamp(min=2.0**-54).log()).log()
