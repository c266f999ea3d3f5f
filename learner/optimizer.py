"""AdamW and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from learner.config import OptimizerConfig


def adamw(module: nn.Module, config: OptimizerConfig, *, clips: bool) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; weight decay spares vectors (norm weights and biases).

    With `clips` it is a `ClippedAdamW`, for engines that measure and clip the gradient norm nowhere else.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    if clips:
        return ClippedAdamW(groups, max_grad_norm=config.max_grad_norm, **settings)
    return torch.optim.AdamW(groups, **settings)


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips the gradients in place before it uses them, and tells their norm."""

    def __init__(self, groups: list[dict[str, Any]], *, max_grad_norm: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.max_grad_norm = max_grad_norm
        self.grad_norm = 0.0
        """Norm of the last step's gradients before clipping."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients in place."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        loss: float | None = super().step(closure)
        return loss


def learning_rate(config: OptimizerConfig, *, step: int, total_steps: int) -> float:
    """Rate of update `step` (from 0): linear warm-up to `lr`, then the schedule, which would be 0 at `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1.0)
    match config.schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1.0 - done)
        case "cosine":
            return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
