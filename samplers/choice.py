"""From scores to the slots that one step commits.

R sequences, L slots of the widest active block, M slots looked at, K committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.count import CountRule, Ranked, scheduled
from samplers.prediction import Prediction
from samplers.randomness import POSITION_STREAM
from samplers.records import BlockState
from samplers.view import Slots, View


@dataclass(frozen=True, slots=True)
class Choice:
    """Slots to commit."""

    index_K: torch.Tensor
    """Their indices among the M slots, ascending."""
    logprob_R: torch.Tensor | None
    """float32. log-probability of each row's choice, in its order, where positions were drawn."""


def allowed(slots: Slots, prediction: Prediction | None, *, guard: bool) -> torch.Tensor:
    """bool (R, L): the candidates, less those that the end guard holds back."""
    state = slots.state
    if not guard:
        return state.candidate_RL
    assert prediction is not None
    token_M = prediction.top_token_M
    assert token_M is not None
    ends_M = torch.zeros_like(token_M, dtype=torch.bool)
    for stop_id in state.stop_ids:
        ends_M |= token_M == stop_id
    return guard_end(state.candidate_RL, ends_RL=slots.spread(ends_M, False))


def guard_end(candidate_RL: torch.Tensor, *, ends_RL: torch.Tensor) -> torch.Tensor:
    """Candidates under the end guard: those predicting content, and the leftmost candidate of each row."""
    leftmost_RL = candidate_RL & (candidate_RL.cumsum(dim=1) == 1)
    return (candidate_RL & ~ends_RL) | leftmost_RL


def choose(view: View, score_M: torch.Tensor, count: CountRule, *, position_temperature: float | None = None) -> Choice:
    """Choose the slots that the how-many rule marks, the best-scored one where it marks none.

    A step budget stands before the how-many rule. `position_temperature` draws the order without replacement from
    softmax(score / position_temperature) instead of sorting.
    """
    state, slots = view.state, view.slots
    takes_best = count.is_single and not state.any_budget and position_temperature is None
    if takes_best and len(view.allowed_RL) == 1 and view.allowed_RL is state.candidate_RL and not slots.is_grid:
        return Choice(score_M.argmax(dim=0, keepdim=True), None)
    score_RL = slots.spread(score_M, -torch.inf).masked_fill(~view.allowed_RL, -torch.inf)
    logit_RL = None
    if position_temperature is not None:
        logit_RL = score_RL.to(torch.float64) / position_temperature
        score_RL = logit_RL + gumbel(state)
    best_R = score_RL.argmax(dim=1)
    if takes_best:
        return Choice(slots.index_at(best_R), None)
    top_prob_RL = _spread(view, None if view.prediction is None else view.prediction.top_prob_M)
    entropy_RL = _spread(view, None if view.prediction is None else view.prediction.entropy_M)
    goes_first_RL = None if top_prob_RL is None else count.goes_first(top_prob_RL)
    if goes_first_RL is not None and state.any_budget:
        goes_first_RL = goes_first_RL & (state.block_steps_R == 0)[:, None]
    order_RL = _order(score_RL, goes_first_RL)
    ranked = Ranked(
        state,
        view.allowed_RL.gather(1, order_RL),
        _sorted(top_prob_RL, order_RL),
        _sorted(entropy_RL, order_RL),
    )
    selected_RL = count.select(ranked)
    if state.any_budget:
        selected_RL = torch.where(state.block_steps_R[:, None] > 0, ranked.first(scheduled(state)), selected_RL)
    selected_RL = selected_RL & ranked.allowed_RL
    chosen_RL = torch.zeros_like(selected_RL).scatter(1, order_RL, selected_RL)
    column_L = torch.arange(chosen_RL.shape[1], device=chosen_RL.device)
    chosen_RL |= ~selected_RL.any(dim=1, keepdim=True) & (column_L == best_R[:, None])
    index_K = chosen_RL[slots.row_M, slots.column_M].nonzero(as_tuple=True)[0]
    if logit_RL is None:
        return Choice(index_K, None)
    return Choice(index_K, plackett_luce(logit_RL.gather(1, order_RL), chosen_RL.sum(dim=1)))


def gumbel(state: BlockState) -> torch.Tensor:
    """Standard Gumbel numbers, float64 (R, L), each sequence's own."""
    slots = Slots.grid(state)
    uniform_RL = slots.spread(slots.uniform(stream=POSITION_STREAM), 0.0)
    return -(-uniform_RL.clamp(min=2.0**-54).log()).log()


def plackett_luce(logit_RL: torch.Tensor, count_R: torch.Tensor) -> torch.Tensor:
    """log-probability (R,), float32, of drawing the first `count_R` slots of each row, in this order, without
    replacement; slots that cannot be drawn are -inf and stand last."""
    remaining_RL = logit_RL.flip(1).logcumsumexp(dim=1).flip(1)
    drawn_RL = torch.arange(logit_RL.shape[1], device=logit_RL.device) < count_R[:, None]
    return torch.where(drawn_RL, logit_RL - remaining_RL, 0.0).sum(dim=1).to(torch.float32)


def _order(score_RL: torch.Tensor, goes_first_RL: torch.Tensor | None) -> torch.Tensor:
    """Columns sorted by score descending, then those that go first, then ascending."""
    if goes_first_RL is None:
        return score_RL.sort(dim=1, descending=True, stable=True).indices
    first_RL = goes_first_RL.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    return first_RL.gather(1, score_RL.gather(1, first_RL).sort(dim=1, descending=True, stable=True).indices)


def _spread(view: View, value_M: torch.Tensor | None) -> torch.Tensor | None:
    return None if value_M is None else view.slots.spread(value_M, 0.0).masked_fill(~view.allowed_RL, 0.0)


def _sorted(value_RL: torch.Tensor | None, order_RL: torch.Tensor) -> torch.Tensor | None:
    return None if value_RL is None else value_RL.gather(1, order_RL)
