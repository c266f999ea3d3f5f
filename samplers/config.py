"""Settings of a sampler: which masked slots are committed next, how many, and how a token is drawn."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SamplerConfig(BaseModel):
    """A sampler by name; `options` go to `samplers.build`, which knows each sampler's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "confidence"
    """One of `samplers.names()`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that sampler, for instance `tokens_per_step: 2` or `tau: 0.9`."""
