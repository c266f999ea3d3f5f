"""The objectives that are compared, as settings of `learner.objective` and of the rollout's sampler.

Each is the published method's likelihood, advantage, clip, divergence and normaliser; what belongs to a large model
(learning rate, adapter ranks, lengths) is not carried over, and is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from learner.config import ObjectiveConfig


@dataclass(frozen=True)
class Arm:
    """One method."""

    objective: Mapping[str, Any]
    sampler: str = "confidence"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ObjectiveConfig:
        """The checked settings."""
        return ObjectiveConfig.model_validate(self.objective)


def _agdo(delta: float) -> Arm:
    # One slot a rank, one block: each canvas of the 8 scores a random part of two or three consecutive slots.
    return Arm(
        {
            "likelihood": "agdo",
            "advantage": "std",
            "influence": delta,
            "normaliser": "canvas",
            "kl_coef": 0.01,
            "kl_anchor": "phase_start",
            "agdo": {"slots_per_rank": 1, "num_canvases": 8},
        }
    )


ARMS: dict[str, Arm] = {
    "JustGRPO": Arm({"likelihood": "ar_exact", "advantage": "std", "normaliser": "sequence"}, sampler="ar"),
    "JustGRPO-Fast": Arm({"likelihood": "ar_fast", "advantage": "std", "normaliser": "sequence"}, sampler="ar"),
    "exact trace": Arm({"likelihood": "trace_exact", "advantage": "std", "normaliser": "sequence"}),
    "diffu-GRPO": Arm(
        {
            "likelihood": "one_step",
            "advantage": "mean",
            "normaliser": "token",
            "clip_low": 0.5,
            "clip_high": 0.5,
            "num_epochs": 2,
            "redraw_masks": True,
        }
    ),
    "coupled-GRPO": Arm(
        {
            "likelihood": "coupled",
            "advantage": "loo",
            "normaliser": "token",
            "clip_low": 0.5,
            "clip_high": 0.5,
            "num_epochs": 2,
            "redraw_masks": True,
        }
    ),
    "TraceRL": Arm(
        {
            "likelihood": "trace_merged",
            "advantage": "std",
            "normaliser": "canvas",
            "kl_coef": 0.01,
            "kl_anchor": "phase_start",
            "estimator": {"num_canvases": 8},
        }
    ),
    "AGDO-RL delta 0": _agdo(0.0),
    "AGDO-RL delta 1": _agdo(1.0),
    "AGDO-RL delta 3": _agdo(3.0),
    "AGDO-RL delta 10": _agdo(10.0),
    "ESPO": Arm(
        {
            "likelihood": "elbo_pair",
            "advantage": "mean",
            "ratio": "sequence",
            "num_epochs": 2,
            "redraw_masks": True,
            "estimator": {"num_draws": 1},
        }
    ),
    "SPG": Arm(
        {
            "likelihood": "block_mask",
            "advantage": "mean",
            "loss": "bounds",
            "normaliser": "token",
            "estimator": {"num_draws": 2},
        }
    ),
    "wd1": Arm(
        {
            "likelihood": "one_step",
            "advantage": "softmax",
            "loss": "likelihood",
            "normaliser": "fixed",
            "num_epochs": 2,
            "redraw_masks": True,
        }
    ),
}
"""Names as the table shows them."""
