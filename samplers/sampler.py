"""A sampler is a position rule x a how-many rule x a token draw.

R sequences, L slots of the widest active block, M masked candidates, K committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.count import CountRule, scheduled
from samplers.draw import draw
from samplers.position import PositionRule
from samplers.prediction import Prediction, Predictor, entropy_of
from samplers.randomness import TOKEN_STREAM, uniform
from samplers.records import BlockState, Commit, Evaluate

CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Sampler:
    """Position-first: choose the slots, then draw their tokens.

    `eos_guard` keeps the end of the answer open: a slot whose most likely token is an end token is no candidate while a
    slot to its left in the block is masked; if no candidate is left, the leftmost masked slot is. It depends on the
    prediction only, so the sampler stays position-first. None switches it on for full diffusion (one block), where
    models trained with end-token filling otherwise commit the end of the canvas first.
    """

    name: str
    position: PositionRule
    count: CountRule
    eos_guard: bool | None = None
    chunk_bytes: int = CHUNK_BYTES

    exact_likelihood = True

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Choose and draw what this step commits: at least one slot a sequence, candidates only."""
        slots = Slots.of(state)
        predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        prediction = None
        if self.position.needs_prediction or self.count.needs_prediction or guard:
            prediction = predictor.summary(second=self.position.needs_second, entropy=self.position.needs_entropy)
        score_M = self.position.score(prediction, slots.seed_M, slots.step_M, slots.slot_M)
        index_K = choose(state, slots, score_M, prediction, self.count, guard=guard)
        row_K, column_K = slots.row_M[index_K], slots.column_M[index_K]
        logits_KV = predictor.logits(index_K)
        token_K, logprob_K = draw_at(state, slots, index_K, logits_KV)
        return Commit(row_K, column_K, token_K, logprob_K, entropy_of(logits_KV))


@dataclass(frozen=True, slots=True)
class Slots:
    """The M candidates of a batch, flattened row by row, with what their random numbers are keyed by."""

    row_M: torch.Tensor
    column_M: torch.Tensor
    slot_M: torch.Tensor
    seed_M: torch.Tensor
    step_M: torch.Tensor

    @staticmethod
    def of(state: BlockState) -> Slots:
        """Flatten the candidates of a state."""
        row_M, column_M = state.candidate_RL.nonzero(as_tuple=True)
        return Slots(row_M, column_M, state.slot_RL[row_M, column_M], state.seed_R[row_M], state.step_R[row_M])

    def spread(self, value_M: torch.Tensor, state: BlockState, fill: float) -> torch.Tensor:
        """Values of the candidates as (R, L), `fill` elsewhere."""
        value_RL = torch.full(state.candidate_RL.shape, fill, dtype=value_M.dtype, device=value_M.device)
        value_RL[self.row_M, self.column_M] = value_M
        return value_RL


def choose(
    state: BlockState,
    slots: Slots,
    score_M: torch.Tensor,
    prediction: Prediction | None,
    count: CountRule,
    *,
    guard: bool,
) -> torch.Tensor:
    """Indices (K,) of the candidates to commit: the best-scored of each row, as many as the how-many rule says."""
    allowed_RL = state.candidate_RL
    if guard:
        assert prediction is not None
        stop_ids = torch.tensor(state.stop_ids, device=score_M.device)
        ends_M = torch.isin(prediction.top_token_M, stop_ids)
        allowed_RL = guard_end(allowed_RL, ends_RL=slots.spread(ends_M, state, False))
    score_RL = slots.spread(score_M, state, -torch.inf).masked_fill(~allowed_RL, -torch.inf)
    order_RL = score_RL.sort(dim=1, descending=True, stable=True).indices
    top_prob_RL = None
    if count.needs_prediction:
        assert prediction is not None
        top_prob_RL = slots.spread(prediction.top_prob_M, state, 0.0).masked_fill(~allowed_RL, 0.0).gather(1, order_RL)
    count_R = torch.where(state.block_steps_R > 0, scheduled(state), count.count(state, top_prob_RL))
    count_R = count_R.clamp(min=1).minimum(allowed_RL.sum(dim=1))
    rank_RL = torch.arange(score_RL.shape[1], device=score_RL.device).expand_as(order_RL)
    chosen_RL = torch.zeros_like(allowed_RL).scatter(1, order_RL, rank_RL < count_R[:, None])
    return chosen_RL[slots.row_M, slots.column_M].nonzero(as_tuple=True)[0]


def guard_end(candidate_RL: torch.Tensor, *, ends_RL: torch.Tensor) -> torch.Tensor:
    """Candidates under the end guard: those predicting content, and the leftmost candidate of each row."""
    leftmost_RL = candidate_RL & (candidate_RL.cumsum(dim=1) == 1)
    return (candidate_RL & ~ends_RL) | leftmost_RL


def draw_at(
    state: BlockState, slots: Slots, index_K: torch.Tensor, logits_KV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token at each of the chosen slots from its own law, with the sequence's own random numbers."""
    row_K = slots.row_M[index_K]
    uniform_K = uniform(slots.seed_M[index_K], slots.step_M[index_K], slots.slot_M[index_K], stream=TOKEN_STREAM)
    return draw(logits_KV, state.temperature_R[row_K], state.top_p_R[row_K], uniform_K)
