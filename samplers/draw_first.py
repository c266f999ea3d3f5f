"""Low-confidence remasking, `lcr`: draw at every masked slot first, keep the most confident draws.

This is the sampler shipped with LLaDA (`low_confidence`) and Dream (`maskgit_plus`). At temperature above 0 the
position of a commit depends on the tokens drawn, so a commit's density contains the competition with all other slots
and no cheap likelihood exists: it serves as a baseline and is refused by exact estimators. At temperature 0 it equals
`confidence`.
M masked candidates, C of them in one lot, K committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.choice import allowed, choose
from samplers.count import CountRule
from samplers.draw import Law, draw
from samplers.prediction import CHUNK_BYTES, Need, Prediction, Predictor, entropy_of, summarise
from samplers.randomness import TOKEN_STREAM
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec
from samplers.sampler import ScoreOn
from samplers.view import Slots, View


@dataclass(frozen=True)
class DrawFirst:
    """Score of a slot: the probability of the token drawn there.

    The how-many rule judges the drawn tokens too, as the published sampler does.
    """

    name: str
    count: CountRule
    eos_guard: bool | None = None
    score_on: ScoreOn = "model"
    """`model`: the untempered probability (LLaDA); `sampling`: that under the law drawn from (Dream)."""
    chunk_bytes: int = CHUNK_BYTES

    exact_likelihood = False
    inexact_because = "draws tokens before it chooses positions"
    probe: ProbeSpec | None = None
    memory = ()

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Draw everywhere, commit the draws of highest probability."""
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        needs = (self.count.needs & Need.ENTROPY) | (Need.TOP_TOKEN if guard else Need.NOTHING)
        slots = Slots.candidates(state)
        predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
        law, uniform_M = Law.of(state, slots.row_M), slots.uniform(stream=TOKEN_STREAM)
        tokens, logprobs, predictions = [], [], []
        for lot, logits_CV in predictor.lots():
            token_C, logprob_C = draw(logits_CV, law.at(lot), uniform_M[lot])
            judged = summarise(logits_CV, needs, given_token_M=token_C)
            score_C = judged.given_prob_M if self.score_on == "model" else logprob_C.exp()
            assert score_C is not None
            tokens.append(token_C)
            logprobs.append(logprob_C)
            predictions.append(replace(judged, top_prob_M=score_C))
        prediction = Prediction.joined(predictions)
        view = View(slots, allowed(slots, prediction, guard=guard), prediction)
        index_K = choose(view, prediction.top_prob_M, self.count).index_K
        entropy_K = torch.cat([entropy_of(logits.softmax(dim=-1)) for _, logits in predictor.lots(index_K)])
        return Commit(
            slots.row_M[index_K],
            slots.column_M[index_K],
            torch.cat(tokens)[index_K],
            torch.cat(logprobs)[index_K],
            entropy_K,
        )
