"""What the policy sees of a denoising step, and how its choice becomes a commit.

R sequences, T response slots of the longest answer, L columns of the widest active block, M slots looked at (masked and
predicted by this forward), n probabilities a slot, K committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.choice import guard_end
from samplers.prediction import CHUNK_BYTES, Predictor
from samplers.randomness import POSITION_STREAM, uniform
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec, ResponseView
from samplers.sampler import draw_tokens
from samplers.view import Slots

_REST_STREAM = 2
"""Random numbers of the policy beside those of `POSITION_STREAM`."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The policy's view of R answers; slots behind the end of a shorter answer are not valid and all 0."""

    prob_RTn: torch.Tensor
    """float32. Highest probabilities of the prediction, highest first. A slot whose token is known has (1, 0, ..), a
    masked one that this forward does not predict has 0."""
    masked_RT: torch.Tensor
    """bool."""
    eligible_RT: torch.Tensor
    """bool. Slots that may be committed now: masked, in the active block, not held back by the end guard."""
    elapsed_R: torch.Tensor
    """float32. Steps taken over T."""
    valid_RT: torch.Tensor
    """bool."""


@dataclass(frozen=True)
class Undecided:
    """Stands in for a sampler where an environment looks and somebody else decides (`rollout.stepwise`)."""

    name: str = "policy"

    exact_likelihood = True
    inexact_because = ""
    probe: ProbeSpec | None = None
    memory = ()
    observes_response = True
    may_idle = True

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Refused: there is nothing to decide with."""
        raise NotImplementedError("this engine is driven from outside, by look and take")


@dataclass(frozen=True, slots=True)
class Looked:
    """A step that has been looked at and not yet decided."""

    observation: Observation
    candidate_RT: torch.Tensor
    """bool. What the engine lets a step commit, the end guard aside."""
    state: BlockState
    slots: Slots
    """The M slots."""
    predictor: Predictor
    start_R: torch.Tensor
    """Index in its answer of each row's column 0."""

    def uniform(self, number: int) -> torch.Tensor:
        """Random numbers (R, T + 1) of this step, each sequence's own; see `laws.Uniform`."""
        rows, slots = self.observation.masked_RT.shape
        state, device = self.state, self.start_R.device
        # The column behind the slots (STOP) has the number of slot -1, whatever the width of the batch is.
        slot_K = torch.cat([torch.arange(slots, device=device), torch.full((1,), -1, device=device)])
        seed_RK, step_RK = (value_R[:, None].expand(rows, slots + 1) for value_R in (state.seed_R, state.step_R))
        stream = POSITION_STREAM if number == 0 else _REST_STREAM
        return uniform(seed_RK, step_RK, slot_K.expand(rows, -1), stream=stream)

    def commit(self, chosen_RT: torch.Tensor) -> Commit:
        """Draw tokens at these slots, all of them candidates; rows without one spend the step."""
        slot_M = self.start_R[self.slots.row_M] + self.slots.column_M
        index_K = chosen_RT[self.slots.row_M, slot_M].nonzero(as_tuple=True)[0]
        if not len(index_K):
            return Commit(index_K, index_K, index_K, index_K.float(), index_K.float())
        return draw_tokens(self.slots, index_K, self.predictor.lots(index_K))

    def most_confident(self) -> torch.Tensor:
        """bool (R, T): the eligible slot of highest probability of each row, the lower one of equals."""
        return best_of(self.observation.prob_RTn[:, :, 0], self.observation.eligible_RT)


def best_of(score_RT: torch.Tensor, eligible_RT: torch.Tensor) -> torch.Tensor:
    """bool (R, T): the eligible slot of highest score, the lower one of equals; nothing in rows without one."""
    best_R1 = score_RT.masked_fill(~eligible_RT, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.zeros_like(eligible_RT).scatter(1, best_R1, True) & eligible_RT


def look(
    state: BlockState, evaluate: Evaluate, *, num_probs: int, guard: bool, chunk_bytes: int = CHUNK_BYTES
) -> Looked:
    """Evaluate every masked slot that the forward predicts, in the active block and beyond."""
    response = state.response
    assert response is not None, "the policy observes the whole response"
    start_R = state.slot_RL[:, 0]
    row_M, slot_M = (response.masked_RT & response.seen_RT).nonzero(as_tuple=True)
    column_M = slot_M - start_R[row_M]
    predictor = Predictor(evaluate, row_M, column_M, chunk_bytes=chunk_bytes)
    probs, ends = [], []
    for _, logits_CV in predictor.lots():
        top = logits_CV.softmax(dim=-1).topk(min(num_probs, logits_CV.shape[1]), dim=-1)
        probs.append(torch.nn.functional.pad(top.values, (0, num_probs - top.values.shape[1])))
        if guard:
            ends.append(_is_any(logits_CV.argmax(dim=-1), state.stop_ids))
    valid_RT = _valid(response)
    prob_RTn = torch.zeros(*valid_RT.shape, num_probs, device=valid_RT.device)
    prob_RTn[:, :, 0] = (valid_RT & ~response.masked_RT).float()
    prob_RTn[row_M, slot_M] = torch.cat(probs)
    candidate_RT = _candidates(state, response, start_R)
    eligible_RT = candidate_RT
    if guard:
        ends_RT = torch.zeros_like(valid_RT)
        ends_RT[row_M, slot_M] = torch.cat(ends)
        eligible_RT = guard_end(candidate_RT, ends_RL=ends_RT)
    elapsed_R = state.step_R.float() / response.length_R.float()
    observation = Observation(prob_RTn, response.masked_RT, eligible_RT, elapsed_R, valid_RT)
    return Looked(observation, candidate_RT, state, Slots(state, row_M, column_M, is_grid=False), predictor, start_R)


def _valid(response: ResponseView) -> torch.Tensor:
    slot_T = torch.arange(response.masked_RT.shape[1], device=response.length_R.device)
    return slot_T < response.length_R[:, None]


def _candidates(state: BlockState, response: ResponseView, start_R: torch.Tensor) -> torch.Tensor:
    """The candidates of the active block at their places in the answer, (R, T)."""
    rows, slots = response.masked_RT.shape
    # A spare column takes the padding of short blocks, whose slots lie anywhere.
    place_RL = torch.where(state.candidate_RL, state.slot_RL, slots)
    wide_RT = torch.zeros(rows, slots + 1, dtype=torch.bool, device=start_R.device)
    return wide_RT.scatter(1, place_RL, state.candidate_RL)[:, :-1]


def _is_any(token_M: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    found_M = torch.zeros_like(token_M, dtype=torch.bool)
    for one in ids:
        found_M |= token_M == one
    return found_M
