"""`policy`: a trained network decides at every step which slots of the active block to commit.

The choice depends on probabilities, masks and the elapsed time only, never on tokens, so the sampler is position-first:
the likelihood of an answer's tokens is exact, and the log-probability of each step's choice of slots is recorded.

R sequences, T response slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.count import scheduled
from samplers.policy.config import Fallback
from samplers.policy.laws import Law, log_prob_with_fallback
from samplers.policy.network import PolicyNetwork
from samplers.policy.observation import Looked, best_of, look
from samplers.prediction import CHUNK_BYTES
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec


@dataclass(frozen=True)
class PolicySampler:
    """Position-first decoding by a learned policy.

    Where the action is empty, one slot is committed nevertheless, so a block of n slots takes at most n steps:
    `fallback` says whether it is the slot of the highest logit (as published) or of the highest probability.
    A step budget of the request stands before the law: the slots of highest logit, evenly scheduled.
    """

    name: str
    network: PolicyNetwork
    law: Law
    fallback: Fallback = "logit"
    eos_guard: bool | None = None
    chunk_bytes: int = CHUNK_BYTES

    exact_likelihood = True
    inexact_because = ""
    probe: ProbeSpec | None = None
    memory = ()
    observes_response = True

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Look, decide, draw the tokens."""
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        looked = look(
            state, evaluate, num_probs=self.network.config.num_probs, guard=guard, chunk_bytes=self.chunk_bytes
        )
        chosen_RT, logprob_R = self.decide(looked)
        return replace(looked.commit(chosen_RT), position_logprob_R=logprob_R)

    def _logits(self, looked: Looked) -> torch.Tensor:
        seen = looked.observation
        if next(self.network.parameters()).device != seen.prob_RTn.device:
            self.network.to(seen.prob_RTn.device)
        with torch.no_grad():
            logit_RT: torch.Tensor = self.network(seen.prob_RTn, seen.masked_RT, seen.elapsed_R, seen.valid_RT)
        return logit_RT

    def decide(self, looked: Looked) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots to commit (R, T), at least one a row, and the log-probability of committing them."""
        logit_RT, eligible_RT = self._logits(looked), looked.observation.eligible_RT
        action_RT = self.law.draw(logit_RT, eligible_RT, looked.uniform)
        best_RT = best_of(logit_RT, eligible_RT) if self.fallback == "logit" else looked.most_confident()
        empty_R1 = ~(action_RT > 0).any(dim=1, keepdim=True)
        action_RT = torch.where(empty_R1, best_RT.long(), action_RT)
        logprob_R = log_prob_with_fallback(self.law, logit_RT, eligible_RT, action_RT, best_RT)
        state, chosen_RT = looked.state, action_RT > 0
        if state.any_budget:
            planned_RT, has_budget_R = _highest(logit_RT, eligible_RT, scheduled(state)), state.block_steps_R > 0
            chosen_RT = torch.where(has_budget_R[:, None], planned_RT, chosen_RT)
            logprob_R = torch.where(has_budget_R, 0.0, logprob_R)
        return chosen_RT, logprob_R


def _highest(score_RT: torch.Tensor, eligible_RT: torch.Tensor, count_R: torch.Tensor) -> torch.Tensor:
    """bool (R, T): the `count_R` eligible slots of highest score, at least one."""
    score_RT = score_RT.masked_fill(~eligible_RT, -torch.inf)
    order_RT = score_RT.sort(dim=1, descending=True, stable=True).indices
    rank_T = torch.arange(score_RT.shape[1], device=score_RT.device)
    first_RT = rank_T < count_R.clamp(min=1)[:, None]
    return torch.zeros_like(eligible_RT).scatter(1, order_RT, first_RT) & eligible_RT
