"""Settings of the model that is trained and served."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LoraConfig(BaseModel):
    """Low-rank adapters by peft; the backbone's own weights stay frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale numerator: the adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the stock backbone that get an adapter."""


class ModelConfig(BaseModel):
    """Which checkpoint, in which precision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = "tiny"
    """A folder in the published layout, a hub id, or `tiny` for the built-in model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig | None = None
    max_length: int | None = Field(default=None, ge=1)
    """Longest prompt plus answer in tokens; the model's own window if not given."""
