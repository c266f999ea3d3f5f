"""Weights of linear layers laid out for forwards of few tokens, in place and without a second copy.

Queries, keys and values are one product, gate and up another: at small batches a product costs more to begin than to
run. The stock modules' weights become views of the fused matrix, so there is one copy, and loading new weights in place
keeps both. Whoever replaces the storage of a weight (a move to another device, a partitioned optimizer) undoes the
fusion; that is noticed by address, and the stock modules are used as they are.

A processor multiplies few tokens in float32 by a weight that is stored inputs first, (in, out), at 1.3 to 2 times the
speed of the stock order: its rows need no turning round before a product that is too small to pay for it. The parameter
keeps its shape; only its strides differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

MAX_TOKENS = 192
"""Above this many tokens separate products are as fast on a processor, and need no strided results."""
LARGEST_HEAD = 2**20
"""Weights of a vocabulary head that is stored inputs first; larger ones are slower that way for many tokens."""


class FusedLinear:
    """Several linear layers of one input as one matrix whose rows are theirs."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = layers
        self.weight = torch.cat([layer.weight.data for layer in layers])
        if gains_inputs_first(layers[0]):
            self.weight = _inputs_first(self.weight)
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
        row = 0
        for layer in layers:
            stop = row + layer.out_features
            layer.weight.data = self.weight[row:stop]
            if self.bias is not None:
                layer.bias.data = self.bias[row:stop]
            row = stop
        self._addresses = [layer.weight.data_ptr() for layer in layers]

    @property
    def is_current(self) -> bool:
        """Whether the layers' weights still are rows of the matrix."""
        return all(layer.weight.data_ptr() == at for layer, at in zip(self._layers, self._addresses, strict=True))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs of all layers side by side."""
        return nn.functional.linear(x, self.weight, self.bias)


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


def fuse(modules: Sequence[Any]) -> FusedLinear | None:
    """One matrix for these layers; None where they are not plain linear layers of one kind."""
    plain = all(type(module) is nn.Linear for module in modules)
    if not plain or len({(m.in_features, m.bias is None, m.weight.dtype, m.weight.device) for m in modules}) != 1:
        return None
    return None if any(m.weight.is_meta or m.weight.numel() == 0 for m in modules) else FusedLinear(modules)
