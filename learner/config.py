"""Settings of the learner: advantage, likelihood, objective, optimizer and DeepSpeed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from learner.objective_config import AgdoConfig as AgdoConfig
from learner.objective_config import EstimatorConfig as EstimatorConfig
from learner.objective_config import ObjectiveConfig as ObjectiveConfig


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
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lives in CPU memory between its uses: the optimizer's states and master weights (ZeRO 1 to 3; the update is
    then computed on the CPU), or the parameters as well (ZeRO 3). Saves GPU memory and costs transfers."""
    overlap_comm: bool | Literal["auto"] = "auto"
    """Reduce gradients over ranks while the backward pass goes on; takes a second gradient bucket (1 GB in bfloat16).
    auto: on GPUs with more than one rank. CPUs have no streams to overlap, so there it must not be true."""
    cpus_per_rank: float = Field(default=1, ge=0)
    gpus_per_rank: float = Field(default=0, ge=0)
    threads_per_rank: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=1800, gt=0)
    """Deadline for one update."""
    start_timeout_s: float = Field(default=600, gt=0)


class GroupsConfig(BaseModel):
    """Which groups are trained on (`learner.groups`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on_uninformative: Literal["keep", "drop", "refill"] = "keep"
    """What happens to groups whose answers all have one score, or whose pass rate is outside `pass_rate`: `keep` them
    in the denominators, `drop` them, or `refill` their places with other prompts (DAPO's dynamic sampling)."""
    pass_rate: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest share of right answers of an informative group."""
    max_refills: float = Field(default=3.0, gt=0)
    """`refill`: at most this many times `prompts_per_step` in one step; after that groups are kept as they come."""

    @model_validator(mode="after")
    def _check(self) -> GroupsConfig:
        low, high = self.pass_rate
        if not 0 <= low <= high <= 1:
            raise ValueError(f"pass_rate [{low}, {high}] must be two shares, 0 <= low <= high <= 1")
        return self


class LearnerConfig(BaseModel):
    """Everything that decides an update."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: ObjectiveConfig = ObjectiveConfig()
    groups: GroupsConfig = GroupsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
