"""Settings of tasks and of the grader pool."""

from __future__ import annotations

from typing import Literal

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


class ShapingConfig(BaseModel):
    """What a score becomes before answers are compared (`reward.shaping`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_weight: float = 0.0
    """Added for an answer of the right form: this times the grader's `format` part."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken from an answer that fills every slot; shorter ones in proportion."""
    overlong_slots: int = Field(default=0, ge=0)
    """Last slots of the canvas in which an answer is punished more with every slot (DAPO); 0: none."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """Taken from an answer that fills all of them."""
    truncated: Literal["score", "drop"] = "score"
    """Answers without an end token: scored like any other, or left out of their group and counted."""


class RewardConfig(BaseModel):
    """The grader pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=0.25, ge=0)
    timeout_s: float = Field(default=60, gt=0)
    """Deadline for one batch of answers on a grader; a late grader is a failure, never a score."""
    max_retries: int = Field(default=1, ge=0)
    shaping: ShapingConfig = ShapingConfig()
