"""An answer becomes `Scored` or `Failed`: tasks (rows, prompts, graders) and the worker that grades batches.

Public names load on first use, so that `reward.config` can be read without the tasks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward.config import RewardConfig, TaskConfig
    from reward.tasks import Task, names, task
    from reward.worker import GraderWorker

_HOMES = {
    "GraderWorker": "reward.worker",
    "RewardConfig": "reward.config",
    "Task": "reward.tasks",
    "TaskConfig": "reward.config",
    "names": "reward.tasks",
    "task": "reward.tasks",
}

__all__ = ["GraderWorker", "RewardConfig", "Task", "TaskConfig", "names", "task"]


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reward' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(_HOMES[name]), name)
