"""What position and how-many rules may ask about the model's prediction at a masked slot.

M slots, V vocabulary, D width. Everything is float32 and, unless a law is given, about p = softmax(logits).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Flag, auto

import torch

from samplers.draw import Law, lots_in_cache
from samplers.records import Evaluate

CHUNK_BYTES = 64 * 2**20
_LOWEST = -1e30


class Need(Flag):
    """What a rule wants to know of each slot's prediction; what nobody needs is not computed."""

    NOTHING = 0
    TOP_PROB = auto()
    """max_v p(v); comes with every other wish."""
    TOP_TOKEN = auto()
    """Its token, the lowest id of equals."""
    SECOND_PROB = auto()
    """The second highest probability."""
    ENTROPY = auto()
    """Entropy in nats."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Summary of p at M slots; what nobody asked for is None."""

    top_prob_M: torch.Tensor
    top_token_M: torch.Tensor | None = None
    """The lowest id of equals."""
    second_prob_M: torch.Tensor | None = None
    entropy_M: torch.Tensor | None = None
    given_prob_M: torch.Tensor | None = None
    """Probability of tokens named by the caller."""

    @staticmethod
    def joined(parts: list[Prediction]) -> Prediction:
        """One prediction of several lots of slots."""
        if len(parts) == 1:
            return parts[0]
        lots = {item.name: [getattr(part, item.name) for part in parts] for item in fields(Prediction)}
        return Prediction(**{name: torch.cat(lot) for name, lot in lots.items() if lot[0] is not None})


def entropy_of(p_MV: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of probabilities; 0 log 0 is 0."""
    entropy_M: torch.Tensor = torch.special.entr(p_MV).sum(dim=-1)
    return entropy_M


def summarise(
    logits_MV: torch.Tensor, needs: Need, *, law: Law | None = None, given_token_M: torch.Tensor | None = None
) -> Prediction:
    """Reduce logits (M, V) to what the rules need."""
    parts = []
    for lot in lots_in_cache(logits_MV):
        law_C = None if law is None else law.at(lot)
        given_C = None if given_token_M is None else given_token_M[lot]
        parts.append(_summarise(logits_MV[lot], needs, law_C, given_C))
    return Prediction.joined(parts)


def _summarise(logits_CV: torch.Tensor, needs: Need, law: Law | None, given_C: torch.Tensor | None) -> Prediction:
    token_C = logits_CV.argmax(dim=-1) if needs & (Need.TOP_TOKEN | Need.SECOND_PROB) else None
    if law is not None:
        logits_CV = law.apply(logits_CV)
    if needs & Need.ENTROPY:
        # Bounded below, so that 0 * log 0 is 0 in the product of the entropy.
        logits_CV = (logits_CV - logits_CV.amax(dim=-1, keepdim=True)).clamp_(min=_LOWEST)
    p_CV = logits_CV.softmax(dim=-1)
    top_C = p_CV.amax(dim=-1)
    entropy_C = second_C = None
    if needs & Need.ENTROPY:
        # log p = logits + log top, for the largest logit is 0 here.
        entropy_C = (-top_C.log() - torch.linalg.vecdot(p_CV, logits_CV)).clamp_(min=0)
    given_prob_C = None if given_C is None else p_CV.gather(1, given_C[:, None])[:, 0]
    if needs & Need.SECOND_PROB:
        assert token_C is not None
        second_C = p_CV.scatter_(1, token_C[:, None], -1.0).amax(dim=-1)
    return Prediction(top_C, token_C, second_C, entropy_C, given_prob_C)


class Predictor:
    """The prediction at M slots, in lots of bounded size.

    The vocabulary head at many slots is the largest tensor of decoding, so it never exists beyond `chunk_bytes`. Logits
    that fit are kept; otherwise a slot that is looked at again (to draw a token) costs its head row a second time.
    """

    def __init__(
        self, evaluate: Evaluate, row_M: torch.Tensor, column_M: torch.Tensor, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._evaluate = evaluate
        self.hidden_MD = evaluate.hidden(row_M, column_M)
        """The slots' final hidden states."""
        self._chunk = max(1, chunk_bytes // (4 * evaluate.vocab_size))
        self._kept_MV: torch.Tensor | None = None

    def lots(self, index_K: torch.Tensor | None = None) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some of the slots (all of them if None) in lots that fit: where in `index_K`, and logits (C, V).

        Kept logits are handed out as they are: they must not be changed.
        """
        number = len(self.hidden_MD) if index_K is None else len(index_K)
        if index_K is None and number <= self._chunk:
            if self._kept_MV is None:
                self._kept_MV = self._evaluate.logits(self.hidden_MD)
            yield slice(0, number), self._kept_MV
            return
        for start in range(0, number, self._chunk):
            lot = slice(start, min(start + self._chunk, number))
            index = lot if index_K is None else index_K[lot]
            kept = self._kept_MV
            yield lot, self._evaluate.logits(self.hidden_MD[index]) if kept is None else kept[index]

    def summary(self, needs: Need, *, law: Law | None = None, given_token_M: torch.Tensor | None = None) -> Prediction:
        """Summarise all M slots, under a law other than the model's if one is given."""
        return Prediction.joined(
            [
                summarise(
                    logits_CV,
                    needs,
                    law=None if law is None else law.at(lot),
                    given_token_M=None if given_token_M is None else given_token_M[lot],
                )
                for lot, logits_CV in self.lots()
            ]
        )
