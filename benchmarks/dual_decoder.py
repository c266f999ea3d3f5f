"""Baseline: block decoding with a dual cache, with the cost profile of the published Fast-dLLM decoder for LLaDA.

At the start of a block one forward of the whole canvas fills the cache and commits the block's first tokens. Until the
block is done only its own tokens are computed; they overwrite their places in the cache and attend to all of it.
What the released decoder pays and this one therefore pays too: keys are kept as they were before the rotary embedding,
which is done again over all keys in each layer and step; each layer looks up where the block lies and writes the cache
row by row; norms and rotary embedding run in regions without autocast, and dropout of 0 is called after the embedding
and after both halves of a layer; the head runs at every computed position, the softmax is in float64; positions are
picked row by row and candidate by candidate. Several sequences (of one prompt length) go block by block: a block ends
when all rows are done.

One thing differs: the mask token is never drawn.
B sequences, N canvas positions, L computed positions, H heads, E channels of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.plain_decoder import gumbel_argmax
from benchmarks.stock import Stock


@dataclass
class _Kept:
    """Keys and values of one layer, (B, H, N, E), keys not rotated."""

    key: torch.Tensor
    value: torch.Tensor


class _CachedStack:
    """The layers with a cache of keys and values, over the stock modules."""

    def __init__(self, stock: Stock, num_positions: int) -> None:
        self.stock = stock
        self.kept: list[_Kept] = []
        self.dropout = torch.nn.Dropout(0.0).eval()
        position_1N = torch.arange(num_positions, device=stock.backbone.device)[None]
        cos_1NE, sin_1NE = stock.backbone.model.rotary_emb(stock.backbone.lm_head.weight, position_1N)
        self.cos_11NE: torch.Tensor = cos_1NE[:, None]
        self.sin_11NE: torch.Tensor = sin_1NE[:, None]

    def logits(self, token_BL: torch.Tensor, replace_BN: torch.Tensor | None) -> torch.Tensor:
        """Logits (B, L, V); `replace_BN` says which places of the cache the tokens take, None starts a new cache."""
        model: Any = self.stock.backbone.model
        if replace_BN is None:
            self.kept = []
        hidden_BLD = self.dropout(model.embed_tokens(token_BL))
        for index, layer in enumerate(model.layers):
            normed_BLD = self._norm(layer.input_layernorm, hidden_BLD)
            hidden_BLD = hidden_BLD + self.dropout(self._attention(layer.self_attn, index, normed_BLD, replace_BN))
            normed_BLD = self._norm(layer.post_attention_layernorm, hidden_BLD)
            hidden_BLD = hidden_BLD + self.dropout(layer.mlp(normed_BLD))
        return self.stock.head(self._norm(model.norm, hidden_BLD))

    def _norm(self, module: Any, hidden_BLD: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_BLD.device.type, enabled=False):
            normed_BLD: torch.Tensor = module(hidden_BLD)
        return normed_BLD

    def _attention(
        self, module: Any, index: int, hidden_BLD: torch.Tensor, replace_BN: torch.Tensor | None
    ) -> torch.Tensor:
        shape = (*hidden_BLD.shape[:2], -1, module.head_dim)
        query, key, value = (
            project(hidden_BLD).view(shape).transpose(1, 2) for project in (module.q_proj, module.k_proj, module.v_proj)
        )
        end = key.shape[2]
        if replace_BN is None:
            self.kept.append(_Kept(key, value))
        else:
            kept = self.kept[index]
            for row in range(len(replace_BN)):
                place_L = replace_BN[row].nonzero(as_tuple=True)[0]
                kept.key[row, :, place_L] = key[row]
                kept.value[row, :, place_L] = value[row]
            key, value = kept.key, kept.value
            end = int(replace_BN.nonzero(as_tuple=True)[1].max()) + 1
        with torch.autocast(query.device.type, enabled=False):
            query = self._rotate(query, end - query.shape[2], end)
            key = self._rotate(key, 0, key.shape[2])
        output = scaled_dot_product_attention(query, key, value)
        attended_BLD: torch.Tensor = module.o_proj(output.transpose(1, 2).reshape(*hidden_BLD.shape[:2], -1))
        return attended_BLD

    def _rotate(self, x_BHLE: torch.Tensor, start: int, end: int) -> torch.Tensor:
        first, second = x_BHLE.float().chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        cos, sin = self.cos_11NE[:, :, start:end].float(), self.sin_11NE[:, :, start:end].float()
        rotated_BHLE: torch.Tensor = x_BHLE.float() * cos + turned * sin
        return rotated_BHLE.to(x_BHLE.dtype)


def _commit(
    canvas_BL: torch.Tensor,
    logits_BLV: torch.Tensor,
    masked_BL: torch.Tensor,
    rule: tuple[int | None, float | None],
    temperature: float,
    generator: torch.Generator,
) -> None:
    """Write a step's tokens: the most confident, or all above a threshold and the most confident in any case."""
    tokens_per_step, threshold = rule
    token_BL = gumbel_argmax(logits_BLV, temperature, generator)
    confidence_BL = logits_BLV.to(torch.float64).softmax(dim=-1).gather(-1, token_BL[..., None])[..., 0]
    confidence_BL = torch.where(masked_BL, confidence_BL, -torch.inf)
    for row in range(len(canvas_BL)):
        number = int(masked_BL[row].sum())
        number = number if tokens_per_step is None else min(number, tokens_per_step)
        if not number:
            continue
        best = confidence_BL[row].topk(number)
        for rank in range(number):
            if rank == 0 or threshold is None or bool(best.values[rank] >= threshold):
                canvas_BL[row, best.indices[rank]] = token_BL[row, best.indices[rank]]


@torch.no_grad()
def decode(
    stock: Stock,
    prompt_BP: torch.Tensor,
    *,
    max_new_tokens: int,
    block_length: int,
    tokens_per_step: int | None = None,
    threshold: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Answer tokens (B, T) of prompts of one length; give `tokens_per_step` or `threshold`."""
    generator = torch.Generator().manual_seed(seed)
    rule = (tokens_per_step, threshold)
    mask_id, (num_rows, prompt_length) = stock.mask_token_id, prompt_BP.shape
    canvas_BN = torch.full((num_rows, prompt_length + max_new_tokens), mask_id)
    canvas_BN[:, :prompt_length] = prompt_BP
    stack = _CachedStack(stock, canvas_BN.shape[1])
    for start in range(prompt_length, canvas_BN.shape[1], block_length):
        block = slice(start, min(start + block_length, canvas_BN.shape[1]))
        replace_BN = torch.zeros_like(canvas_BN, dtype=torch.bool)
        replace_BN[:, block] = True
        logits_BNV = stack.logits(canvas_BN, None)
        logits_BNV[..., mask_id] = -torch.inf
        masked_BN = (canvas_BN == mask_id) & replace_BN
        _commit(canvas_BN, logits_BNV, masked_BN, rule, temperature, generator)
        while bool((canvas_BN[:, block] == mask_id).any()):
            logits_BLV = stack.logits(canvas_BN[:, block], replace_BN)
            logits_BLV[..., mask_id] = -torch.inf
            part_BL = canvas_BN[:, block]
            _commit(part_BL, logits_BLV, part_BL == mask_id, rule, temperature, generator)
    return canvas_BN[:, prompt_length:]
