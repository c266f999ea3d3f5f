"""Packed forwards in which spans continue others: one clean sequence, and any number of noisy copies of its blocks.

Block-causal families only. A span that stands `after` another sees that one's tokens before its own start, and so on
up to the root; no span sees its siblings. So the prompt of a group is computed once, each answer once, and every noisy
copy of a block costs the block's own tokens:

    prompt blocks <- answer's clean blocks <- noisy copy of block 3
                  <- noisy copy of the block in which the answer begins

Attention goes tile by tile. A tile is a span that others stand after, or consecutive spans after one parent; its keys
are the shared stretches, as far as any of its spans sees them, and its own tokens, under a mask.

M tokens, W wanted tokens, Q queries and K keys of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from models.packing import Packing, Run, Span

TILE_TOKENS = {"cpu": 128, "cuda": 512}
"""Tokens of a tile of copies: more make fewer calls, but more scores that the mask throws away."""


class SharedPacking(Packing):
    """Where the tokens are; `after`: the span that each one continues, -1 for none. Parents come before children."""

    shares_keys = True

    def __init__(
        self,
        spans: Sequence[Span],
        after: Sequence[int],
        *,
        device: torch.device,
        block_length: int,
        tile_tokens: int | None = None,
    ) -> None:
        super().__init__(spans, device=device, block_length=block_length)
        for index, parent in enumerate(after):
            assert parent < index
            assert spans[index].start % block_length == 0
        self._after = after
        self._tiles = _tiles(spans, after, tile_tokens or TILE_TOKENS.get(device.type, 512))
        self._tile_of = [number for number, tile in enumerate(self._tiles) for _ in tile]
        self.stretches = [sum(len(spans[index]) for index in tile) for tile in self._tiles]

    def _runs(self, counts: Sequence[int], flat_W: torch.Tensor | None) -> list[Run]:
        place_W = torch.arange(self.num_tokens, device=self.device) if flat_W is None else flat_W
        runs, first = [], 0
        for number, tile in enumerate(self._tiles):
            num_queries = sum(counts[index] for index in tile)
            if num_queries:
                runs.append(self._run(number, first, place_W[first : first + num_queries]))
                first += num_queries
        return runs

    def _run(self, number: int, first: int, place_Q: torch.Tensor) -> Run:
        tile = self._tiles[number]
        last_start = max(self.spans[index].start for index in tile)
        reads = (*self._chain(self._after[tile[0]], last_start), (number, self.stretches[number]))
        sees_all = len(tile) == 1 and not self._is_mixed(tile[0])
        return Run(
            flat=first,
            num_spans=1,
            num_queries=len(place_Q),
            key_flat=self.offsets[tile[0]],
            row=0,
            num_keys=sum(num_tokens for _, num_tokens in reads),
            mask=None if sees_all else self._tile_mask(reads, place_Q),
            reads=reads,
        )

    def _chain(self, parent: int, stop: int) -> tuple[tuple[int, int], ...]:
        """Stretches from the root to `parent`, each as far as position `stop`."""
        if parent < 0:
            return ()
        span = self.spans[parent]
        seen = min(len(span), max(0, stop - span.start))
        return (*self._chain(self._after[parent], stop), *([(self._tile_of[parent], seen)] if seen else []))

    def _tile_mask(self, reads: tuple[tuple[int, int], ...], place_Q: torch.Tensor) -> torch.Tensor:
        """bool (1, 1, Q, K): shared keys before the query's own span, and its own span's up to the end of its block."""
        assert self.block_length is not None
        *shared, (own, num_own) = ((self.offsets[self._tiles[number][0]], num_tokens) for number, num_tokens in reads)
        query_span_Q, query_position_Q = self._span_M[place_Q], self.position_M[place_Q]
        limit_Q = (query_position_Q // self.block_length + 1) * self.block_length
        own_part = slice(own, own + num_own)
        is_own_QK = (query_span_Q[:, None] == self._span_M[own_part]) & (self.position_M[own_part] < limit_Q[:, None])
        shared_parts = [
            self.position_M[start : start + size] < self.start_S[query_span_Q][:, None] for start, size in shared
        ]
        return torch.cat([*shared_parts, is_own_QK], dim=1)[None, None]


def _tiles(spans: Sequence[Span], after: Sequence[int], tile_tokens: int) -> list[list[int]]:
    """Indices of spans: each parent alone, its leaves in order in tiles of at most so many tokens."""
    parents = set(after)
    tiles: list[list[int]] = []
    for (_, alone), group in groupby(range(len(spans)), key=lambda i: (after[i], i if i in parents else -1)):
        filled = tile_tokens
        for index in group:
            if alone >= 0 or filled + len(spans[index]) > tile_tokens:
                tiles.append([])
                filled = 0
            tiles[-1].append(index)
            filled += len(spans[index])
    return tiles
