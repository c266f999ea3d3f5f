"""Canvases in, trajectories out: the denoising engine, its records, its worker.

Names are resolved on first use, so that `rollout.config` and `rollout.records` can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollout.engine import Engine as Engine
    from rollout.records import Failed as Failed
    from rollout.records import Group as Group
    from rollout.records import Prompt as Prompt
    from rollout.records import Scored as Scored
    from rollout.records import Trajectory as Trajectory
    from rollout.request import Request as Request
    from rollout.request import sequence_seed as sequence_seed

_HOME = {
    "Engine": "rollout.engine",
    "Failed": "rollout.records",
    "Group": "rollout.records",
    "Prompt": "rollout.records",
    "Request": "rollout.request",
    "Scored": "rollout.records",
    "Trajectory": "rollout.records",
    "sequence_seed": "rollout.request",
}
__all__ = ["Engine", "Failed", "Group", "Prompt", "Request", "Scored", "Trajectory", "sequence_seed"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rollout' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
