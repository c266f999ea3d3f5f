"""Settings of answer generation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rollout.cache_policy import CacheKind, CachePolicy, Refresh
from samplers.config import SamplerConfig

_POLICY = CachePolicy()


class CacheConfig(BaseModel):
    """Reuse of keys and values between forwards; a kind alone stands for the kind with the default refresh rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: CacheKind = _POLICY.kind
    """`none` and, in block-causal families, `block` are exact; `prefix` and `dual` change what is drawn."""
    refresh: Refresh = _POLICY.refresh
    """What `prefix` and `dual` compute again when a sequence enters a block."""
    window: int = Field(default=_POLICY.window, ge=0)
    """Positions on either side of the block that `window` and `drift` compute again."""
    drift: float = Field(default=_POLICY.drift, ge=0)
    """Mean turn of the keys (1 - cosine) above which `drift` computes the whole canvas."""
    period: int | None = Field(default=_POLICY.period, ge=1)
    """Steps inside a block after which the refresh is repeated; never if not given."""

    def policy(self) -> CachePolicy:
        """The same for the engine."""
        return CachePolicy(**dict(self))


def _kind_alone(given: Any) -> Any:
    return {"kind": given} if isinstance(given, str) else given


class DecodingConfig(BaseModel):
    """How one answer is denoised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampler: SamplerConfig = SamplerConfig()
    max_new_tokens: int = Field(default=32, ge=1)
    """Response slots of the canvas (T)."""
    block_length: int | None = Field(default=None, ge=1)
    """Slots per semi-autoregressive block; the whole answer (full diffusion) if not given. In a block-causal family it
    is the attention block, and the family's own if not given."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps for the whole answer; overrides the sampler's how-many rule with an even schedule."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Most likely tokens to draw from; 0 is all of them."""
    cache: Annotated[CacheConfig, BeforeValidator(_kind_alone)] = CacheConfig()
    """Reuse of keys and values between forwards: a kind (`none`, `block`, `prefix`, `dual`), or one with its rule."""


class RolloutConfig(DecodingConfig):
    """Decoding settings plus the worker pool that runs them."""

    num_samples: int = Field(default=8, ge=1)
    """Answers per prompt (G)."""
    num_workers: int = Field(default=1, ge=1)
    max_workers: int | None = Field(default=None, ge=1)
    """Workers that the pool may grow to in mid-run, as machines join the cluster or become free; num_workers if not
    given."""
    cpus_per_worker: float = Field(default=1, ge=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads of a worker's arithmetic; in a synchronous run the learner rests meanwhile, so all cores serve."""
    max_batch_tokens: int = Field(default=16384, ge=1)
    """Canvas tokens of all sequences that a worker denoises at once."""
    max_batch_rows: int = Field(default=1024, ge=1)
    """Sequences that a worker denoises at once."""
    compile_mode: Literal["off", "default", "graphs"] = "off"
    """Whether torch.compile fuses the layers (`default`) and replays them as CUDA graphs (`graphs`); for GPUs."""
    timeout_s: float = Field(default=600, gt=0)
    """Deadline for one batch of prompts on a worker."""
    max_retries: int = Field(default=2, ge=0)
    """How often prompts of a lost worker are sent to another one."""
    max_memory_growth: float | None = Field(default=2, gt=1)
    """A worker whose own memory is this many times what it was after its first batches, and a gigabyte above that, is
    replaced between two batches. null: never."""
    on_update: Literal["finish", "keep"] = "finish"
    """What a worker does with the answers under way when new weights come (staleness above 0): finish them with the
    old weights, or keep them and go on with the new ones; such an answer records both versions."""
    straggler_factor: float | None = Field(default=4, gt=1)
    """A call this many times slower than the median is made a second time on an idle worker; the first answer wins.
    null: never."""


class EvalConfig(DecodingConfig):
    """Evaluation inside a run, at fixed seeds; decoding is greedy unless told otherwise."""

    temperature: float = Field(default=0.0, ge=0)
    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    num_samples: int = Field(default=1, ge=1)
    limit: int | None = Field(default=256, ge=1)
    """Rows per task; all of them if null."""
