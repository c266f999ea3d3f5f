"""A sampler is a position rule x a how-many rule x a token draw.

R sequences, L slots of the widest active block, M slots looked at, K committed slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from samplers.choice import allowed, choose
from samplers.count import CountRule, Fixed
from samplers.draw import Law, draw
from samplers.position import PositionRule
from samplers.prediction import CHUNK_BYTES, Need, Predictor, entropy_of
from samplers.randomness import TOKEN_STREAM
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec
from samplers.view import Slots, View

ScoreOn = Literal["model", "sampling"]


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
    position_temperature: float | None = None
    """Draw the slots without replacement from softmax(score / this) (Dream's `alg_temp`); None: best first."""
    score_on: ScoreOn = "model"
    """`model`: rules judge the untempered prediction (LLaDA); `sampling`: the law drawn from (Dream)."""
    chunk_bytes: int = CHUNK_BYTES

    memory = ()

    def __post_init__(self) -> None:
        if self.position_temperature is None:
            return
        if not self.position_temperature > 0:
            raise ValueError(f"position_temperature is {self.position_temperature}; it must be above 0, or None")
        if not isinstance(self.count, Fixed):
            raise ValueError(
                f"position_temperature needs a fixed number of tokens a step, not {self.count}: only then has the draw "
                "of the slots a probability that can be recorded. Leave out one of the two."
            )

    @property
    def exact_likelihood(self) -> bool:
        """Whether replaying the step map at the request's temperature is exact."""
        return self.position.exact_likelihood

    @property
    def inexact_because(self) -> str:
        """Why it is not, where it is not."""
        return self.position.inexact_because

    @property
    def probe(self) -> ProbeSpec | None:
        """Attention sums that the position rule ranks by."""
        return self.position.probe

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Choose and draw what this step commits: at least one slot a sequence, candidates only."""
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        needs = self.position.needs | self.count.needs | (Need.TOP_TOKEN if guard else Need.NOTHING)
        looks = bool(needs) or self.probe is not None
        slots = Slots.candidates(state) if looks else Slots.grid(state)
        predictor = prediction = attention_M = None
        if looks:
            predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
            law = Law.of(state, slots.row_M) if self.score_on == "sampling" and state.any_temperature else None
            prediction = predictor.summary(needs, law=law) if needs else None
        if self.probe is not None:
            attention_M = evaluate.attention(slots.row_M, slots.column_M)
        view = View(slots, allowed(slots, prediction, guard=guard), prediction, attention_M)
        choice = choose(view, self.position.score(view), self.count, position_temperature=self.position_temperature)
        if predictor is None:
            row_K, column_K = slots.row_M[choice.index_K], slots.column_M[choice.index_K]
            lots = Predictor(evaluate, row_K, column_K, chunk_bytes=self.chunk_bytes).lots()
        else:
            lots = predictor.lots(choice.index_K)
        temperature_M = self.position.temperature(view) if state.any_temperature else None
        commit = draw_tokens(slots, choice.index_K, lots, temperature_M=temperature_M)
        return replace(commit, position_logprob_R=choice.logprob_R)


def draw_tokens(
    slots: Slots,
    index_K: torch.Tensor,
    lots: Iterable[tuple[slice, torch.Tensor]],
    *,
    temperature_M: torch.Tensor | None = None,
) -> Commit:
    """Draw a token at each chosen slot from its own law, with the sequence's own random numbers.

    `lots` are the logits of the chosen slots, each with its place in `index_K`. `temperature_M` stands before the
    request's temperature at slots that are not greedy.
    """
    row_K = slots.row_M[index_K]
    if not slots.state.any_temperature:
        drawn = _joined([most_likely(logits_CV) for _, logits_CV in lots])
        return Commit(row_K, slots.column_M[index_K], *drawn)
    law, own_K = Law.of(slots.state, row_K), None
    if temperature_M is not None:
        own_K = torch.where(law.greedy(), 0.0, temperature_M[index_K])
        law = replace(law, temperature_K=own_K)
    uniform_K = slots.uniform(index_K, stream=TOKEN_STREAM)
    parts = []
    for lot, logits_CV in lots:
        token_C, logprob_C = draw(logits_CV, law.at(lot), uniform_K[lot])
        parts.append((token_C, logprob_C, entropy_of(logits_CV.softmax(dim=-1))))
    return Commit(row_K, slots.column_M[index_K], *_joined(parts), temperature_K=own_K)


Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Tokens, their log-probabilities, the entropies of their slots."""


def most_likely(logits_CV: torch.Tensor) -> Drawn:
    """What greedy slots take (the lowest id of equals), under the model's own law."""
    p_CV, token_C = logits_CV.softmax(dim=-1), logits_CV.argmax(dim=-1)
    return token_C, p_CV.gather(1, token_C[:, None])[:, 0].log(), entropy_of(p_CV)


def _joined(parts: list[Drawn]) -> Drawn:
    if len(parts) == 1:
        return parts[0]
    token_K, logprob_K, entropy_K = (torch.cat(part) for part in zip(*parts, strict=True))
    return token_K, logprob_K, entropy_K
