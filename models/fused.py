"""Weights of linear layers laid out for forwards of few tokens, in place and without a second copy.

Queries, keys and values are one product, gate and up another: at small batches a product costs more to begin than to
run. The stock modules' weights become views of the fused matrix, so there is one copy, and loading new weights in place
keeps both. Whoever replaces the storage of a weight (a move to another device, a partitioned optimizer) or a module (an
adapter) undoes the fusion; that is noticed at the next forward, and the stock modules are used as they are.

A processor multiplies few tokens in float32 by a weight that is stored inputs first, (in, out), at 1.3 to 2 times the
speed of the stock order: its rows need no turning round before a product that is too small to pay for it. The parameter
keeps its shape; only its strides differ.

M tokens, I inputs, O outputs, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

MAX_TOKENS = 192
"""Above this many tokens separate products are as fast on a processor, and need no strided results."""
LARGEST_HEAD = 2**20
"""Weights of a vocabulary head that is stored inputs first; larger ones are slower that way for many tokens."""


class Product:
    """The product with a weight, at hand without the calls of a module."""

    __slots__ = ("bias_O", "weight_IO")

    def __init__(self, weight_IO: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        self.weight_IO, self.bias_O = weight_IO, bias_O

    def __call__(self, x_MI: torch.Tensor) -> torch.Tensor:
        """What the linear layer gives."""
        if self.bias_O is None:
            return torch.mm(x_MI, self.weight_IO)
        return torch.addmm(self.bias_O, x_MI, self.weight_IO)

    def add_to(self, total_MO: torch.Tensor, x_MI: torch.Tensor) -> torch.Tensor:
        """Add what the linear layer gives to `total`, in place."""
        total_MO.addmm_(x_MI, self.weight_IO)
        return total_MO if self.bias_O is None else total_MO.add_(self.bias_O)

    def columns(self, start: int, stop: int | None) -> Product:
        """Some of the outputs."""
        return Product(self.weight_IO[:, start:stop], None if self.bias_O is None else self.bias_O[start:stop])


@dataclass(frozen=True, slots=True)
class AttentionProducts:
    """Products of an attention layer whose projections are plain."""

    qkv: Product
    query: Product
    key_value: Product
    output: Product
    num_queries: int
    """Heads."""
    num_keys: int
    head_dim: int
    has_head_norms: bool

    @staticmethod
    def of(attention: Any) -> AttentionProducts | None:
        """Lay the weights of a stock attention layer out; None where its projections are not plain."""
        qkv = fuse((attention.q_proj, attention.k_proj, attention.v_proj))
        output = fuse((attention.o_proj,))
        if qkv is None or output is None:
            return None
        query_channels = attention.q_proj.out_features
        return AttentionProducts(
            qkv,
            qkv.columns(0, query_channels),
            qkv.columns(query_channels, None),
            output,
            num_queries=query_channels // attention.head_dim,
            num_keys=attention.k_proj.out_features // attention.head_dim,
            head_dim=attention.head_dim,
            has_head_norms=getattr(attention, "q_norm", None) is not None,
        )


@dataclass(frozen=True, slots=True)
class FeedForwardProducts:
    """Products of a plain gated feed-forward layer; gate and up are one matrix where that is faster."""

    gate_up: Product | None
    gate: Product
    up: Product
    down: Product

    @staticmethod
    def of(feed_forward: Any) -> FeedForwardProducts | None:
        """Lay the weights of a stock layer out; None where it is of another kind, or its projections are not plain."""
        if not is_gated(feed_forward):
            return None
        down = fuse((feed_forward.down_proj,))
        # One product of twice the width is slower than two on a processor, whose cache holds one of them.
        if feed_forward.up_proj.weight.device.type == "cpu":
            gate_up, gate, up = None, fuse((feed_forward.gate_proj,)), fuse((feed_forward.up_proj,))
        else:
            gate_up = fuse((feed_forward.gate_proj, feed_forward.up_proj))
            width = feed_forward.gate_proj.out_features
            gate, up = (None, None) if gate_up is None else (gate_up.columns(0, width), gate_up.columns(width, None))
        if down is None or gate is None or up is None:
            return None
        return FeedForwardProducts(gate_up, gate, up, down)


class Weights:
    """The products of a backbone's layers, as long as the stock modules hold the same memory."""

    def __init__(self, layers: Iterable[Any]) -> None:
        layers = list(layers)
        self.attending = {id(layer): AttentionProducts.of(layer.self_attn) for layer in layers}
        self.gated = {id(layer): FeedForwardProducts.of(layer.mlp) for layer in layers}
        self._places = [
            (owner._modules, name, module, kind, parameter.data_ptr())
            for layer in layers
            for owner, found in ((layer.self_attn, self.attending), (layer.mlp, self.gated))
            if found[id(layer)] is not None
            for name, module in owner.named_children()
            if isinstance(module, nn.Linear)
            for kind, parameter in module.named_parameters()
        ]

    @property
    def are_current(self) -> bool:
        """Whether every product still is that of its stock module."""
        return all(
            modules[name] is module and module._parameters[kind].data_ptr() == address
            for modules, name, module, kind, address in self._places
        )


def fuse(layers: Sequence[Any]) -> Product | None:
    """The product with several linear layers of one input, their outputs side by side; None where they are not plain.

    Where the layers' weights are stored in another way they are laid out anew and become views of what is stored.
    """
    plain = all(type(layer) is nn.Linear for layer in layers)
    if not plain or len({(m.in_features, m.bias is None, m.weight.dtype, m.weight.device) for m in layers}) != 1:
        return None
    if any(layer.weight.is_meta or layer.weight.numel() == 0 for layer in layers):
        return None
    weight = layers[0].weight.data if len(layers) == 1 else torch.cat([layer.weight.data for layer in layers])
    if gains_inputs_first(layers[0]):
        weight = _inputs_first(weight)
    bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
    row = 0
    for layer in layers:
        part = slice(row, row + layer.out_features)
        layer.weight.data = weight[part]
        if bias is not None:
            layer.bias.data = bias[part]
        row = part.stop
    return Product(weight.t(), bias)


def is_gated(feed_forward: Any) -> bool:
    """Whether it is the plain gated layer with SiLU (experts are not)."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(map(partial(hasattr, feed_forward), parts)) and type(feed_forward.act_fn).__name__ in (
        "SiLU",
        "SiLUActivation",
    )


def gains_inputs_first(module: nn.Linear) -> bool:
    """Whether products with this weight are faster when it is stored (in, out)."""
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def store_inputs_first(module: Any) -> None:
    """Store the weight of a linear layer (in, out) where that is faster; others stay as they are."""
    if isinstance(module, nn.Linear) and gains_inputs_first(module) and module.weight.numel():
        module.weight.data = _inputs_first(module.weight.data)


def _inputs_first(weight: torch.Tensor) -> torch.Tensor:
    """The same matrix; itself if it is stored so already."""
    return weight.t().contiguous().t()
