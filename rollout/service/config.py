"""Settings of the service."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EngineConfig(BaseModel):
    """Settings of one engine replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch_tokens: int = Field(default=16384, ge=1)
    """Canvas tokens denoised at once."""
    max_batch_rows: int = Field(default=64, ge=1)
    """Sequences denoised at once."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest canvas; the model's window if not given."""
    max_waiting: int = Field(default=512, ge=1)
    """Sequences that may wait for a place; a request beyond them is refused with 503."""
    max_loaded: int = Field(default=4, ge=1)
    """Models kept loaded at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(default=1, ge=1)
    """Threads of matrix products on a CPU."""


class Limits(BaseModel):
    """What one request, and all requests together, may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(default=1 << 20, ge=64)
    """Larger bodies are refused with 413."""
    body_timeout_s: float = Field(default=10.0, gt=0)
    """Time to send a body; slower clients get 408."""
    max_prompt_chars: int = Field(default=65536, ge=1)
    max_prompts: int = Field(default=64, ge=1)
    """Prompts of one completion request."""
    max_samples: int = Field(default=64, ge=1)
    """Answers to one request, over all its prompts."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Slots of one answer."""
    max_concurrent: int = Field(default=256, ge=1)
    """Requests under way; one more is refused with 429."""
    request_timeout_s: float = Field(default=120.0, gt=0)
    """Time for one request."""


class ServiceConfig(BaseModel):
    """Settings of the HTTP side."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: Limits = Limits()
    cors_origins: tuple[str, ...] = ()
    """Web origins that browsers may call from; none by default."""
