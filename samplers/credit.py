"""`credit` (CreditDecoding): a slot whose most likely token stays the same from step to step earns credit for it.

Published rule, for each masked slot i with prediction p_i and logits l_i, and each token v:

    C[i, v] <- decay * C[i, v],  then C[i, argmax p_i] += (max p_i)^power
    l'[i]    = l[i] + strength * ln(1 + C[i])

and the how-many rule judges softmax(l'). The published code keeps C as a slots x vocabulary matrix. Here a slot
remembers one token and its credit. While the most likely token of a slot stays the same this is the same rule; when it
changes, the token of larger credit is remembered and the other one's credit is forgotten.

R sequences, L slots of the widest active block, M masked candidates, K committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.choice import allowed, choose
from samplers.count import CountRule
from samplers.draw import Law, draw
from samplers.prediction import CHUNK_BYTES, Need, Prediction, Predictor, entropy_of
from samplers.randomness import TOKEN_STREAM
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec
from samplers.sampler import draw_tokens
from samplers.view import Slots, View


@dataclass(frozen=True, slots=True)
class Credit:
    """What each of M slots remembers: a token and its credit (0: nothing yet)."""

    token_M: torch.Tensor
    credit_M: torch.Tensor

    def updated(self, prediction: Prediction, *, decay: float, power: float) -> Credit:
        """Credit after one more prediction."""
        top_token_M = prediction.top_token_M
        assert top_token_M is not None
        old_M, new_M = decay * self.credit_M, prediction.top_prob_M**power
        same_M = top_token_M == self.token_M
        keeps_M = same_M | (old_M > new_M)
        return Credit(
            torch.where(keeps_M, self.token_M, top_token_M),
            torch.where(same_M, old_M + new_M, torch.maximum(old_M, new_M)),
        )


def boosted(prediction: Prediction, token_M: torch.Tensor, boost_M: torch.Tensor) -> Prediction:
    """Highest probability and its token after `boost_M` is added to the logit of one token a slot.

    `given_prob_M` of the prediction is that of the tokens that were remembered before; a token remembered only now is
    the most likely one.
    """
    top_prob_M, top_token_M, given_prob_M = prediction.top_prob_M, prediction.top_token_M, prediction.given_prob_M
    assert top_token_M is not None
    assert given_prob_M is not None
    is_top_M = token_M == top_token_M
    own_prob_M = torch.where(is_top_M, top_prob_M, given_prob_M)
    raised_M = boost_M.exp() * own_prob_M
    total_M = 1 + raised_M - own_prob_M
    wins_M = is_top_M | (raised_M > top_prob_M) | ((raised_M == top_prob_M) & (token_M < top_token_M))
    return Prediction(
        top_prob_M=torch.where(wins_M, raised_M, top_prob_M) / total_M,
        top_token_M=torch.where(wins_M, token_M, top_token_M),
    )


@dataclass(frozen=True)
class CreditSampler:
    """Confidence and a how-many rule on predictions raised by credit.

    `boost_draw`: tokens are drawn from the raised law, as published; such a token's likelihood cannot be had from a
    replay. False draws them from the model's own law: then credit decides about positions only, and the likelihood is
    exact. The entropy of a commit is the model's own in both cases, and so is the log-probability of a greedy token.
    """

    name: str
    count: CountRule
    decay: float = 0.8
    power: float = 0.2
    strength: float = 0.7
    boost_draw: bool = True
    eos_guard: bool | None = None
    chunk_bytes: int = CHUNK_BYTES

    probe: ProbeSpec | None = None
    memory = ("credit_token", "credit")
    inexact_because = "draws from logits to which it has added its credit (boost_draw: false does not)"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 and below 1")
        for name in ("power", "strength"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")

    @property
    def exact_likelihood(self) -> bool:
        """Whether tokens are drawn from the model's own law."""
        return not self.boost_draw

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Choose by raised confidence and draw; the memory of every slot is handed back."""
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        slots = Slots.candidates(state)
        where = (slots.row_M, slots.column_M)
        before = Credit(state.memory_RL["credit_token"][where].to(torch.int64), state.memory_RL["credit"][where])
        predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
        plain = predictor.summary(Need.TOP_PROB | Need.TOP_TOKEN, given_token_M=before.token_M)
        credit = before.updated(plain, decay=self.decay, power=self.power)
        boost_M = self.strength * credit.credit_M.log1p()
        raised = boosted(plain, credit.token_M, boost_M)
        view = View(slots, allowed(slots, raised, guard=guard), raised)
        index_K = choose(view, raised.top_prob_M, self.count).index_K
        if self.boost_draw:
            commit = _draw_raised(slots, index_K, predictor, credit.token_M[index_K], boost_M[index_K])
        else:
            commit = draw_tokens(slots, index_K, predictor.lots(index_K))
        memory_RL = {name: state.memory_RL[name].clone() for name in self.memory}
        # float32 holds every whole number up to 2^24, more than any vocabulary has.
        memory_RL["credit_token"][where] = credit.token_M.to(torch.float32)
        memory_RL["credit"][where] = credit.credit_M
        return replace(commit, memory_RL=memory_RL)


def _draw_raised(
    slots: Slots, index_K: torch.Tensor, predictor: Predictor, raised_K: torch.Tensor, boost_K: torch.Tensor
) -> Commit:
    """Draw after `boost_K` is added to the logit of one token a slot; what is recorded of a greedy draw, and the
    entropies, are the model's own."""
    row_K = slots.row_M[index_K]
    law, uniform_K = Law.of(slots.state, row_K), slots.uniform(index_K, stream=TOKEN_STREAM)
    greedy_K = law.greedy()
    parts = []
    for lot, logits_CV in predictor.lots(index_K):
        p_CV = logits_CV.softmax(dim=-1)
        raised_CV = logits_CV.scatter_add(1, raised_K[lot, None], boost_K[lot, None])
        token_C, logprob_C = draw(raised_CV, law.at(lot), uniform_K[lot])
        own_logprob_C = p_CV.gather(1, token_C[:, None])[:, 0].log()
        parts.append((token_C, torch.where(greedy_K[lot], own_logprob_C, logprob_C), entropy_of(p_CV)))
    token_K, logprob_K, entropy_K = (torch.cat(part) for part in zip(*parts, strict=True))
    return Commit(row_K, slots.column_M[index_K], token_K, logprob_K, entropy_K)
