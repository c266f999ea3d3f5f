"""Settings of the learner: advantage, likelihood, objective, optimizer and DeepSpeed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ObjectiveConfig(BaseModel):
    """GRPO's clipped objective (methods of GRPO, JustGRPO, Dr. GRPO and DAPO are settings of it)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    advantage: Literal["mean", "std", "loo"] = "mean"
    """Score minus the group mean; divided by the group's standard deviation; or minus the mean of the others."""
    likelihood: Literal["trace_exact", "ar_exact"] = "trace_exact"
    """`trace_exact` replays the step map; `ar_exact` scores left to right (JustGRPO; rollouts must use `ar`)."""
    clip_low: float = Field(default=0.2, ge=0)
    clip_high: float = Field(default=0.2, ge=0)
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the k3 estimate of the divergence from the frozen starting weights; 0 keeps no reference model."""
    normaliser: Literal["token", "sequence", "fixed"] = "sequence"
    """Mean over all scored tokens; mean over samples of the mean over tokens; or the sum over tokens / T."""
    importance: Literal["none", "token", "step", "sequence"] = "none"
    """Truncated importance weights for answers that other weights or an approximate cache drew: one a token, one a
    denoising step (product over its tokens), or one an answer (product over all; one more pass without gradients)."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest importance weight."""
    num_epochs: int = Field(default=1, ge=1)
    """Optimizer updates per rollout batch (inner epochs)."""
    min_valid: int = Field(default=2, ge=2)
    """Groups with fewer graded answers are dropped and counted."""


class AgdoConfig(BaseModel):
    """Attention-guided order and influence (AGDO), for reinforcement learning and for supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots_per_rank: int = Field(default=1, ge=1)
    """Slots that the greedy order takes at once (n of Algorithm 1)."""
    block_length: int | None = Field(default=None, ge=1)
    """Blocks of the order (m), counted from the first response slot; none: the whole response is one block.
    Block-causal families use the blocks of their attention instead."""
    within_block: bool = False
    """Order each block knowing the prompt and earlier blocks only; off, as published, one order of all slots is made
    and then sorted by block, so a slot's place in it may rest on slots that are still masked."""
    num_canvases: int | None = Field(default=15, ge=1)
    """Consecutive steps are merged into at most this many canvases an answer (published: 15 for reinforcement
    learning, 39 for fine-tuning); none: a canvas a step."""
    rate_low: float = Field(default=0.1, ge=0, le=1)
    """Each slot of a step is masked and scored with its own probability, drawn evenly from here to `rate_high`."""
    rate_high: float = Field(default=0.9, gt=0, le=1)
    empty: Literal["redraw", "skip"] = "redraw"
    """Masks without a slot: drawn again, or the canvas left out (which loses half of the tokens at one slot a step)."""
    layers: Literal["last", "all"] | tuple[int, ...] = "last"
    """Layers whose attention is averaged."""
    influence_cap: float | None = Field(default=None, gt=0)
    """Largest influence of a slot; none: as it is, so that an attention sink may dominate."""
    normalise_influence: bool = False
    """Divide the influences of an answer by their mean."""

    @model_validator(mode="after")
    def _check_rates(self) -> AgdoConfig:
        if self.rate_low > self.rate_high:
            raise ValueError(f"rate_low {self.rate_low} is above rate_high {self.rate_high}: swap them")
        return self


class OptimizerConfig(BaseModel):
    """AdamW with warm-up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(default=1e-6, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the rate goes on after the warm-up; cosine and linear end at 0 with the last step."""
    max_grad_norm: float = Field(default=1.0, gt=0)


class EngineConfig(BaseModel):
    """DeepSpeed and the bound on memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_ranks: int = Field(default=1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass; bfloat16 keeps float32 master weights."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens in one forward and backward pass: the bound on activation memory."""
    activation_checkpointing: bool | Literal["auto"] = "auto"
    """Keep only each layer's input and compute the layer again in the backward pass (true, on), or keep everything
    (false, off). auto: only if a micro-batch of `micro_batch_tokens` would not fit into memory otherwise."""
    overlap_comm: bool | Literal["auto"] = "auto"
    """Reduce gradients over ranks while the backward pass goes on; takes a second gradient bucket (1 GB in bfloat16).
    auto: on GPUs with more than one rank. CPUs have no streams to overlap, so there it must not be true."""
    cpus_per_rank: float = Field(default=1, ge=0)
    gpus_per_rank: float = Field(default=0, ge=0)
    threads_per_rank: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=1800, gt=0)
    """Deadline for one update."""
    start_timeout_s: float = Field(default=600, gt=0)


class LearnerConfig(BaseModel):
    """Everything that decides an update."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
