"""Packed forwards: the tokens of many sequences one after the other, without padding.

A span is a stretch of one sequence whose hidden states are computed; its keys are those of all visible positions, its
own and, with a cache, those computed earlier. Linear layers, norms and experts see one flat list of tokens, so nothing
is spent on padding; attention goes run by run, where a run is a row of consecutive spans of one shape.

M tokens of all spans, R cache rows, W wanted tokens, Q queries and K keys of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import torch


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start` to `stop` of the sequence in cache row `row`, seeing keys up to `visible`.

    Without a cache a span is a whole sequence: start 0, stop = visible, and `row` means nothing.
    """

    row: int
    start: int
    stop: int
    visible: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive spans (or wanted tokens of spans) that attend in one call."""

    flat: int
    """Place of the first query in the flat order."""
    num_spans: int
    num_queries: int
    """Of one span."""
    key_flat: int
    """Place of the first span's first token in the flat order; where its keys are if there is no cache."""
    row: int
    """Cache row of the first span; the others have the next rows."""
    num_keys: int
    """Of one span."""
    mask: torch.Tensor | None
    """bool (1, 1, Q, K), True = may attend; None: every query sees every key."""
    reads: tuple[tuple[int, int], ...] = ()
    """Where keys are shared (`models.shared_packing`): (which stretch of the packing, how many of its first tokens)."""


class Packing:
    """Where the tokens of a packed forward are.

    `block_length`: attention block of a block-causal family, counted from position 0; None: bidirectional.
    `max_length`: row length of the cache, None without one.
    """

    shares_keys = False
    """Whether spans also see tokens of other spans (`models.shared_packing`)."""

    def __init__(
        self, spans: Sequence[Span], *, device: torch.device, block_length: int | None, max_length: int | None = None
    ) -> None:
        for span in spans:
            assert 0 <= span.start < span.stop <= span.visible, span
            assert max_length is not None or self.shares_keys or len(span) == span.visible, span
        self.spans = spans
        self.device = device
        self.block_length = block_length
        self.max_length = max_length
        self.stretches: Sequence[int] = ()
        """Sizes of the stretches that `Run.reads` names; empty where no keys are shared."""
        lengths = [len(span) for span in spans]
        self.num_tokens = sum(lengths)
        self.offsets = [0] * len(spans)
        for index in range(1, len(spans)):
            self.offsets[index] = self.offsets[index - 1] + lengths[index - 1]

    # Worked out when asked for: one sequence by itself needs hardly any of it, and its steps are short.

    @cached_property
    def offset_S(self) -> torch.Tensor:
        """Place of each span's first token."""
        return torch.tensor(self.offsets, device=self.device)

    @cached_property
    def start_S(self) -> torch.Tensor:
        """Position of each span's first token."""
        return torch.tensor([span.start for span in self.spans], device=self.device)

    @cached_property
    def position_M(self) -> torch.Tensor:
        """Position of each token in its sequence."""
        if len(self.spans) == 1:
            return torch.arange(self.spans[0].start, self.spans[0].stop, device=self.device)
        return torch.arange(self.num_tokens, device=self.device) + (self.start_S - self.offset_S)[self._span_M]

    @cached_property
    def _span_M(self) -> torch.Tensor:
        length_S = torch.tensor([len(span) for span in self.spans], device=self.device)
        return torch.repeat_interleave(length_S, output_size=self.num_tokens)

    @cached_property
    def cache_place(self) -> torch.Tensor:
        """(M,) int64. Place of each token in the flattened cache: row * max_length + position."""
        assert self.max_length is not None
        row_S = torch.tensor([span.row for span in self.spans], device=self.device)
        return row_S[self._span_M] * self.max_length + self.position_M

    @cached_property
    def cache_range(self) -> tuple[int, int] | None:
        """First and last + 1 of `cache_place` where they follow each other, which saves a scattered write."""
        assert self.max_length is not None
        ends = [(span.row * self.max_length + span.start, len(span)) for span in self.spans]
        if any(start + size != following for (start, size), (following, _) in pairwise(ends)):
            return None
        return ends[0][0], ends[0][0] + self.num_tokens

    def flat(self, span_W: torch.Tensor, position_W: torch.Tensor) -> torch.Tensor:
        """Places of tokens named by span and position."""
        return self.offset_S[span_W] + position_W - self.start_S[span_W]

    def span_of(self, flat_W: torch.Tensor) -> torch.Tensor:
        """Index of the span that each place belongs to."""
        return self._span_M[flat_W]

    @cached_property
    def runs(self) -> list[Run]:
        """Runs that cover every token."""
        return self._runs([len(span) for span in self.spans], None)

    def wanted_runs(self, flat_W: torch.Tensor, counts: Sequence[int]) -> list[Run]:
        """Runs over some tokens of each span: `counts` of them, in the order of spans; `flat_W` are their places."""
        return self._runs(counts, flat_W)

    def _runs(self, counts: Sequence[int], flat_W: torch.Tensor | None) -> list[Run]:
        starts, total = [], 0
        for count in counts:
            starts.append(total)
            total += count
        present = [index for index, count in enumerate(counts) if count]
        runs = []
        for (count, num_keys, _), group in groupby(present, key=lambda index: self._shape(index, counts, flat_W)):
            for members in _consecutive([*group], self.spans if self.max_length is not None else None):
                first = members[0]
                mask = self._mask(first, starts[first], count, flat_W) if self._is_mixed(first) else None
                runs.append(
                    Run(
                        flat=starts[first],
                        num_spans=len(members),
                        num_queries=count,
                        key_flat=self.offsets[first],
                        row=self.spans[first].row,
                        num_keys=num_keys,
                        mask=mask,
                    )
                )
        return runs

    def _shape(self, index: int, counts: Sequence[int], flat_W: torch.Tensor | None) -> tuple[int, int, int]:
        """Spans of equal shape may share a run; spans that need a mask share it only if it is the same."""
        span = self.spans[index]
        mask_key = -1
        if self._is_mixed(index):
            mask_key = span.start if flat_W is None else -2 - index
        return counts[index], self._num_keys(index), mask_key

    def _num_keys(self, index: int) -> int:
        span, length = self.spans[index], self.block_length
        if length is None:
            return span.visible
        return min(((span.stop - 1) // length + 1) * length, span.visible)

    def _is_mixed(self, index: int) -> bool:
        """Whether the queries of a span see different keys: it covers more than one attention block."""
        if self.block_length is None:
            return False
        span = self.spans[index]
        return span.start // self.block_length != (span.stop - 1) // self.block_length

    def _mask(self, index: int, first: int, count: int, flat_W: torch.Tensor | None) -> torch.Tensor:
        assert self.block_length is not None
        if flat_W is None:
            position_Q = self.position_M[first : first + count]
        else:
            position_Q = self.position_M[flat_W[first : first + count]]
        limit_Q = (position_Q // self.block_length + 1) * self.block_length
        key_K = torch.arange(self._num_keys(index), device=self.device)
        return (key_K < limit_Q[:, None])[None, None]


def _consecutive(members: list[int], spans: Sequence[Span] | None) -> list[list[int]]:
    """Members cut where neighbours in the list are not neighbours in the packing, or in the cache."""
    cut = [[members[0]]]
    for before, index in pairwise(members):
        adjacent = index == before + 1 and (spans is None or spans[index].row == spans[before].row + 1)
        if adjacent:
            cut[-1].append(index)
        else:
            cut.append([index])
    return cut
