"""Independent Metropolis-Hastings, token by token: `imh`.

The target is p(x)^alpha / Z over whole answers. Raising each token's own law to alpha misses a factor: what the rest of
the answer can still reach, the sum over completions of p(rest | x)^alpha. Here a mean field stands for it. At each step
one slot i is chosen position-first; then

    V_0 .. V_K  independent draws from g(v) = p_i(v)^alpha / norm;  U = the distinct ones
    L(u) = sum over the other masked slots j of log sum_v p_j(v | x[i <- u])^alpha,   one forward of the |U| canvases
    cur = V_0;  for v in V_1 .. V_K: cur = v with probability min(1, exp(damp * (L(v) - L(cur))))

and cur is committed. Its canvas has been evaluated, so the next step needs no forward. Where |U| is 1 or no slot is
left there is nothing to weigh: V_0 is committed. p is the law that the request asks for (temperature, top-k, top-p);
greedy rows take the most likely token.

That independent Metropolis-Hastings decodes towards a tempered law is from arXiv 2604.00375; acceptance, proposal,
number of candidates and defaults are ours.

R sequences, L slots of the widest active block, W columns that a candidate's forward predicts, K1 = K + 1 draws a row,
C candidate canvases, M slots looked at, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from samplers.chain import Walk, first_equal, log_mass, walk
from samplers.choice import allowed, choose
from samplers.count import Fixed
from samplers.draw import Law, invert_cumulative
from samplers.position import PositionRule
from samplers.prediction import CHUNK_BYTES, Need, Predictor, entropy_of
from samplers.randomness import CHAIN_STREAM, TOKEN_STREAM
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec
from samplers.view import Slots, View

Lookahead = Literal["block", "response"]


@dataclass(frozen=True)
class Metropolis:
    """One token a step, weighed by what it leaves possible.

    A request's step budget has no effect. A commit's probability contains the acceptances and has no closed form; the
    log-probability recorded is that of g. With 0 candidates this is plain tempering of each token.
    """

    name: str
    position: PositionRule
    alpha: float = 1.67
    candidates: int = 2
    """K, the draws beside the first."""
    damp: float = 1.0
    """Share of L that counts; below 1 where chains hardly ever accept."""
    lookahead: Lookahead = "block"
    """Which masked slots L sums over: the block's, or all that are visible."""
    skip_ends: bool = True
    """Leave out of L the slots where a candidate predicts an end token: a sure tail of ends would favour stopping."""
    eos_guard: bool | None = None
    chunk_bytes: int = CHUNK_BYTES

    exact_likelihood = False
    inexact_because = "keeps one of several draws, by a chain"
    probe: ProbeSpec | None = None
    memory = ()

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha is {self.alpha}; it must be a number above 0 (above 1 sharpens the law)")
        if self.candidates < 0:
            raise ValueError(f"candidates is {self.candidates}; it must be 0 (no chain) or more")
        if not 0 <= self.damp <= 1:
            raise ValueError(f"damp is {self.damp}; it must lie in 0..1")

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Choose a slot in each row, draw its candidates, and run the chain over them."""
        slots, predictor, index_R = self._choose(replace(state, any_budget=False), evaluate)
        draws = self._draw(slots, predictor, index_R)
        distinct_R = draws.num_distinct()
        column_R = slots.column_M[index_R]
        row_R = torch.arange(len(column_R), device=column_R.device)
        ahead_RW = state.candidate_RL if state.ahead_RW is None else state.ahead_RW
        ahead_RW = ahead_RW & (torch.arange(ahead_RW.shape[1], device=column_R.device) != column_R[:, None])
        weighed_R = (distinct_R > 1) & ahead_RW.any(dim=1)
        row_C, number_C = (draws.is_new() & weighed_R[:, None]).nonzero(as_tuple=True)
        chain, evaluated = _unmoved(draws), None
        lookahead_RK = torch.full_like(draws.logprob_RK, torch.nan)
        if len(row_C):
            forward = evaluate.with_tokens(row_C, column_R[row_C], draws.token_RK[row_C, number_C])
            mass_CW, kept = self._look(state, forward, row_C, ahead_RW)
            place_RK = draws.places(weighed_R)
            chain = self._walk(slots, index_R, draws, weighed_R, mass_CW[place_RK])
            evaluated = (kept, torch.where(weighed_R, place_RK[row_R, chain.current_R], -1))
            lookahead_RK = mass_CW.sum(dim=1)[place_RK].masked_fill(~weighed_R[:, None], torch.nan)
        return Commit(
            row_R,
            column_R,
            draws.token_RK[row_R, chain.current_R],
            draws.logprob_RK[row_R, chain.current_R],
            draws.entropy_R,
            extra_forwards_R=torch.where(weighed_R, distinct_R, 0),
            evaluated=evaluated,
            notes_R={
                "slot": state.slot_RL[row_R, column_R],
                "distinct": distinct_R,
                "proposed": chain.proposed_R,
                "accepted": chain.accepted_R,
                "extra_forwards": torch.where(weighed_R, distinct_R, 0),
                "lookahead": lookahead_RK,
                "log_mass": draws.log_mass_R,
            },
        )

    def _choose(self, state: BlockState, evaluate: Evaluate) -> tuple[Slots, Predictor, torch.Tensor]:
        """The slots looked at, their prediction, and the index of each row's slot among them."""
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        needs = self.position.needs | (Need.TOP_TOKEN if guard else Need.NOTHING)
        if needs:
            slots = Slots.candidates(state)
            predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
            prediction = predictor.summary(needs)
            view = View(slots, allowed(slots, prediction, guard=guard), prediction)
            return slots, predictor, choose(view, self.position.score(view), Fixed(1)).index_K
        grid = Slots.grid(state)
        view = View(grid, state.candidate_RL)
        index_R = choose(view, self.position.score(view), Fixed(1)).index_K
        slots = Slots(state, grid.row_M[index_R], grid.column_M[index_R], is_grid=False)
        predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
        return slots, predictor, torch.arange(len(index_R), device=index_R.device)

    def _draw(self, slots: Slots, predictor: Predictor, index_R: torch.Tensor) -> Draws:
        """The K1 proposals of each row's slot."""
        law = Law.of(slots.state, slots.row_M[index_R])
        streams = [TOKEN_STREAM, *(CHAIN_STREAM + 2 * number for number in range(self.candidates))]
        uniform_RK = torch.stack([slots.uniform(index_R, stream=stream) for stream in streams], dim=1)
        parts = []
        for lot, logits_CV in predictor.lots(index_R):
            own, greedy_C1 = law.at(lot), law.at(lot).greedy()[:, None]
            log_q_CV = own.apply(logits_CV).log_softmax(dim=-1)
            log_g_CV = (self.alpha * log_q_CV).log_softmax(dim=-1)
            g_CV = log_g_CV.exp()
            drawn_CK = torch.stack([invert_cumulative(g_CV, u_C) for u_C in uniform_RK[lot].unbind(dim=1)], dim=1)
            token_CK = torch.where(greedy_C1, logits_CV.argmax(dim=-1, keepdim=True), drawn_CK)
            logprob_CK = torch.where(greedy_C1, log_q_CV.gather(1, token_CK), log_g_CV.gather(1, token_CK))
            entropy_C = entropy_of(logits_CV.softmax(dim=-1))
            parts.append((token_CK, first_equal(token_CK), logprob_CK, entropy_C, log_mass(log_q_CV, self.alpha)))
        return Draws(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _look(
        self, state: BlockState, forward: Evaluate, row_C: torch.Tensor, ahead_RW: torch.Tensor
    ) -> tuple[torch.Tensor, Kept]:
        """log sum_v p_j(v)^alpha (C, W) of each candidate's slots, 0 at those that do not count; and the forward."""
        candidate_M, column_M = ahead_RW[row_C].nonzero(as_tuple=True)
        row_M = row_C[candidate_M]
        predictor = Predictor(forward, candidate_M, column_M, chunk_bytes=self.chunk_bytes)
        law = Law.of(state, row_M)
        masses, ends = [], []
        for lot, logits_NV in predictor.lots():
            masses.append(log_mass(law.at(lot).apply(logits_NV).log_softmax(dim=-1), self.alpha))
            ends.append(_is_any(logits_NV.argmax(dim=-1), state.stop_ids))
        mass_CW = torch.zeros(len(row_C), ahead_RW.shape[1], device=row_C.device)
        mass_CW[candidate_M, column_M] = torch.cat(masses)
        if self.skip_ends:
            # The same slots are left out for all candidates of a row, or their sums could not be compared.
            count_RW = torch.zeros_like(ahead_RW, dtype=torch.int64)
            count_RW.index_put_((row_M, column_M), torch.cat(ends).to(torch.int64), accumulate=True)
            mass_CW = mass_CW.masked_fill(count_RW[row_C] > 0, 0.0)
        place_CW = torch.zeros_like(mass_CW, dtype=torch.int64)
        place_CW[candidate_M, column_M] = torch.arange(len(column_M), device=column_M.device)
        return mass_CW, Kept(forward, predictor.hidden_MD, place_CW)

    def _walk(
        self, slots: Slots, index_R: torch.Tensor, draws: Draws, weighed_R: torch.Tensor, mass_RKW: torch.Tensor
    ) -> Walk:
        """Run the chains; rows that are not weighed stay at their first draw."""
        streams = [CHAIN_STREAM + 2 * number + 1 for number in range(self.candidates)]
        uniform_RK = torch.stack([slots.uniform(index_R, stream=stream) for stream in streams], dim=1)
        # Differences slot by slot, then their sum: the sums themselves are large and nearly the same.
        gain_RK = (mass_RKW - mass_RKW[:, :1]).sum(dim=2).to(torch.float64)
        chain = walk(self.damp * gain_RK, uniform_RK, same_RK=draws.first_RK)
        return Walk(*(torch.where(weighed_R, n_R, 0) for n_R in (chain.current_R, chain.proposed_R, chain.accepted_R)))


@dataclass(frozen=True, slots=True)
class Draws:
    """The tokens proposed for each row's slot."""

    token_RK: torch.Tensor
    first_RK: torch.Tensor
    """Number of the first draw of the same token."""
    logprob_RK: torch.Tensor
    """Under the law drawn from."""
    entropy_R: torch.Tensor
    log_mass_R: torch.Tensor
    """log sum_v p(v)^alpha of the slot: the factor that tempering it alone leaves out."""

    def is_new(self) -> torch.Tensor:
        """Whether no earlier draw is the same token."""
        return self.first_RK == torch.arange(self.first_RK.shape[1], device=self.first_RK.device)

    def num_distinct(self) -> torch.Tensor:
        """|U|."""
        return self.is_new().sum(dim=1)

    def places(self, weighed_R: torch.Tensor) -> torch.Tensor:
        """Candidate canvas of each draw (R, K1); 0 in rows that are not weighed."""
        asked_RK = self.is_new() & weighed_R[:, None]
        place_RK = (asked_RK.flatten().cumsum(dim=0) - 1).view_as(asked_RK).gather(1, self.first_RK)
        return torch.where(weighed_R[:, None], place_RK, 0)


class Kept:
    """Hidden states of the candidates' forward: what the next step asks for is not computed again."""

    def __init__(self, forward: Evaluate, hidden_MD: torch.Tensor, place_CW: torch.Tensor) -> None:
        self.vocab_size = forward.vocab_size
        self._forward, self._hidden_MD, self._place_CW = forward, hidden_MD, place_CW

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Final hidden states (M, D) at slots that are masked in the candidate canvas."""
        return self._hidden_MD[self._place_CW[row_M, column_M]]

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V) of the same head."""
        return self._forward.logits(hidden_MD)

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Sums of the forward, which was run without a probe."""
        return self._forward.attention(row_M, column_M)

    def with_tokens(self, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor) -> Evaluate:
        """Candidates of candidate canvases."""
        return self._forward.with_tokens(row_K, column_K, token_K)


def _unmoved(draws: Draws) -> Walk:
    zero_R = torch.zeros_like(draws.first_RK[:, 0])
    return Walk(zero_R, zero_R, zero_R)


def _is_any(token_M: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    found_M = torch.zeros_like(token_M, dtype=torch.bool)
    for one in ids:
        found_M |= token_M == one
    return found_M
