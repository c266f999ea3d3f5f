"""Forwards of the active sequences: what is computed, what comes from the cache, and what sequences share.

A active sequences (rows), S spans of a forward, K candidate canvases, L columns of the widest active block, M tokens of
a forward, N canvas positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models import Denoiser
from models.block_probe import BlockProbe
from models.cache import KeyValues
from models.packing import Packing, Span
from models.probe import layer_set
from rollout.cache_policy import CachePolicy
from rollout.canvas import BlockView, Canvases
from rollout.evaluation import Evaluation, Joined
from rollout.layout import Layout
from rollout.prompt_store import PromptStore
from rollout.request import Request
from rollout.row import Row
from samplers.records import Evaluate, ProbeSpec

CACHED_ELEMENTS = 360 * 1024
"""Elements of a feed-forward activation that stay in a core's second-level cache (1.4 MB of float32): beyond them a
token of a small model costs more (docs/performance.md)."""
MIN_CUT_TOKENS = 512
"""A model that is too wide for so many tokens in the cache is not cut: it gains nothing."""


def tokens_at_once(denoiser: Denoiser, policy: CachePolicy) -> int | None:
    """Tokens at which forwards of whole canvases on a processor are cut; None: never."""
    if policy.kind != "none" or denoiser.device.type != "cpu":
        return None
    fitting = CACHED_ELEMENTS // int(denoiser.backbone.config.intermediate_size)
    return fitting if fitting >= MIN_CUT_TOKENS else None


class Forwards:
    """Runs the model on canvases under one cache policy."""

    def __init__(
        self,
        denoiser: Denoiser,
        canvases: Canvases,
        layout: Layout,
        policy: CachePolicy,
        *,
        requests: Sequence[Request],
        probe: ProbeSpec | None,
        share_prompts: bool,
        looks_far: bool = False,
    ) -> None:
        self._denoiser, self._canvases, self._layout, self._policy = denoiser, canvases, layout, policy
        self._probe_spec = probe
        self._shares = share_prompts
        self._looks_far = looks_far
        num_slots, max_length = canvases.token_SN.shape
        self._cache = None if policy.kind == "none" else denoiser.new_cache(num_slots, max_length)
        self._max_tokens = tokens_at_once(denoiser, policy)
        self._store: PromptStore | None = None
        if policy.kind == "block" and share_prompts:
            assert self._cache is not None
            assert layout.block_length is not None
            self._store = PromptStore(requests, self._cache, block_length=layout.block_length)

    def expect(self, request: Request) -> None:
        """Count on a request that will begin later."""
        if self._store is not None:
            self._store.expect(request)

    def forget(self, request: Request) -> None:
        """A request that was counted on will not begin."""
        if self._store is not None:
            self._store.forget(request)

    def weights_changed(self) -> None:
        """Drop what was kept of prompts; rows are told by their owner."""
        if self._store is not None:
            self._store.clear()

    def begin(self, row: Row) -> None:
        """Prepare the slot of a new row."""
        if self._store is not None:
            self._store.begin(row)

    def evaluate(self, rows: Sequence[Row], view: BlockView) -> Evaluate:
        """Predictions of every row's canvas: those kept from its last candidates, a forward for the others."""
        fresh = [index for index, row in enumerate(rows) if row.evaluated is None]
        spans, span_of_row = self._spans([rows[index] for index in fresh])
        parts = {index: row.evaluated for index, row in enumerate(rows) if row.evaluated is not None}
        for start, stop in self._cuts(spans):
            members = [(index, span - start) for index, span in zip(fresh, span_of_row, strict=True)]
            members = [(index, span) for index, span in members if 0 <= span < stop - start]
            indices = [index for index, _ in members]
            own = [rows[index] for index in indices]
            forward = self._forward(own, indices, spans[start:stop], [span for _, span in members], view)
            if len(own) == len(rows):
                return forward
            parts |= {index: (forward, place) for place, index in enumerate(indices)}
        return Joined(
            [parts[index] for index in range(len(rows))],
            fork=lambda *candidates: self._candidates(rows, view, *candidates),
        )

    # ---- forwards of the rows' own canvases

    def _cuts(self, spans: Sequence[Span]) -> list[tuple[int, int]]:
        """Spans (first, end) of each forward: one forward, or as many as a processor's cache asks for."""
        cuts, first, num_tokens = list[tuple[int, int]](), 0, 0
        for index, span in enumerate(spans):
            if self._max_tokens and index > first and num_tokens + len(span) > self._max_tokens:
                cuts.append((first, index))
                first, num_tokens = index, 0
            num_tokens += len(span)
        return [*cuts, (first, len(spans))] if spans else []

    def _forward(
        self,
        rows: Sequence[Row],
        index_of: Sequence[int],
        spans: Sequence[Span],
        span_of_row: Sequence[int],
        view: BlockView,
    ) -> Evaluation:
        packing = self._packing(spans, self._cache)
        token_M = torch.cat([self._canvases.token_SN[span.row, span.start : span.stop] for span in spans])
        watched = self._watch(rows, spans, span_of_row)
        probe = self._probe(packing, span_of_row, index_of, view)
        pending = self._denoiser.start(token_M, packing, cache=self._cache, observer=probe)
        for row, span in zip(rows, span_of_row, strict=True):
            row.count_forward(spans[span], self._policy, self._layout)
        self._share(rows, spans, span_of_row)
        self._judge(watched)
        owners = [rows[span_of_row.index(span)] for span in range(len(spans))]
        return Evaluation(
            self._denoiser,
            pending,
            span_of_row=span_of_row,
            block_S=[(row.block[0], row.looks_until(self._policy)) for row in owners],
            attention_SL=None if probe is None else probe.sums(),
            fork=lambda *candidates: self._candidates(rows, view, *candidates),
        )

    def _packing(self, spans: Sequence[Span], cache: KeyValues | None) -> Packing:
        max_length = None if cache is None else cache.max_length
        return self._denoiser.packing(spans, block_length=self._layout.block_length, max_length=max_length)

    def _spans(self, rows: Sequence[Row]) -> tuple[list[Span], list[int]]:
        """Spans to compute, and the span of each row: rows that are still the same canvas have one."""
        spans: list[Span] = []
        span_of_row: list[int] = []
        first_of: dict[tuple[object, ...], int] = {}
        for row in rows:
            span = row.span(self._policy, shift=self._denoiser.family.shift)
            if row.step == 0 and self._shares:
                fixed = tuple(row.request.fixed.items())
                canvas = (tuple(row.request.prompt_tokens), row.length, fixed, row.block, span.start)
                place = first_of.setdefault(canvas, len(spans))
            else:
                place = len(spans)
            span_of_row.append(place)
            if place == len(spans):
                spans.append(span)
        return spans, span_of_row

    def _share(self, rows: Sequence[Row], spans: Sequence[Span], span_of_row: Sequence[int]) -> None:
        """Copy what a shared span wrote to the other rows that have it, and keep prompts for rows to come."""
        if self._cache is None:
            return
        others: dict[int, list[int]] = {}
        for row, index in zip(rows, span_of_row, strict=True):
            if row.slot != spans[index].row:
                others.setdefault(index, []).append(row.slot)
        for index, slots in others.items():
            self._cache.copy(spans[index].row, slots, spans[index].start, spans[index].stop)
        if self._store is not None:
            for row in rows:
                if row.step == 0:
                    self._store.keep(row)

    def _probe(
        self, packing: Packing, span_of_row: Sequence[int], index_of: Sequence[int], view: BlockView
    ) -> BlockProbe | None:
        """What the sampler wants to know of the attention, if anything."""
        spec = self._probe_spec
        if spec is None:
            return None
        owners = [index_of[span_of_row.index(span)] for span in range(len(packing.spans))]
        owner_S = torch.tensor(owners, device=packing.device)
        position_SL = torch.where(view.inside_AL[owner_S], view.position_AL[owner_S], view.start_A[owner_S][:, None])
        span_SL = torch.arange(len(owner_S), device=packing.device)[:, None].expand_as(position_SL)
        known_SN = ~self._canvases.masked_SN[view.slot_A[owner_S]] if spec.kind == "row" else None
        return BlockProbe(
            spec.kind,
            layer_set(spec.layers, self._denoiser.num_layers),
            place_SL=packing.flat(span_SL, position_SL),
            masked_SL=view.masked_AL[owner_S],
            known_SN=known_SN,
            local=spec.local,
        )

    # ---- the drift rule

    def _watch(
        self, rows: Sequence[Row], spans: Sequence[Span], span_of_row: Sequence[int]
    ) -> list[tuple[Row, Span, torch.Tensor]]:
        """Rows that refresh a window now, with the last layer's keys as they were."""
        if self._policy.exact or self._policy.refresh != "drift":
            return []
        return [
            (row, spans[index], self._last_keys(row, spans[index]).clone())
            for row, index in zip(rows, span_of_row, strict=True)
            if row.refreshes and not row.refresh_all
        ]

    def _judge(self, watched: Sequence[tuple[Row, Span, torch.Tensor]]) -> None:
        """Have rows whose keys have turned too far compute their whole canvas next."""
        if not watched:
            return
        turned = [
            1 - torch.cosine_similarity(before.flatten(1).float(), self._last_keys(row, span).flatten(1).float()).mean()
            for row, span, before in watched
        ]
        for (row, _, _), drift in zip(watched, torch.stack(turned).tolist(), strict=True):
            row.refresh_all = drift > self._policy.drift

    def _last_keys(self, row: Row, span: Span) -> torch.Tensor:
        assert self._cache is not None
        key, _ = self._cache.read(self._denoiser.num_layers - 1, row.slot, 1, span.stop)
        return key[0, span.start :]

    # ---- candidate canvases

    def _candidates(
        self, rows: Sequence[Row], view: BlockView, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor
    ) -> Evaluation:
        """Forward of K canvases that differ from a row's own in one slot; the rows and their cache stay as they are."""
        owners = [rows[index] for index in row_K.tolist()]
        shift = self._denoiser.family.shift
        whole = [row.candidate_span(place, self._policy, shift=shift) for place, row in enumerate(owners)]
        scratch = None
        if self._cache is not None:
            scratch = self._cache.rows([row.slot for row in owners])
        packing = self._packing(whole, scratch)
        token_M = torch.cat(
            [self._canvases.token_SN[row.slot, s.start : s.stop] for row, s in zip(owners, whole, strict=True)]
        )
        span_K = torch.arange(len(owners), device=token_M.device)
        token_M[packing.flat(span_K, view.start_A[row_K] + column_K)] = token_K
        pending = self._denoiser.start(token_M, packing, cache=scratch)
        # Where the last layer runs: at every slot that the sampler may look at.
        ends = [span.stop if self._looks_far else row.block[1] for row, span in zip(owners, whole, strict=True)]
        blocks = [(row.block[0], end) for row, end in zip(owners, ends, strict=True)]
        return Evaluation(self._denoiser, pending, span_of_row=range(len(owners)), block_S=blocks)
