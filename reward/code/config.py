"""Settings of code grading."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from reward.sandbox.config import SandboxConfig


class CodeConfig(BaseModel):
    """How programs are graded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sandbox: SandboxConfig = SandboxConfig()
    """Isolation and limits of a candidate's program."""
    num_slots: int = Field(default=1, ge=1)
    """Programs graded at the same time in one grader; each slot has a jail for programs and one for tests."""
    value: Literal["correct", "fraction"] = "correct"
    """What the reward is: 1 only if every test passes, or the share of tests that pass. Both are recorded."""
    num_hidden_tests: int = Field(default=0, ge=0)
    """Tests of a row, from its last one, that the prompt does not show; one is always shown. They count too."""
