"""Low-rank adapters in a few lines, so that a training step can be timed with torch and transformers alone."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import linear

import models

_TARGETS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


class LowRank(nn.Module):
    """A frozen linear layer plus the product of two thin matrices; no effect until trained."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.down = nn.Parameter(torch.randn(rank, base.in_features).to(weight) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank).to(weight))

    def forward(self, x_MD: torch.Tensor) -> torch.Tensor:
        """Outputs (M, D')."""
        output_MD: torch.Tensor = self.base(x_MD) + linear(linear(x_MD, self.down), self.up)
        return output_MD


def adapt(denoiser: models.Denoiser, rank: int) -> list[nn.Parameter]:
    """Freeze a model and put adapters beside every linear layer of its stack; return what is trained."""
    denoiser.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for layer in denoiser.backbone.model.layers:
        for owner_name, names in _TARGETS.items():
            owner = getattr(layer, owner_name)
            for name in names:
                adapter = LowRank(getattr(owner, name), rank)
                setattr(owner, name, adapter)
                trained += [adapter.down, adapter.up]
    return trained
