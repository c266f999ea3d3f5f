"""What position and how-many rules may ask about the model's prediction at a masked slot.

M masked slots, V vocabulary. Everything is float32 and about the untempered law p = softmax(logits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.records import Evaluate


@dataclass(frozen=True, slots=True)
class Prediction:
    """Summary of p at M slots; a field that nobody asked for is None."""

    top_token_M: torch.Tensor
    top_prob_M: torch.Tensor
    second_prob_M: torch.Tensor | None
    entropy_M: torch.Tensor | None


def entropy_of(logits_MV: torch.Tensor) -> torch.Tensor:
    """Entropy in nats; a logit of -inf contributes nothing."""
    log_p_MV = torch.log_softmax(logits_MV, dim=-1)
    return -torch.where(log_p_MV == -torch.inf, 0.0, log_p_MV.exp() * log_p_MV).sum(dim=-1)


def summarise(logits_MV: torch.Tensor, *, second: bool = False, entropy: bool = False) -> Prediction:
    """Reduce logits (M, V) to what the rules need, in as few passes as that takes."""
    if second:
        top_MK, index_MK = logits_MV.topk(2, dim=-1)
        top_M, second_M, token_M = top_MK[:, 0], top_MK[:, 1], index_MK[:, 0]
        # topk does not promise the lowest index among equals; argmax does on the processors we run on.
        token_M = torch.where(top_M == second_M, logits_MV.argmax(dim=-1), token_M)
    else:
        top_M, token_M = logits_MV.max(dim=-1)
        second_M = None
    log_z_M = logits_MV.logsumexp(dim=-1)
    return Prediction(
        top_token_M=token_M,
        top_prob_M=(top_M - log_z_M).exp(),
        second_prob_M=None if second_M is None else (second_M - log_z_M).exp(),
        entropy_M=entropy_of(logits_MV) if entropy else None,
    )


class Predictor:
    """Evaluate M slots in chunks of bounded size and keep the logits where they fit.

    The vocabulary head at many slots is the largest tensor of decoding, so it never exists beyond `chunk_bytes`; slots
    that are looked at again (to draw a token) are evaluated a second time, which costs one head row each.
    """

    def __init__(self, evaluate: Evaluate, row_M: torch.Tensor, column_M: torch.Tensor, *, chunk_bytes: int) -> None:
        self._evaluate = evaluate
        self.row_M, self.column_M = row_M, column_M
        self._chunk_bytes = chunk_bytes
        self._kept: torch.Tensor | None = None

    def logits(self, index_K: torch.Tensor) -> torch.Tensor:
        """Logits (K, V) of some of the slots."""
        if self._kept is not None:
            return self._kept[index_K]
        return self._evaluate(self.row_M[index_K], self.column_M[index_K])

    def summary(self, *, second: bool, entropy: bool) -> Prediction:
        """Summarise all M slots."""
        chunk = max(1, self._chunk_bytes // (4 * self._evaluate.vocab_size))
        if len(self.row_M) <= chunk:
            self._kept = self._evaluate(self.row_M, self.column_M)
            return summarise(self._kept, second=second, entropy=entropy)
        parts = [
            summarise(self._evaluate(row_C, column_C), second=second, entropy=entropy)
            for row_C, column_C in zip(self.row_M.split(chunk), self.column_M.split(chunk), strict=True)
        ]
        return Prediction(
            top_token_M=torch.cat([part.top_token_M for part in parts]),
            top_prob_M=torch.cat([part.top_prob_M for part in parts]),
            second_prob_M=_cat([part.second_prob_M for part in parts]),
            entropy_M=_cat([part.entropy_M for part in parts]),
        )


def _cat(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
