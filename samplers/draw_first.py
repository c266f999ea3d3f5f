"""Low-confidence remasking, `lcr`: draw at every masked slot first, keep the most confident draws.

This is the sampler shipped with LLaDA (`low_confidence`) and Dream (`maskgit_plus`). At temperature above 0 the
position of a commit depends on the tokens drawn, so a commit's density contains the competition with all other slots
and no cheap likelihood exists: it serves as a baseline and is refused by exact estimators. At temperature 0 it equals
`confidence`.
M masked candidates, K committed slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.count import CountRule
from samplers.prediction import Prediction, Predictor, entropy_of, summarise
from samplers.records import BlockState, Commit, Evaluate
from samplers.sampler import CHUNK_BYTES, Slots, choose, draw_at


@dataclass(frozen=True)
class DrawFirst:
    """Score of a slot: the untempered probability of the token drawn there."""

    name: str
    count: CountRule
    eos_guard: bool | None = None
    chunk_bytes: int = CHUNK_BYTES

    exact_likelihood = False

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Draw everywhere, commit the draws of highest probability."""
        slots = Slots.of(state)
        predictor = Predictor(evaluate, slots.row_M, slots.column_M, chunk_bytes=self.chunk_bytes)
        chunk = max(1, self.chunk_bytes // (4 * evaluate.vocab_size))
        parts = [
            self._draw(state, slots, index_C, predictor.logits(index_C))
            for index_C in torch.arange(len(slots.row_M), device=slots.row_M.device).split(chunk)
        ]
        drawn = Commit(*(torch.cat([getattr(part, name) for part, _, _ in parts]) for name in Commit.__slots__))
        score_M = torch.cat([prob_C for _, prob_C, _ in parts])
        top_M = torch.cat([prediction.top_token_M for _, _, prediction in parts])
        guard = state.whole_response if self.eos_guard is None else self.eos_guard
        # The how-many rule judges the drawn tokens, as the published sampler does.
        judged = Prediction(top_token_M=top_M, top_prob_M=score_M, second_prob_M=None, entropy_M=None)
        index_K = choose(state, slots, score_M, judged, self.count, guard=guard)
        return replace(drawn, **{name: getattr(drawn, name)[index_K] for name in Commit.__slots__})

    def _draw(
        self, state: BlockState, slots: Slots, index_C: torch.Tensor, logits_CV: torch.Tensor
    ) -> tuple[Commit, torch.Tensor, Prediction]:
        token_C, logprob_C = draw_at(state, slots, index_C, logits_CV)
        prob_C = (logits_CV.gather(1, token_C[:, None])[:, 0] - logits_CV.logsumexp(dim=-1)).exp()
        commit = Commit(slots.row_M[index_C], slots.column_M[index_C], token_C, logprob_C, entropy_of(logits_CV))
        return commit, prob_C, summarise(logits_CV)
