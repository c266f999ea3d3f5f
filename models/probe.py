"""The attention probe: row and column sums of the attention matrix, reduced where q and k are made.

B sequences, N positions, H query heads, R probed rows of a sequence, E channels of a head.
Abar is the softmax over all visible keys, averaged over query heads and over the chosen layers. The probe computes only
the probed rows of it, one layer at a time, in float32; the model's output still comes from the fused kernel, and no
attention matrix leaves this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "unmask_sdpa"

Layers = Literal["last", "all"] | tuple[int, ...] | list[int]


@dataclass(frozen=True)
class AttentionSums:
    """Sums of Abar. (B, N) float32 each."""

    row_sum_BT: torch.Tensor
    """sum over k in cols of Abar[i, k] for a probed row i, 0 elsewhere: how much i looks at the set."""
    col_sum_BT: torch.Tensor
    """sum over i in rows of Abar[i, k] for every k: how much k is looked at by the probed rows."""
    self_BT: torch.Tensor
    """Abar[i, i] for a probed row i, 0 elsewhere; subtract it from `col_sum_BT` to leave out i = k."""


@dataclass
class Probe:
    """Collects the sums of the chosen layers during one forward pass of the model."""

    rows_BN: torch.Tensor
    cols_BN: torch.Tensor
    layers: frozenset[int]
    row_sum_BN: torch.Tensor = field(init=False)
    col_sum_BN: torch.Tensor = field(init=False)
    self_BN: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Probed rows first, in order: only they are computed.
        num_rows = int(self.rows_BN.sum(dim=1).max())
        self.row_BR = torch.argsort(~self.rows_BN, dim=1, stable=True)[:, :num_rows]
        self.row_valid_BR = self.rows_BN.gather(1, self.row_BR)
        self.row_sum_BN, self.col_sum_BN, self.self_BN = (
            torch.zeros(self.rows_BN.shape, dtype=torch.float32, device=self.rows_BN.device) for _ in range(3)
        )

    def add(self, query_BHNE: torch.Tensor, key_BKNE: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> None:
        """Adds one layer's share of the means."""
        batch, num_heads = query_BHNE.shape[:2]
        group = num_heads // key_BKNE.shape[1]
        num_rows = self.row_BR.shape[1]
        mask_BRN = _mask_rows(mask, self.row_BR)
        mean_BRN = torch.zeros(batch, num_rows, key_BKNE.shape[2], dtype=torch.float32, device=query_BHNE.device)
        for head in range(num_heads):
            index_BRE = self.row_BR[:, :, None].expand(-1, -1, query_BHNE.shape[3])
            query_BRE = query_BHNE[:, head].gather(1, index_BRE).float()
            score_BRN = (query_BRE @ key_BKNE[:, head // group].float().transpose(1, 2)) * scaling
            if mask_BRN is not None:
                score_BRN = score_BRN.masked_fill(~mask_BRN, float("-inf"))
            mean_BRN += score_BRN.softmax(dim=-1)
        mean_BRN /= num_heads * len(self.layers)
        mean_BRN *= self.row_valid_BR[:, :, None]
        self.row_sum_BN.scatter_add_(1, self.row_BR, (mean_BRN * self.cols_BN[:, None, :]).sum(dim=2))
        self.self_BN.scatter_add_(1, self.row_BR, mean_BRN.gather(2, self.row_BR[:, :, None])[:, :, 0])
        self.col_sum_BN += mean_BRN.sum(dim=1)

    def sums(self) -> AttentionSums:
        """Result after the forward pass."""
        return AttentionSums(self.row_sum_BN, self.col_sum_BN, self.self_BN)


def layer_set(layers: Layers, num_layers: int) -> frozenset[int]:
    """Indices that `layers` names; negative ones count from the end."""
    if layers == "last":
        return frozenset({num_layers - 1})
    if layers == "all":
        return frozenset(range(num_layers))
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers = {layers!r}; allowed: 'last', 'all', or a non-empty list of layer indices")
    chosen = frozenset(layer + num_layers if layer < 0 else layer for layer in layers)
    if not chosen <= frozenset(range(num_layers)):
        raise ValueError(f"layers = {list(layers)!r} are not all layers of this model; it has 0..{num_layers - 1}")
    return chosen


def _mask_rows(mask: torch.Tensor | None, row_BR: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    mask_BNN = mask[:, 0].expand(row_BR.shape[0], -1, -1)
    return mask_BNN.gather(1, row_BR[:, :, None].expand(-1, -1, mask_BNN.shape[2]))


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    probe: Probe | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Fused attention, never causal by itself; a probe sees q and k on the way."""
    if probe is not None and module.layer_idx in probe.layers:
        probe.add(query, key, attention_mask, scaling)
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
    )
    return output


def _no_mask(**_: Any) -> None:
    """Called where no 4D mask was passed: everything may attend to everything."""
    return


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
