"""Baseline: a batch that is formed once, as public decoders of bidirectional models do it; nobody joins, nobody leaves.

A lean one, so that a comparison shows the scheduling and little else: the stock forward of the whole canvas, the
vocabulary head at the masked slots of the active block only. Greedy low-confidence remasking, the same number of tokens
each step, so the rows never wait for each other inside a block; ends as in `planned_ends`.
B sequences, N canvas positions, P prompt tokens, L block length, M masked slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.stock import Stock


@dataclass(frozen=True)
class StaticAnswers:
    """What a batch gave."""

    token_BT: torch.Tensor
    num_forwards: int
    """Canvases computed: forwards of the batch times its rows."""


@torch.no_grad()
def decode(
    stock: Stock,
    prompt_BP: torch.Tensor,
    end_B: torch.Tensor,
    *,
    max_new_tokens: int,
    block_length: int,
    tokens_per_step: int,
    until_all_ended: bool,
) -> StaticAnswers:
    """Run to the cap, or until every row holds its end token with nothing masked before it."""
    if block_length % tokens_per_step:
        raise ValueError(f"tokens_per_step {tokens_per_step} must divide block_length {block_length}")
    num_rows, prompt_length = prompt_BP.shape
    canvas_BN = torch.full((num_rows, prompt_length + max_new_tokens), stock.mask_token_id)
    canvas_BN[:, :prompt_length] = prompt_BP
    num_steps = 0
    for start in range(prompt_length, canvas_BN.shape[1], block_length):
        stop = min(start + block_length, canvas_BN.shape[1])
        while bool((canvas_BN[:, start:stop] == stock.mask_token_id).any()):
            _step(stock, canvas_BN, start, stop, tokens_per_step, prompt_length + end_B)
            num_steps += 1
            if until_all_ended and _all_ended(stock, canvas_BN, prompt_length + end_B):
                return StaticAnswers(canvas_BN[:, prompt_length:], num_rows * num_steps)
    return StaticAnswers(canvas_BN[:, prompt_length:], num_rows * num_steps)


def _step(
    stock: Stock, canvas_BN: torch.Tensor, start: int, stop: int, tokens_per_step: int, end_position_B: torch.Tensor
) -> None:
    hidden_BND = stock.hidden(canvas_BN)
    masked_BL = canvas_BN[:, start:stop] == stock.mask_token_id
    logits_MV = stock.head(hidden_BND[:, start:stop][masked_BL]).float()
    logits_MV[:, stock.mask_token_id] = -torch.inf
    top_M, token_M = logits_MV.softmax(dim=-1).max(dim=-1)
    confidence_BL = torch.full(masked_BL.shape, -torch.inf)
    confidence_BL[masked_BL] = top_M
    token_BL = torch.zeros(masked_BL.shape, dtype=torch.int64)
    token_BL[masked_BL] = token_M
    # Of equals the leftmost: many probabilities round to 1.
    order_BL = confidence_BL.sort(dim=1, descending=True, stable=True).indices
    chosen_BK = order_BL[:, : min(tokens_per_step, int(masked_BL[0].sum()))]
    chosen_token_BK = token_BL.gather(1, chosen_BK)
    position_BK = start + chosen_BK
    is_end_BK = position_BK == end_position_B[:, None]
    canvas_BN.scatter_(1, position_BK, torch.where(is_end_BK, stock.eos_token_id, chosen_token_BK))


def _all_ended(stock: Stock, canvas_BN: torch.Tensor, end_position_B: torch.Tensor) -> bool:
    masked_BN = canvas_BN == stock.mask_token_id
    return all(
        end < canvas_BN.shape[1] and not bool(masked_BN[row, : end + 1].any())
        for row, end in enumerate(end_position_B.tolist())
    )
