"""The rule of the dual cache, said slowly: one sequence, no batch, attention spelled out.

At the start of a block the whole canvas is computed, and every layer's keys (rotated) and values of all positions are
stored. That forward commits the block's first tokens. Until the block is done only its own tokens are computed; they
attend to their own fresh keys and values and to the stored ones of every other position, which stay as they are.
Greedy. N canvas positions, L computed positions, H heads, E channels of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.stock import Stock

Stored = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values (N, H, E) of each layer."""


@torch.no_grad()
def decode(
    stock: Stock,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    block_length: int,
    tokens_per_step: int = 1,
    threshold: float | None = None,
) -> list[int]:
    """Answer tokens (T). `threshold`: commit every slot whose probability reaches it, and the best in any case."""
    canvas = [*prompt, *[stock.mask_token_id] * max_new_tokens]
    for start in range(len(prompt), len(canvas), block_length):
        block = range(start, min(start + block_length, len(canvas)))
        logits_NV, stored = _forward(stock, canvas, range(len(canvas)), None)
        logits_LV = logits_NV[block.start : block.stop]
        while True:
            _commit(stock, canvas, block, logits_LV, tokens_per_step, threshold)
            if all(canvas[position] != stock.mask_token_id for position in block):
                break
            logits_LV, _ = _forward(stock, canvas, block, stored)
    return canvas[len(prompt) :]


def _commit(
    stock: Stock,
    canvas: list[int],
    block: range,
    logits_LV: torch.Tensor,
    tokens_per_step: int,
    threshold: float | None,
) -> None:
    logits_LV = logits_LV.float()
    logits_LV[:, stock.mask_token_id] = -torch.inf
    best = {}
    for position in block:
        if canvas[position] == stock.mask_token_id:
            probability_V = logits_LV[position - block.start].softmax(0)
            best[position] = (float(probability_V.max()), int(probability_V.argmax()))
    order = sorted(best, key=lambda position: (-best[position][0], position))
    number = tokens_per_step
    if threshold is not None:
        number = max(1, sum(confidence >= threshold for confidence, _ in best.values()))
    for position in order[:number]:
        canvas[position] = best[position][1]


def _forward(
    stock: Stock, canvas: Sequence[int], computed: range, stored: Stored | None
) -> tuple[torch.Tensor, Stored]:
    """Logits (L, V) of the computed positions and their keys and values, given those of the others."""
    model = stock.backbone.model
    token_L = torch.tensor([canvas[position] for position in computed])
    hidden_LD = model.embed_tokens(token_L)
    cos_1LE, sin_1LE = model.rotary_emb(hidden_LD, torch.tensor([[*computed]]))
    fresh: Stored = []
    for index, layer in enumerate(model.layers):
        attention, normed_LD = layer.self_attn, layer.input_layernorm(hidden_LD)
        query_LHE, key_LHE, value_LHE = (
            project(normed_LD).unflatten(-1, (-1, attention.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query_LHE, key_LHE = (_rotated(x, cos_1LE[0], sin_1LE[0]) for x in (query_LHE, key_LHE))
        fresh.append((key_LHE, value_LHE))
        key_NHE, value_NHE = key_LHE, value_LHE
        if stored is not None:
            key_NHE, value_NHE = (kept.clone() for kept in stored[index])
            key_NHE[computed.start : computed.stop] = key_LHE
            value_NHE[computed.start : computed.stop] = value_LHE
        weight_HLN = (torch.einsum("lhe,nhe->hln", query_LHE, key_NHE) * attention.scaling).softmax(-1)
        attended_LD = torch.einsum("hln,nhe->lhe", weight_HLN, value_NHE).flatten(1)
        hidden_LD = hidden_LD + attention.o_proj(attended_LD)
        hidden_LD = hidden_LD + layer.mlp(layer.post_attention_layernorm(hidden_LD))
    return stock.head(model.norm(hidden_LD)), fresh


def _rotated(x_LHE: torch.Tensor, cos_LE: torch.Tensor, sin_LE: torch.Tensor) -> torch.Tensor:
    first, second = x_LHE.chunk(2, dim=-1)
    return x_LHE * cos_LE[:, None] + torch.cat((-second, first), dim=-1) * sin_LE[:, None]
