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
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from models.cache import KeyValues
from models.packing import Packing, Run


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
        self.recompute = False
        """Keep only the layers' inputs for the backward pass and compute the rest again."""

    def start(
        self,
        token_M: torch.Tensor,
        packing: Packing,
        *,
        cache: KeyValues | None = None,
        observer: Observer | None = None,
    ) -> Pending:
        """Run every layer but the last, and the last one's keys and values."""
        hidden_1MD = self._model.embed_tokens(token_M[None])
        rotary = self._model.rotary_emb(hidden_1MD, packing.position_M[None])
        *layers, last = self._model.layers
        for index, layer in enumerate(layers):
            arguments = (layer, index, hidden_1MD, rotary, packing, cache, observer)
            if self.recompute and torch.is_grad_enabled():
                hidden_1MD = checkpoint(_run_layer, *arguments, use_reentrant=False)
            else:
                hidden_1MD = _run_layer(*arguments)
        normed_1MD = last.input_layernorm(hidden_1MD)
        keys = _keys(last.self_attn, len(layers), normed_1MD, rotary, packing, cache)
        pending = Pending(self, packing, hidden_1MD, normed_1MD, rotary, keys)
        if observer is not None and len(layers) in observer.layers:
            observer.add(packing, _queries(last.self_attn, normed_1MD, rotary), keys, last.self_attn.scaling)
        return pending

    def finish(self, pending: Pending, flat_W: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Hidden states (W, D) after the final norm; see `Pending.hidden`."""
        last = self._model.layers[-1]
        if self.recompute and torch.is_grad_enabled():
            hidden_1WD = checkpoint(_finish_layer, last, pending, flat_W, counts, use_reentrant=False)
        else:
            hidden_1WD = _finish_layer(last, pending, flat_W, counts)
        finished: torch.Tensor = self._model.norm(hidden_1WD)[0]
        return finished


@dataclass(frozen=True, slots=True)
class Pending:
    """A forward that stands before its last layer's queries."""

    stack: Stack
    packing: Packing
    hidden_1MD: torch.Tensor
    normed_1MD: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]
    keys: Keys

    def hidden(self, flat_W: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Final hidden states (W, D) of some tokens.

        `flat_W`: their places in the packing, span by span; `counts`: how many of each span.
        """
        return self.stack.finish(self, flat_W, counts)


def _run_layer(
    layer: Any,
    index: int,
    hidden_1MD: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    packing: Packing,
    cache: KeyValues | None,
    observer: Observer | None,
) -> torch.Tensor:
    normed_1MD = layer.input_layernorm(hidden_1MD)
    query_MHE = _queries(layer.self_attn, normed_1MD, rotary)
    keys = _keys(layer.self_attn, index, normed_1MD, rotary, packing, cache)
    if observer is not None and index in observer.layers:
        observer.add(packing, query_MHE, keys, layer.self_attn.scaling)
    attended_1MD = layer.self_attn.o_proj(_attend(query_MHE, keys, packing.runs, layer.self_attn.scaling))
    return _feed_forward(layer, hidden_1MD + attended_1MD)


def _finish_layer(layer: Any, pending: Pending, flat_W: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    cos, sin = pending.rotary
    rotary = (cos[:, flat_W] if cos.shape[1] > 1 else cos, sin[:, flat_W] if sin.shape[1] > 1 else sin)
    query_WHE = _queries(layer.self_attn, pending.normed_1MD[:, flat_W], rotary)
    runs = pending.packing.wanted_runs(flat_W, counts)
    attended_1WD = layer.self_attn.o_proj(_attend(query_WHE, pending.keys, runs, layer.self_attn.scaling))
    return _feed_forward(layer, pending.hidden_1MD[:, flat_W] + attended_1WD)


def _feed_forward(layer: Any, hidden_1MD: torch.Tensor) -> torch.Tensor:
    update_1MD: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden_1MD))
    return hidden_1MD + update_1MD


def _queries(attention: Any, normed_1MD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    query_1MHE = attention.q_proj(normed_1MD).unflatten(-1, (-1, attention.head_dim))
    if getattr(attention, "q_norm", None) is not None:
        query_1MHE = attention.q_norm(query_1MHE)
    return _rotate(query_1MHE, *rotary)[0]


def _keys(
    attention: Any,
    index: int,
    normed_1MD: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    packing: Packing,
    cache: KeyValues | None,
) -> Keys:
    key_1MKE = attention.k_proj(normed_1MD).unflatten(-1, (-1, attention.head_dim))
    if getattr(attention, "k_norm", None) is not None:
        key_1MKE = attention.k_norm(key_1MKE)
    key_MKE = _rotate(key_1MKE, *rotary)[0]
    value_MKE = attention.v_proj(normed_1MD).unflatten(-1, (-1, attention.head_dim))[0]
    if cache is not None:
        cache.write(index, packing, key_MKE, value_MKE)
    return Keys(key_MKE, value_MKE, cache, index)


def _rotate(x_1MHE: torch.Tensor, cos_1ME: torch.Tensor, sin_1ME: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding on the first channels, as many as the model rotates; halves are the pairs."""
    num_rotated = cos_1ME.shape[-1]
    cos, sin = cos_1ME[:, :, None], sin_1ME[:, :, None]
    turned = x_1MHE[..., :num_rotated]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    if num_rotated == x_1MHE.shape[-1]:
        return rotated
    return torch.cat((rotated, x_1MHE[..., num_rotated:]), dim=-1)


def _attend(query_MHE: torch.Tensor, keys: Keys, runs: Sequence[Run], scaling: float) -> torch.Tensor:
    """Attention output (1, M, H * E), run by run."""
    parts = []
    for run in runs:
        part = query_MHE[run.flat : run.flat + run.num_spans * run.num_queries]
        key, value = keys.of(run)
        parts.append(_grouped_attention(part.unflatten(0, (run.num_spans, -1)), key, value, run.mask, scaling))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]


def _grouped_attention(
    query_SQHE: torch.Tensor,
    key_SNKE: torch.Tensor,
    value_SNKE: torch.Tensor,
    mask_11QN: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Fused attention (S * Q, H * E); the query heads that share a key head stand as further queries beside it."""
    spans, queries, heads, channels = query_SQHE.shape
    key_heads = key_SNKE.shape[2]
    group = heads // key_heads
    if group == 1:
        query = query_SQHE.transpose(1, 2)
    else:
        query = query_SQHE.view(spans, queries, key_heads, group, channels).permute(0, 2, 3, 1, 4)
        query = query.reshape(spans, key_heads, group * queries, channels)
        mask_11QN = mask_11QN if mask_11QN is None else mask_11QN.repeat(1, 1, group, 1)
    output = scaled_dot_product_attention(
        query, key_SNKE.transpose(1, 2), value_SNKE.transpose(1, 2), attn_mask=mask_11QN, scale=scaling
    )
    if group == 1:
        return output.transpose(1, 2).reshape(spans * queries, heads * channels)
    output = output.view(spans, key_heads, group, queries, channels).permute(0, 3, 1, 2, 4)
    return output.reshape(spans * queries, heads * channels)
