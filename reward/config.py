"""Settings of tasks and of the grader pool."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from reward.code.config import CodeConfig


class TaskConfig(BaseModel):
    """One task of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """One of `reward.names()`."""
    train_file: str | None = None
    """Training rows in the task's published format; the task's own rows (generated or bundled) if not given."""
    test_file: str | None = None
    """Held-out rows, likewise."""
    num_train_rows: int = Field(default=4096, ge=1)
    """Rows to generate where the task generates its training rows."""
    seed: int = Field(default=0, ge=0)
    """Seed of generated rows."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task in a step's prompts, relative to the other tasks."""
    code: CodeConfig = CodeConfig()
    """How a task whose answers are programs runs and grades them; other tasks do not read it."""


class RewardConfig(BaseModel):
    """The grader pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=0.25, ge=0)
    timeout_s: float = Field(default=60, gt=0)
    """Deadline for one batch of answers on a grader; a late grader is a failure, never a score."""
    max_retries: int = Field(default=1, ge=0)
