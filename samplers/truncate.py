"""Top-k and nucleus without sorting the vocabulary.

Both keep the most likely tokens and break ties by the lower id: a set is given by the weight of its last token and by
how many tokens of exactly that weight belong to it. The nucleus finds that weight digit by digit, from the bits of the
float32 weights: non-negative floats are ordered like their bit patterns, so three passes of ten bits each, which sum
the mass per digit, stand for a sort.
K slots, V vocabulary.
"""

from __future__ import annotations

import torch

_DIGIT_BITS = 10
_DIGITS = 1 << _DIGIT_BITS
_SHIFTS = (20, 10, 0)
"""Probabilities are at most 1.0, bit pattern 0x3F800000, which has 30 bits."""


def top_k(logits_KV: torch.Tensor, top_k_K: torch.Tensor, *, largest: int) -> torch.Tensor:
    """Keep the top_k most likely tokens, ties by the lower id; the others become -inf. Rows with top_k = 0 keep all.

    `largest` is the largest of top_k_K.
    """
    largest = min(largest, logits_KV.shape[1])
    off_K1 = (top_k_K == 0)[:, None]
    number_K1 = top_k_K[:, None].clamp(1, largest)
    last_K1 = logits_KV.topk(largest, dim=-1).values.gather(1, number_K1 - 1)
    return logits_KV.masked_fill(~(off_K1 | _kept(logits_KV, last_K1, number_K1)), -torch.inf)


def nucleus(logits_KV: torch.Tensor, top_p_K: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches top_p, ties by the lower id; the others become
    -inf. The most likely token always stays. Rows with top_p = 1 keep all.
    """
    p_KV = logits_KV.softmax(dim=-1)
    last_K1, number_K1 = _nucleus_edge(p_KV, top_p_K[:, None].to(torch.float64))
    return logits_KV.masked_fill(~((top_p_K >= 1)[:, None] | _kept(p_KV, last_K1, number_K1)), -torch.inf)


def _kept(weight_KV: torch.Tensor, last_K1: torch.Tensor, number_K1: torch.Tensor) -> torch.Tensor:
    """bool (K, V): weights above `last`, and the first of those equal to it until `number` are kept."""
    above_KV, equal_KV = weight_KV > last_K1, weight_KV == last_K1
    room_K1 = number_K1 - above_KV.sum(dim=-1, keepdim=True)
    return above_KV | (equal_KV & (equal_KV.cumsum(dim=-1) <= room_K1))


def _nucleus_edge(p_KV: torch.Tensor, top_p_K1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of the last token kept, and the number of tokens kept."""
    bits_KV, mass_KV = p_KV.view(torch.int32), p_KV.to(torch.float64)
    target_K1 = top_p_K1 * mass_KV.sum(dim=-1, keepdim=True)
    prefix_K1 = torch.zeros_like(target_K1, dtype=torch.int32)
    above_K1 = torch.zeros_like(target_K1)
    for shift in _SHIFTS:
        inside_KV = (bits_KV >> (shift + _DIGIT_BITS)) == prefix_K1
        # Digits counted from the top, so that a running sum goes from likely to unlikely tokens.
        digit_KV = ((_DIGITS - 1) - ((bits_KV >> shift) & (_DIGITS - 1))).to(torch.int64)
        share_KD = mass_KV.new_zeros(len(p_KV), _DIGITS).scatter_add_(1, digit_KV, mass_KV * inside_KV)
        running_KD = share_KD.cumsum(dim=-1)
        # The last digit that adds mass is reached whatever the rounding of the sums.
        reached_KD = (above_K1 + running_KD >= target_K1) | (running_KD >= running_KD[:, -1:])
        digit_K1 = reached_KD.to(torch.uint8).argmax(dim=-1, keepdim=True)
        above_K1 = above_K1 + torch.where(digit_K1 > 0, running_KD.gather(1, (digit_K1 - 1).clamp(min=0)), 0.0)
        prefix_K1 = (prefix_K1 << _DIGIT_BITS) | ((_DIGITS - 1) - digit_K1).to(torch.int32)
    last_K1 = prefix_K1.view(torch.float32)
    ties_K1 = ((target_K1 - above_K1) / last_K1).ceil().clamp(min=1)
    return last_K1, (p_KV > last_K1).sum(dim=-1, keepdim=True) + ties_K1
