"""Groups become updates: advantages, likelihoods, objectives, SFT and the DeepSpeed engine.

Names are imported when first used, so that `learner.config` and `learner.records` can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.advantage import group_advantages as group_advantages
    from learner.engine import LearnerEngine as LearnerEngine
    from learner.likelihood import sequence_logprobs as sequence_logprobs
    from learner.records import BatchStats as BatchStats
    from learner.records import Sample as Sample
    from learner.records import balance as balance
    from learner.sft import SftExample as SftExample
    from learner.update import policy_update as policy_update

_HOME = {
    "BatchStats": "learner.records",
    "LearnerEngine": "learner.engine",
    "Sample": "learner.records",
    "SftExample": "learner.sft",
    "balance": "learner.records",
    "group_advantages": "learner.advantage",
    "policy_update": "learner.update",
    "sequence_logprobs": "learner.likelihood",
}
__all__ = [
    "BatchStats",
    "LearnerEngine",
    "Sample",
    "SftExample",
    "balance",
    "group_advantages",
    "policy_update",
    "sequence_logprobs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'learner' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
