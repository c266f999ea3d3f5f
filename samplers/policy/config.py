"""Settings of an unmasking policy; read without loading torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LawName = Literal["bernoulli", "dpls"]
Fallback = Literal["logit", "confidence"]


class NetworkConfig(BaseModel):
    """Sizes of the policy network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=128, ge=4)
    num_heads: int = Field(default=2, ge=1)
    """The width must be a multiple of twice this number."""
    ffn_width: int = Field(default=512, ge=1)
    num_probs: int = Field(default=1, ge=1)
    """Probabilities of a slot that the policy sees, highest first."""
    output_bias: float = -2.0
    """Logit of committing a slot before any training."""
    sees_mask: bool = True
    """Whether it is told which slots are masked (an ablation if not)."""
    sees_time: bool = True
    """Whether it is told the elapsed fraction of the steps (an ablation if not)."""


class PolicySettings(BaseModel):
    """What the weights of a trained policy need beside themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkConfig = NetworkConfig()
    law: LawName = "bernoulli"
    """The action law that it was trained with."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the law at test time."""
    fallback: Fallback = "logit"
    """Which slot is committed where the law commits none: that of the highest logit, or of the highest probability."""
    trained: dict[str, str | int | float | None] = Field(default_factory=dict)
    """How it was trained: model, tasks, alpha, block length, updates, seed."""
