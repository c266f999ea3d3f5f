"""Fused attention, with a backward pass for processors on which the fused one is slow.

torch's fused attention for CPUs takes two to four times as long backward in bfloat16 as the matrix products that it
consists of. There the backward pass computes the probabilities again, a few spans at a time so that they stay in the
cache of the processor, and uses plain products. Values are those of the fused kernel everywhere.

S spans, H heads, Q queries, K keys, E channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

SCORES_AT_ONCE = 2**19
"""Scores (heads x queries x keys) of the spans that the plain backward pass takes together."""


def attention(
    query_SHQE: torch.Tensor,
    key_SHKE: torch.Tensor,
    value_SHKE: torch.Tensor,
    mask_11QK: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """(S, H, Q, E); the mask is bool, True = may attend, and shared by spans and heads."""
    is_slow_backward = query_SHQE.device.type == "cpu" and query_SHQE.dtype == torch.bfloat16
    if is_slow_backward and torch.is_grad_enabled():
        output: torch.Tensor = _PlainBackward.apply(query_SHQE, key_SHKE, value_SHKE, mask_11QK, scaling)
        return output
    return scaled_dot_product_attention(query_SHQE, key_SHKE, value_SHKE, attn_mask=mask_11QK, scale=scaling)


class _PlainBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = scaling
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        num_spans, heads, queries, _ = query.shape
        forbidden = None if mask is None else ~mask
        found = [_like_linear(x) for x in (query, key, value)]
        at_once = max(1, SCORES_AT_ONCE // (heads * queries * key.shape[2]))
        for start in range(0, num_spans, at_once):
            part = slice(start, start + at_once)
            of_part = _gradients(query[part], key[part], value[part], upper[part], forbidden, ctx.scaling)
            for whole, gradient in zip(found, of_part, strict=True):
                whole[part] = gradient
        return *found, None, None


def _like_linear(x_SHNE: torch.Tensor) -> torch.Tensor:
    """Empty, in the memory order (S, N, H, E) of a linear layer's result, which then needs no copy."""
    spans, heads, tokens, channels = x_SHNE.shape
    return x_SHNE.new_empty(spans, tokens, heads, channels).transpose(1, 2)


def _gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    upper: torch.Tensor,
    forbidden: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of queries, keys and values; softmax sums in float32, results in the inputs' precision."""
    score = (query @ key.transpose(-1, -2)).mul_(scaling)
    if forbidden is not None:
        score.masked_fill_(forbidden, -torch.inf)
    law = score.softmax(dim=-1)
    to_law = upper @ value.transpose(-1, -2)
    to_score = torch._softmax_backward_data(to_law, law, -1, law.dtype).mul_(scaling)
    return to_score @ key, to_score.transpose(-1, -2) @ query, law.transpose(-1, -2) @ upper
