"""Baseline: a masked-diffusion decoder with the cost profile of the published LLaDA sampler.

Every step runs the whole canvas through the model and the vocabulary head, draws at every position by float64 Gumbel
noise, takes a softmax over the whole canvas, and picks positions row by row. Low-confidence remasking, prompts of equal
length, no early end. It is here to be compared with, so it keeps these costs on purpose.
B sequences, N canvas positions, P prompt tokens, T response slots, V vocabulary.
"""

from __future__ import annotations

import torch

from benchmarks.stock import Stock


def gumbel_argmax(logits_BNV: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Draw from softmax(logits / temperature) by the maximum of exp(logits) / (-log u)^temperature, in float64."""
    if temperature == 0:
        return logits_BNV.argmax(dim=-1)
    logits_BNV = logits_BNV.to(torch.float64)
    u_BNV = torch.rand(logits_BNV.shape, dtype=torch.float64, generator=generator)
    return (logits_BNV.exp() / (-u_BNV.log()) ** temperature).argmax(dim=-1)


@torch.no_grad()
def decode(
    stock: Stock,
    prompt_BP: torch.Tensor,
    *,
    max_new_tokens: int,
    steps: int,
    block_length: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Answer tokens (B, T) of prompts of one length."""
    generator = torch.Generator().manual_seed(seed)
    mask_id, (num_rows, prompt_length) = stock.mask_token_id, prompt_BP.shape
    canvas_BN = torch.full((num_rows, prompt_length + max_new_tokens), mask_id)
    canvas_BN[:, :prompt_length] = prompt_BP
    num_blocks = max_new_tokens // block_length
    steps_per_block = steps // num_blocks
    for block in range(num_blocks):
        start = prompt_length + block * block_length
        for step in range(steps_per_block):
            masked_BN = canvas_BN == mask_id
            logits_BNV = stock.logits(canvas_BN)
            logits_BNV[..., mask_id] = -torch.inf
            token_BN = gumbel_argmax(logits_BNV, temperature, generator)
            confidence_BN = logits_BNV.softmax(dim=-1).gather(-1, token_BN[..., None])[..., 0]
            confidence_BN = torch.where(masked_BN, confidence_BN, -torch.inf)
            confidence_BN[:, start + block_length :] = -torch.inf
            number = block_length // steps_per_block + (step < block_length % steps_per_block)
            for row in range(num_rows):
                chosen = confidence_BN[row].topk(number).indices
                canvas_BN[row, chosen] = token_BN[row, chosen]
    return canvas_BN[:, prompt_length:]
