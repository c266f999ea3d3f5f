"""The layers of a stock backbone, walked over packed tokens.

Equal to the stock forward (tests hold it against every family), with three things that it has not: tokens of several
sequences lie side by side without padding, keys and values can be kept and only part of a canvas computed again, and
the last layer's queries, output and feed-forward run only at the tokens whose hidden states are asked for. Weights
are read where they are, in the stock modules: an update in place, an adapter or a partitioned parameter needs no care.

M tokens, W wanted tokens, D width, H query heads, K key heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from models import plain_backward
from models.cache import KeyValues
from models.compiled import Compiled, CompileMode
from models.fused import LARGEST_HEAD, store_inputs_first
from models.layer_ops import Differentiable, InPlace
from models.packing import Packing, Run
from models.rotary import Rotary, RotaryTable, fresh


class Observer(Protocol):
    """Sees queries and keys of some layers on their way into attention."""

    layers: frozenset[int]

    def add(self, packing: Packing, query_MHE: torch.Tensor, keys: Keys, scaling: float) -> None:
        """Take what is wanted of one layer; queries of every token of the packing."""
        ...


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys and values of one layer: of this forward's tokens, or kept in a cache."""

    key_MKE: torch.Tensor
    value_MKE: torch.Tensor
    cache: KeyValues | None
    layer: int
    stretches: Sequence[int] = ()

    def of_all(self, runs: Sequence[Run]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`of` each run, by one split of all tokens: its backward pass is one copy however many runs there are."""
        if self.cache is not None:
            return [self.of(run) for run in runs]
        if self.stretches:
            keys, values = (whole.split(list(self.stretches)) for whole in (self.key_MKE, self.value_MKE))
            return [(_joined(keys, run.reads), _joined(values, run.reads)) for run in runs]
        places = [(run.key_flat, run.num_spans * run.num_keys) for run in runs]
        keys, values = (_cut(whole, places) for whole in (self.key_MKE, self.value_MKE))
        return [
            (key.unflatten(0, (run.num_spans, -1)), value.unflatten(0, (run.num_spans, -1)))
            for key, value, run in zip(keys, values, runs, strict=True)
        ]

    def of(self, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """(spans, keys, K, E) of a run."""
        if self.cache is not None:
            return self.cache.read(self.layer, run.row, run.num_spans, run.num_keys)
        part = slice(run.key_flat, run.key_flat + run.num_spans * run.num_keys)
        shape = (run.num_spans, run.num_keys, *self.key_MKE.shape[1:])
        return self.key_MKE[part].view(shape), self.value_MKE[part].view(shape)


class Stack:
    """A backbone's layers."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._model: Any = backbone.model
        self._head: Any = backbone.lm_head
        self._differentiable: Differentiable = Differentiable()
        self._in_place: InPlace = InPlace()
        self._table = RotaryTable(self._model.rotary_emb)
        self.compile_mode: CompileMode = "off"
        self.recompute = False
        """Keep only the layers' inputs for the backward pass and compute the rest again."""
        self.is_partitioned = False
        """Weights are there only while their module is called (ZeRO-3): forwards without gradients call each too."""

    def fuse(self) -> None:
        """Lay the weights out for forwards of few tokens without gradients (`models.fused`); costs no memory."""
        self._in_place.fuse(self._model.layers)
        if self._head.weight is not self._model.embed_tokens.weight and self._head.weight.numel() <= LARGEST_HEAD:
            store_inputs_first(self._head)

    def compile(self, mode: CompileMode, *, backend: str = "inductor") -> None:
        """Compile the layers of forwards without gradients (`models.compiled`); `off` undoes it."""
        if mode != self.compile_mode:
            self._in_place = InPlace() if mode == "off" else Compiled(mode, backend=backend)
            self.compile_mode = mode
            self.fuse()

    def start(
        self,
        token_M: torch.Tensor,
        packing: Packing,
        *,
        cache: KeyValues | None = None,
        observer: Observer | None = None,
    ) -> Pending:
        """Run every layer but the last, and the last one's keys and values."""
        ops = self._differentiable if torch.is_grad_enabled() or self.is_partitioned else self._in_place
        ops.begin()
        num_fill = ops.padded(packing.num_tokens) - packing.num_tokens
        position_M = packing.position_M
        if num_fill:
            token_M, position_M = pad(token_M, (0, num_fill)), pad(position_M, (0, num_fill))
        hidden_MD = self._model.embed_tokens(token_M)
        rotary = self._rotary(hidden_MD, position_M, packing)
        *layers, last = self._model.layers
        for index, layer in enumerate(layers):
            arguments = (ops, layer, index, hidden_MD, rotary, packing, cache, observer)
            if self.recompute and torch.is_grad_enabled():
                hidden_MD = checkpoint(_run_layer, *arguments, use_reentrant=False)
            else:
                hidden_MD = _run_layer(*arguments)
        normed_MD = ops.norm(last.input_layernorm, hidden_MD)
        keys = _kept(len(layers), *ops.keys(last, normed_MD, rotary), packing, cache)
        pending = Pending(self, ops, packing, hidden_MD, normed_MD, rotary, keys)
        if observer is not None and len(layers) in observer.layers:
            observer.add(packing, ops.queries(last, normed_MD, rotary), keys, last.self_attn.scaling)
        return pending

    def _rotary(self, hidden_MD: torch.Tensor, position_M: torch.Tensor, packing: Packing) -> Rotary:
        if torch.is_grad_enabled():
            return fresh(self._model.rotary_emb, hidden_MD, position_M)
        return self._table.at(hidden_MD, position_M, max(span.stop for span in packing.spans))

    def finish(self, pending: Pending, flat_W: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Hidden states (W, D) after the final norm; see `Pending.hidden`."""
        last = self._model.layers[-1]
        if self.recompute and torch.is_grad_enabled():
            hidden_WD = checkpoint(_finish_layer, last, pending, flat_W, counts, use_reentrant=False)
        else:
            hidden_WD = _finish_layer(last, pending, flat_W, counts)
        return pending.ops.norm(self._model.norm, hidden_WD)


@dataclass(frozen=True, slots=True)
class Pending:
    """A forward that stands before its last layer's queries."""

    stack: Stack
    ops: Differentiable
    packing: Packing
    hidden_MD: torch.Tensor
    normed_MD: torch.Tensor
    rotary: Rotary
    keys: Keys

    def hidden(self, flat_W: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Final hidden states (W, D) of some tokens.

        `flat_W`: their places in the packing, span by span; `counts`: how many of each span.
        """
        return self.stack.finish(self, flat_W, counts)


def _run_layer(
    ops: Differentiable,
    layer: Any,
    index: int,
    hidden_MD: torch.Tensor,
    rotary: Rotary,
    packing: Packing,
    cache: KeyValues | None,
    observer: Observer | None,
) -> torch.Tensor:
    scaling = layer.self_attn.scaling
    query_MHE, key_MKE, value_MKE = ops.before(layer, hidden_MD, rotary)
    keys = _kept(index, key_MKE, value_MKE, packing, cache)
    if observer is not None and index in observer.layers:
        observer.add(packing, query_MHE, keys, scaling)
    num_fill = len(hidden_MD) - packing.num_tokens
    if num_fill:
        query_MHE = query_MHE[: packing.num_tokens]
    attended_MD = _attend(query_MHE, keys, packing.runs, scaling)
    return ops.after(layer, hidden_MD, pad(attended_MD, (0, 0, 0, num_fill)) if num_fill else attended_MD)


def _finish_layer(layer: Any, pending: Pending, flat_W: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    ops, (cos, sin) = pending.ops, pending.rotary
    rotary = (cos.index_select(0, flat_W), sin.index_select(0, flat_W))
    query_WHE = ops.queries(layer, pending.normed_MD.index_select(0, flat_W), rotary)
    runs = pending.packing.wanted_runs(flat_W, counts)
    attended_WD = _attend(query_WHE, pending.keys, runs, layer.self_attn.scaling)
    return ops.after(layer, pending.hidden_MD.index_select(0, flat_W), attended_WD)


def _kept(
    index: int, key_MKE: torch.Tensor, value_MKE: torch.Tensor, packing: Packing, cache: KeyValues | None
) -> Keys:
    if len(key_MKE) > packing.num_tokens:
        key_MKE, value_MKE = key_MKE[: packing.num_tokens], value_MKE[: packing.num_tokens]
    if cache is not None:
        cache.write(index, packing, key_MKE, value_MKE)
    return Keys(key_MKE, value_MKE, cache, index, packing.stretches)


def _attend(query_MHE: torch.Tensor, keys: Keys, runs: Sequence[Run], scaling: float) -> torch.Tensor:
    """Attention output (M, H * E), run by run."""
    if len(runs) == 1:
        ((key, value),) = keys.of_all(runs)
        return _grouped_attention(query_MHE, runs[0], key, value, scaling)
    queries = _cut(query_MHE, [(run.flat, run.num_spans * run.num_queries) for run in runs])
    parts = [
        _grouped_attention(query, run, key, value, scaling)
        for query, (key, value), run in zip(queries, keys.of_all(runs), runs, strict=True)
    ]
    return torch.cat(parts)


def _cut(whole: torch.Tensor, places: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Stretches (start, size) along the first axis, given in order; one split, for the sake of its backward pass."""
    sizes, chosen, at = [], [], 0
    for start, size in places:
        if start > at:
            sizes.append(start - at)
        chosen.append(len(sizes))
        sizes.append(size)
        at = start + size
    if at < len(whole):
        sizes.append(len(whole) - at)
    parts = whole.split(sizes)
    return [parts[index] for index in chosen]


def _joined(stretches: Sequence[torch.Tensor], reads: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(1, K, heads, E): the first tokens of some stretches, one after the other."""
    return torch.cat([stretches[number][:num_tokens] for number, num_tokens in reads])[None]


def _grouped_attention(
    query_MHE: torch.Tensor, run: Run, key_SNKE: torch.Tensor, value_SNKE: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Fused attention (S * Q, H * E); the query heads that share a key head stand as further queries beside it."""
    (tokens, heads, channels), spans = query_MHE.shape, run.num_spans
    key_heads, queries, mask_11QN = key_SNKE.shape[2], tokens // spans, run.mask
    group = heads // key_heads
    if group == 1:
        query = query_MHE.view(spans, queries, heads, channels).transpose(1, 2)
    else:
        query = query_MHE.view(spans, queries, key_heads, group, channels).permute(0, 2, 3, 1, 4)
        query = query.reshape(spans, key_heads, group * queries, channels)
        mask_11QN = mask_11QN if mask_11QN is None else mask_11QN.repeat(1, 1, group, 1)
    output = plain_backward.attention(query, key_SNKE.transpose(1, 2), value_SNKE.transpose(1, 2), mask_11QN, scaling)
    if group == 1:
        return output.transpose(1, 2).reshape(spans * queries, heads * channels)
    output = output.view(spans, key_heads, group, queries, channels).permute(0, 3, 1, 2, 4)
    return output.reshape(spans * queries, heads * channels)
