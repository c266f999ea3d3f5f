"""Settings of the training of unmasking policies (2512.09106)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samplers.policy.config import LawName, NetworkConfig

RewardForm = Literal["multiplicative", "additive"]


class ExpertConfig(BaseModel):
    """A confidence threshold in semi-autoregressive blocks, whose answers join every group (expert steering)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tau: float = Field(default=0.9, gt=0)
    """Least confidence of a parallel commit."""
    block_length: int = Field(default=32, ge=1)


class WarmStartConfig(BaseModel):
    """Imitation of a confidence threshold before the reinforcement learning (ours, not published)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tau: float = Field(default=0.8, gt=0)
    """Slots of at least this confidence are to be committed."""
    smoothing: float = Field(default=0.1, gt=0, lt=0.5)
    """Probability of the other choice that is aimed at: what exploration starts with."""
    prompts: int = Field(default=64, ge=1)
    """Prompts whose decoding is imitated; their rounds are not trained on later."""
    passes: int = Field(default=20, ge=1)
    """Passes over the recorded steps."""
    lr: float = Field(default=1e-3, gt=0)


class PolicyConfig(BaseModel):
    """One run: a policy for every alpha, on the same prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    updates: int = Field(default=100, ge=1)
    """Rounds of rollouts, each followed by `inner_updates` gradient steps."""
    alphas: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Weights of speed in the reward; a policy is trained for each. 0: accuracy only."""
    reward: RewardForm = "multiplicative"
    """`additive` pays for speed whatever the answer is; a baseline that collapses."""
    prompts_per_update: int = Field(default=16, ge=1)
    num_samples: int = Field(default=8, ge=2)
    """Answers of the policy to each prompt (G)."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Response slots (T), and the most steps of an answer."""
    block_length: int | None = Field(default=None, ge=1)
    """Slots per semi-autoregressive block; the whole answer (full diffusion) if not given."""
    eos_guard: bool | None = None
    """End guard of the samplers; on in full diffusion if not given."""
    empty_action: Literal["spend", "commit"] = "spend"
    """A step for which the policy chooses no slot: `spend` it, as published, or `commit` the most confident slot, as
    decoding does (for short answers, which would often run out of steps otherwise)."""
    experts: tuple[ExpertConfig, ...] = ()
    """Expert steering; for full diffusion only."""
    warm_start: WarmStartConfig | None = None
    """Begin with an imitation of the threshold sampler instead of the published start, from which a short run does not
    get far."""
    network: NetworkConfig = NetworkConfig()
    law: LawName = "bernoulli"
    lr: float = Field(default=3e-5, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: int = Field(default=100, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: float = Field(default=0.2, gt=0)
    """Largest norm of the gradient of one policy."""
    clip: float = Field(default=0.5, gt=0, lt=1)
    """Range of the per-step ratio: 1 - clip to 1 + clip."""
    inner_updates: int = Field(default=2, ge=1)
    """Gradient steps on each round."""
    micro_batch_rows: int = Field(default=2048, ge=1)
    """Steps (canvases) that the learner holds activations of at once."""
    num_env_runners: int = Field(default=0, ge=0)
    """Actors that draw rollouts; 0: in the driver."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the driver and of each actor."""
    max_batch_tokens: int = Field(default=65536, ge=1)
    """Canvas tokens that one environment denoises at once."""
    timeout_s: float = Field(default=600, gt=0)
    """Deadline for the rollouts of a round."""
    max_retries: int = Field(default=3, ge=0)
    """How often prompts of a lost actor are drawn again before the run breaks off."""
