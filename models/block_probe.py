"""Attention sums over the active blocks of a packed forward, without an attention matrix.

What guided samplers rank slots by, with Abar the softmax over all visible keys, averaged over heads and chosen layers:

    column   c_j = sum over i in the block's masked slots, i != j, of Abar[i, j]    how much slot j is looked at
    row      S_i = sum over k visible and not masked of Abar[i, k]              how much slot i looks at known tokens

The fused kernel gives the normaliser (log-sum-exp) of the block's own queries, so a column needs scores of block x
block only: Abar[i, j] = exp(score[i, j] - lse[i]). A row sum is the fused kernel itself, with the indicator of the
known keys as values. (Attn-Sampler: arXiv 2604.08564. Row mass: AGDO, arXiv 2606.12273.)

S spans, L block slots, H query heads, K key heads, G = H / K, E channels, N keys, M tokens of the forward.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from models.packing import Packing, Run
from models.stack import Keys


class BlockProbe:
    """Collects the sums of the chosen layers during one packed forward.

    `place_SL`: places of each span's block slots in the packing; `masked_SL`: which of them are masked slots of the
    block, the others are ignored. `known_SN`: for `row`, which positions hold a token. `local`: for `column`, normalise
    over the block's masked slots instead of all visible keys.
    """

    def __init__(
        self,
        kind: Literal["column", "row"],
        layers: frozenset[int],
        *,
        place_SL: torch.Tensor,
        masked_SL: torch.Tensor,
        known_SN: torch.Tensor | None = None,
        local: bool = False,
    ) -> None:
        if kind == "row" and known_SN is None:
            raise ValueError("a row probe needs known_SN: which positions hold a token")
        self.kind, self.layers, self.local = kind, layers, local
        self._place_SL, self._masked_SL, self._known_SN = place_SL, masked_SL, known_SN
        self._sum_SL = torch.zeros(place_SL.shape, dtype=torch.float32, device=place_SL.device)

    def add(self, packing: Packing, query_MHE: torch.Tensor, keys: Keys, scaling: float) -> None:
        """Add one layer's share of the means."""
        num_spans, width = self._place_SL.shape
        share = 1.0 / (len(self.layers) * query_MHE.shape[1])
        query_SLHE = query_MHE[self._place_SL]
        for run in packing.wanted_runs(self._place_SL.flatten(), [width] * num_spans):
            first = run.flat // width
            part = slice(first, first + run.num_spans)
            key_SNKE, _ = keys.of(run)
            query = _beside_their_keys(query_SLHE[part], key_SNKE.shape[2])
            if self.kind == "row":
                sums = self._rows(part, run, query, key_SNKE, scaling)
            else:
                position_SL = packing.position_M[self._place_SL[part]]
                sums = self._columns(part, run, query, key_SNKE, position_SL, scaling)
            self._sum_SL[part] += share * sums

    def sums(self) -> torch.Tensor:
        """(S, L) float32; 0 where a slot is not masked."""
        return torch.where(self._masked_SL, self._sum_SL, 0.0)

    def _rows(self, part: slice, run: Run, query: torch.Tensor, key_SNKE: torch.Tensor, scaling: float) -> torch.Tensor:
        """Sum over heads of S_i, (S, L)."""
        assert self._known_SN is not None
        num_spans, key_heads, group_width, channels = query.shape
        known_SN = self._known_SN[part, : run.num_keys].to(query.dtype)
        value = known_SN[:, None, :, None].expand(-1, key_heads, -1, channels)
        mask = None if run.mask is None else run.mask.repeat(1, 1, group_width // run.num_queries, 1)
        mass = scaled_dot_product_attention(query, key_SNKE.transpose(1, 2), value, attn_mask=mask, scale=scaling)
        return mass[..., 0].float().reshape(num_spans, -1, run.num_queries).sum(dim=1)

    def _columns(
        self,
        part: slice,
        run: Run,
        query: torch.Tensor,
        key_SNKE: torch.Tensor,
        position_SL: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Sum over heads of c_j, (S, L)."""
        num_spans, width = position_SL.shape
        row_S1 = torch.arange(num_spans, device=position_SL.device)[:, None]
        own = key_SNKE[row_S1, position_SL].permute(0, 2, 3, 1)
        score = (query.float() @ own.float()) * scaling
        score_SHLL = score.view(num_spans, -1, width, width)
        masked_SL = self._masked_SL[part]
        if self.local:
            score_SHLL = score_SHLL.masked_fill(~masked_SL[:, None, None, :], -torch.inf)
            normaliser = score_SHLL.logsumexp(dim=-1, keepdim=True)
        else:
            lse = log_normaliser(query, key_SNKE.transpose(1, 2), run.mask, scaling)
            normaliser = lse.reshape(num_spans, -1, width)[..., None]
        other_LL = ~torch.eye(width, dtype=torch.bool, device=position_SL.device)
        counted_SLL = masked_SL[:, :, None] & other_LL
        attention_SHLL = (score_SHLL - normaliser).exp()
        return torch.where(counted_SLL[:, None], attention_SHLL, 0.0).sum(dim=(1, 2))


def log_normaliser(
    query: torch.Tensor, key: torch.Tensor, mask_11QN: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Log-sum-exp over keys of the scores of each query, (S, K, Q) float32, from the fused kernel.

    `query` (S, K, Q, E) may hold several heads one after the other in Q; the mask is repeated over them.
    """
    bias = None
    if mask_11QN is not None:
        group = query.shape[2] // mask_11QN.shape[2]
        blocked = ~mask_11QN.repeat(1, 1, group, 1).expand(*query.shape[:3], key.shape[2])
        bias = torch.zeros(blocked.shape, dtype=query.dtype, device=query.device).masked_fill(blocked, -torch.inf)
    if query.device.type == "cpu":
        lse: torch.Tensor
        _, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, key, 0.0, False, attn_mask=bias, scale=scaling
        )
        return lse.float()
    _, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, key, bias, True, 0.0, False, scale=scaling
    )
    # The kernel pads the queries of its log-sum-exp to a multiple of 32.
    return lse[..., : query.shape[2]].float()


def _beside_their_keys(query_SLHE: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(S, K, G * L, E): the query heads that share a key head as further queries."""
    spans, width, heads, channels = query_SLHE.shape
    grouped = query_SLHE.view(spans, width, key_heads, heads // key_heads, channels).permute(0, 2, 3, 1, 4)
    return grouped.reshape(spans, key_heads, -1, channels)
