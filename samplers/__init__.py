"""Which masked slots to commit next, and with which tokens. Pure torch; imports no other room.

Names are resolved on first use, so that `samplers.config` can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samplers.records import BlockState as BlockState
    from samplers.records import Commit as Commit
    from samplers.records import Evaluate as Evaluate
    from samplers.records import ProbeSpec as ProbeSpec
    from samplers.records import StepSampler as StepSampler
    from samplers.registry import build as build
    from samplers.registry import names as names
    from samplers.registry import options as options
    from samplers.sampler import Sampler as Sampler

_HOME = {
    "BlockState": "samplers.records",
    "Commit": "samplers.records",
    "Evaluate": "samplers.records",
    "ProbeSpec": "samplers.records",
    "Sampler": "samplers.sampler",
    "StepSampler": "samplers.records",
    "build": "samplers.registry",
    "names": "samplers.registry",
    "options": "samplers.registry",
}
__all__ = ["BlockState", "Commit", "Evaluate", "ProbeSpec", "Sampler", "StepSampler", "build", "names", "options"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'samplers' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
