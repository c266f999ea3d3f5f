"""The vocabulary head as a module that scores tokens chunk by chunk, its gradient worked out in the same loop.

One call of the module turns hidden states into log-probabilities. While a chunk's law p is at hand, so is the slope

    d log p(token) / d logits = (onehot(token) - p) / temperature

and with it the gradient of the hidden state: two matrix products, nothing computed again. The weight's own gradient
needs the slopes once more, multiplied by what comes from above: they are kept up to a few chunks' memory, and those of
further chunks are computed again. With a frozen head none are. One call, however many chunks, is also what ZeRO-3
needs: it gathers the weight when the module is called, which has to happen equally often on all ranks.

M positions, m positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

KEPT_CHUNKS = 4
"""Slopes kept for the gradient of the weight, in chunks; in the weight's precision, so 8 chunks of bfloat16."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What to score, and within which memory."""

    token_M: torch.Tensor
    mask_token_id: int
    """Never a candidate."""
    temperature: float
    chunk_bytes: int
    """Size of one chunk's logits; about four tensors of this size live at once."""
    wants_gradient: bool


class VocabularyHead(nn.Linear):
    """The stock head with the same weight, which can be called for scores instead of logits."""

    @staticmethod
    def around(head: nn.Linear) -> VocabularyHead:
        """The same parameter objects in this class."""
        made = VocabularyHead(head.in_features, head.out_features, bias=False, device="meta")
        made.weight, made.bias = head.weight, head.bias
        return made.train(head.training)

    def forward(self, input: torch.Tensor, scoring: Scoring | None = None) -> Any:
        """Logits; with `scoring`, (log-probability, entropy) of each position, see `models.head.token_logprobs`."""
        if scoring is None:
            return super().forward(input)
        return _Scores.apply(input, self.weight, self.bias, scoring)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, scoring: Scoring
    ) -> tuple[torch.Tensor, torch.Tensor]:
        to_hidden, to_weight = (scoring.wants_gradient and needed for needed in ctx.needs_input_grad[:2])
        to_bias = scoring.wants_gradient and bias_V is not None and ctx.needs_input_grad[2]
        parts = chunks(len(hidden_MD), len(weight_VD), scoring.chunk_bytes)
        row_bytes = len(weight_VD) * weight_VD.element_size()
        num_kept = KEPT_CHUNKS * scoring.chunk_bytes // row_bytes if to_weight or to_bias else 0
        scored, gradients, kept = [], [], []
        for part in parts:
            logits_mV = _logits(hidden_MD[part], weight_VD, bias_V)
            logprob_m, entropy_m, slope_mV = _score(
                logits_mV, scoring.token_M[part], scoring, wants_slope=to_hidden or num_kept >= part.stop
            )
            scored.append((logprob_m, entropy_m))
            if slope_mV is not None:
                slope_mV = slope_mV.to(weight_VD.dtype)
                if to_hidden:
                    gradients.append(slope_mV @ weight_VD)
                if num_kept >= part.stop:
                    kept.append(slope_mV)
        logprob_M, entropy_M = (torch.cat(found) for found in zip(*scored, strict=True))
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, *kept)
        ctx.gradient_MD = torch.cat(gradients) if to_hidden else None
        ctx.scoring, ctx.parts, ctx.num_slopes = scoring, parts, len(kept)
        ctx.mark_non_differentiable(entropy_M)
        return logprob_M, entropy_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upper_M: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_MD, weight_VD, bias_V, *kept = ctx.saved_tensors
        upper_M1 = (upper_M / ctx.scoring.temperature)[:, None]
        to_hidden = ctx.gradient_MD
        if to_hidden is not None:
            to_hidden = (to_hidden * upper_M1).to(hidden_MD.dtype)
        to_weight = _Sum(weight_VD, len(ctx.parts)) if ctx.needs_input_grad[1] else None
        to_bias = None if bias_V is None or not ctx.needs_input_grad[2] else _Sum(bias_V, len(ctx.parts))
        if to_weight is not None or to_bias is not None:
            for index, part in enumerate(ctx.parts):
                if index < ctx.num_slopes:
                    slope_mV = kept[index]
                else:
                    logits_mV = _logits(hidden_MD[part], weight_VD, bias_V)
                    _, _, slope_mV = _score(logits_mV, ctx.scoring.token_M[part], ctx.scoring, wants_slope=True)
                    assert slope_mV is not None
                    slope_mV = slope_mV.to(weight_VD.dtype)
                if to_weight is not None:
                    to_weight.add(slope_mV.t() @ (hidden_MD[part] * upper_M1[part]).to(weight_VD.dtype))
                if to_bias is not None:
                    to_bias.add((slope_mV * upper_M1[part]).sum(dim=0))
        return (
            to_hidden,
            None if to_weight is None else to_weight.total(),
            None if to_bias is None else to_bias.total(),
            None,
        )


class _Sum:
    """Adds chunks' gradients of one parameter up, in float32 where there are several and the parameter has less."""

    def __init__(self, parameter: torch.Tensor, num_terms: int) -> None:
        self._dtype = parameter.dtype
        self._added = parameter.dtype if num_terms == 1 else torch.promote_types(parameter.dtype, torch.float32)
        self._total: torch.Tensor | None = None

    def add(self, term: torch.Tensor) -> None:
        self._total = term.to(self._added) if self._total is None else self._total.add_(term)

    def total(self) -> torch.Tensor:
        assert self._total is not None
        return self._total.to(self._dtype)


def chunks(num_positions: int, vocab_size: int, chunk_bytes: int) -> list[slice]:
    """Positions in chunks whose float32 logits take at most `chunk_bytes`, at least one position each."""
    size = max(1, chunk_bytes // (4 * vocab_size))
    return [slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size)]


def _logits(hidden_mD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
    """In float32, or in float64 for a float64 model."""
    logits_mV = nn.functional.linear(hidden_mD, weight_VD, bias_V)
    return logits_mV.to(torch.promote_types(logits_mV.dtype, torch.float32))


def _score(
    logits_mV: torch.Tensor, token_m: torch.Tensor, scoring: Scoring, *, wants_slope: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probability, entropy of the untempered law, and onehot - p; overwrites the logits."""
    token_m1 = token_m[:, None]
    logits_mV[:, scoring.mask_token_id] = -torch.inf
    log_law_mV = logits_mV.log_softmax(dim=1)
    law_mV = log_law_mV.exp()
    if scoring.temperature != 1.0:
        tempered_mV = logits_mV.div_(scoring.temperature).log_softmax(dim=1)
        logprob_m = tempered_mV.gather(1, token_m1)[:, 0]
    else:
        tempered_mV, logprob_m = log_law_mV, log_law_mV.gather(1, token_m1)[:, 0]
    log_law_mV[:, scoring.mask_token_id] = 0.0  # 0 log 0 is 0
    entropy_m = -torch.linalg.vecdot(law_mV, log_law_mV)
    if not wants_slope:
        return logprob_m, entropy_m, None
    slope_mV = (law_mV if tempered_mV is log_law_mV else tempered_mV.exp_()).neg_()
    slope_mV.scatter_add_(1, token_m1, torch.ones_like(slope_mV[:, :1]))
    return logprob_m, entropy_m, slope_mV
