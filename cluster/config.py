"""The recipe: one nested record of settings, each defined beside the class that it configures."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.chat_rows import ChatData
from learner.config import LearnerConfig
from learner.sft_config import SftConfig
from learner.unmasking_config import PolicyConfig
from models.config import ModelConfig
from reward.config import RewardConfig, TaskConfig
from rollout.config import EvalConfig, RolloutConfig

PlacementKind = Literal["spread", "split", "colocated"]


class ClusterConfig(BaseModel):
    """Where the actors live."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["ray", "local"] = "ray"
    """`ray`: actors on a Ray cluster. `local`: the same classes in this process, for a debugger."""
    address: str = "local"
    """`local` starts Ray on this machine; `auto` joins the running cluster; or an address. A submitted job joins the
    cluster it was submitted to, whatever stands here."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs that a Ray started here offers; all of the machine's if not given."""
    placement: PlacementKind = "spread"
    """Where rollout workers go: over all machines (`spread`), near the learner on GPUs of their own (`split`), or on
    the learner's GPUs, each worker with a share of one (`colocated`)."""
    placement_timeout_s: float = Field(default=120, gt=0)
    start_timeout_s: float = Field(default=600, gt=0)
    """Deadline for an actor to load its model."""
    max_learner_restarts: int = Field(default=3, ge=0)
    """How often the learner may be started anew without a checkpoint in between."""
    stall_timeout_s: float = Field(default=7200, gt=0)
    """A run in which nothing has ended for so long says what everybody waits for and ends."""


class CheckpointConfig(BaseModel):
    """When to save and how much to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: only after the last step."""
    keep: int = Field(default=2, ge=1)


class TrackingConfig(BaseModel):
    """MLflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = None
    """Tracking store; `sqlite:///<runs_dir>/mlflow.db` if not given."""
    experiment: str = "unmask"
    num_sample_rows: int = Field(default=16, ge=0)
    """Answers shown in the sample table of a step that logs one."""
    samples_every: int = Field(default=10, ge=1)


class _Run(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the run and of its folder under `runs_dir`."""
    seed: int = Field(default=0, ge=0)
    runs_dir: str = "runs"
    model: ModelConfig = ModelConfig()
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()


class TrainRecipe(_Run):
    """`unmask train`: reinforcement learning from graded rollouts."""

    steps: int = Field(default=100, ge=1)
    """Policy updates."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups per update (B)."""
    staleness: int = Field(default=0, ge=0)
    """Weight versions by which rollouts may lag behind the learner; 0 is synchronous."""
    max_in_flight: int | None = Field(default=None, ge=1)
    """Prompts that are answered and graded at once; all that the staleness allows if not given."""
    max_buffer_bytes: int | None = Field(default=2**32, ge=1)
    """No prompt is drawn while the groups that wait for the learner take more; null: no bound."""
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()


class SftRecipe(_Run):
    """`unmask sft`: supervised fine-tuning on the tasks' own solutions, on conversations, or on both."""

    tasks: tuple[TaskConfig, ...] = ()
    """Their solutions are examples, and their held-out rows are answered and graded at every evaluation."""
    data: tuple[ChatData, ...] = ()
    """Conversations and question-answer rows, from JSONL files or through the `datasets` library."""
    sft: SftConfig = SftConfig()
    learner: LearnerConfig = LearnerConfig()

    @model_validator(mode="after")
    def _has_rows(self) -> SftRecipe:
        if not self.tasks and not self.data:
            raise ValueError("there is nothing to learn from: give tasks, data, or both")
        return self


class PolicyRecipe(_Run):
    """`unmask policy`: reinforcement learning of an unmasking policy, the model frozen."""

    policy: PolicyConfig = PolicyConfig()
