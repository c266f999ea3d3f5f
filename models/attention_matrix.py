"""The attention matrix itself, averaged over heads and over chosen layers: for rules that need more than sums of it.

Sums that are known before the forward come cheaper from `models.probe` and `models.block_probe`; a greedy order whose
next sum depends on the last choice (AGDO's trace) needs the entries. One head at a time, so that a sequence of N
tokens costs one (N, N) float32 matrix and one more of scratch, whatever the number of heads.

S spans of one run, N tokens of a span, H query heads, K key heads, E channels of a head, M tokens of the forward.
"""

from __future__ import annotations

import torch

from models.packing import Packing, Run
from models.stack import Keys


class AttentionMatrix:
    """Observer of a packed forward without a cache; `of_spans` gives the matrices once the forward has started."""

    def __init__(self, layers: frozenset[int]) -> None:
        self.layers = layers
        self._sums: dict[int, torch.Tensor] = {}
        self._runs: list[Run] = []

    def add(self, packing: Packing, query_MHE: torch.Tensor, keys: Keys, scaling: float) -> None:
        """Add one layer's share of the means."""
        self._runs = packing.runs
        for index, run in enumerate(self._runs):
            share = _head_mean(query_MHE, keys, run, scaling) / len(self.layers)
            self._sums[index] = self._sums[index] + share if index in self._sums else share

    def of_spans(self) -> list[torch.Tensor]:
        """(N, N) float32 (float64 of a float64 model) of each span: rows are queries and sum to 1."""
        return [matrix for index in range(len(self._runs)) for matrix in self._sums[index]]


def _head_mean(query_MHE: torch.Tensor, keys: Keys, run: Run, scaling: float) -> torch.Tensor:
    """(S, N, N) mean over heads of the softmax over visible keys."""
    assert not run.reads, "spans that share keys have no square attention matrix"
    num_spans, width, num_heads = run.num_spans, run.num_queries, query_MHE.shape[1]
    query_SNHE = query_MHE[run.flat : run.flat + num_spans * width].unflatten(0, (num_spans, width))
    key_SNKE, _ = keys.of(run)
    group = num_heads // key_SNKE.shape[2]
    dtype = torch.promote_types(query_MHE.dtype, torch.float32)
    mean_SNN = torch.zeros(num_spans, width, key_SNKE.shape[1], dtype=dtype, device=query_MHE.device)
    for head in range(num_heads):
        key_SEN = key_SNKE[:, :, head // group].to(dtype).transpose(1, 2)
        score_SNN = (query_SNHE[:, :, head].to(dtype) @ key_SEN) * scaling
        if run.mask is not None:
            score_SNN = score_SNN.masked_fill(~run.mask[0], -torch.inf)
        mean_SNN += score_SNN.softmax(dim=-1)
    return mean_SNN / num_heads
