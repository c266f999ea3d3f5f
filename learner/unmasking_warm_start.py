"""Warm start of an unmasking policy: it imitates the threshold sampler before it is trained by reinforcement.

Ours. From the published start (every slot with the same probability) the first thing that a policy learns is to commit
more or less everywhere; in a short run it ends at one of the two extremes, where all answers of a group are alike and
nothing is learnt any more. A policy that begins as a soft threshold differs from slot to slot from the first round on.

M steps, T response slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from learner.unmasking_config import PolicyConfig, WarmStartConfig
from learner.unmasking_update import make_networks, observe_of


def warm_start(environment: Any, config: PolicyConfig, *, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a policy that commits what a threshold commits; one round of the environment is decoded for it.

    Minimises the cross-entropy between sigmoid(b_k) and the threshold's choice, smoothed, over the eligible slots.
    """
    warm = config.warm_start
    assert warm is not None
    steps = _decoded(environment, warm)
    (network,) = make_networks(config.model_copy(update={"alphas": (0.0,)}), seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=warm.lr, betas=config.betas, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    size = len(steps["masked"])
    for _ in range(warm.passes):
        for index_m in torch.randperm(size, generator=generator).split(64):
            part = {name: value[index_m] for name, value in steps.items()}
            logit_mT = network(*observe_of(part))
            eligible_mT = part["eligible"].bool()
            target_mT = torch.where(part["chosen"].bool(), 1 - warm.smoothing, warm.smoothing)
            loss = F.binary_cross_entropy_with_logits(logit_mT[eligible_mT], target_mT[eligible_mT])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _decoded(environment: Any, warm: WarmStartConfig) -> dict[str, torch.Tensor]:
    """Every step of a round decoded by the threshold, and what it chose; where it chose nothing, the best slot goes on
    but is not imitated: that is the sampler's fallback."""
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("prob", "masked", "eligible", "valid", "elapsed", "chosen")
    }
    environment.begin(0, 0, 1)
    while (seen := environment.observe()) is not None:
        chosen_RT = seen["eligible"] & (seen["prob"][:, :, 0] >= warm.tau)
        best_RT = np.zeros_like(chosen_RT)
        confidence_RT = np.where(seen["eligible"], seen["prob"][:, :, 0], -1.0)
        best_RT[np.arange(len(best_RT)), confidence_RT.argmax(axis=1)] = True
        live_R = seen["eligible"].any(axis=1)
        for name, value in {**seen, "chosen": chosen_RT}.items():
            parts[name].append(value[live_R])
        empty_R1 = ~chosen_RT.any(axis=1, keepdims=True)
        environment.act((np.where(empty_R1, best_RT & seen["eligible"], chosen_RT)).astype(np.int64))
    return {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}
