"""What the notes of Metropolis samplers come to over many trajectories.

S steps of a trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rollout.records import Trajectory

NUM_PARTS = 10


def chain_numbers(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Numbers of token-level chains and of chains over runs; empty if no trajectory has any notes of one.

    `acceptance`: of the proposals that differed from the current token, the share that replaced it.
    `acceptance_by_progress`: the same for each tenth of the steps. `distinct`: mean |U|. `candidate_forwards`: share of
    all forwards. `chain_acceptance`: as `acceptance`, for runs. `chain_effective_size`: mean of (sum W)^2 / sum W^2
    over chains of `chain_runs` runs.
    """
    noted = [trajectory for trajectory in trajectories if "proposed" in trajectory.notes]
    if not noted:
        return {}
    proposed, accepted, distinct, extra = (
        np.concatenate([trajectory.notes[name] for trajectory in noted])
        for name in ("proposed", "accepted", "distinct", "extra_forwards")
    )
    part = np.concatenate([np.arange(t.num_steps) * NUM_PARTS // max(t.num_steps, 1) for t in noted])
    numbers: dict[str, Any] = {
        "acceptance": _share(accepted, proposed),
        "acceptance_by_progress": [_share(accepted[part == n], proposed[part == n]) for n in range(NUM_PARTS)],
        "distinct": float(distinct.mean()) if len(distinct) else math.nan,
        "candidate_forwards": _share(extra, np.array([trajectory.num_forwards for trajectory in noted])),
    }
    runs = [trajectory.notes for trajectory in noted if "chain_index" in trajectory.notes]
    if runs:
        tried = np.concatenate([np.full(len(n["chain_index"]), n["chain_log_weight"].shape[1] - 1) for n in runs])
        numbers |= {
            "chain_acceptance": _share(np.concatenate([notes["chain_accepted"] for notes in runs]), tried),
            "chain_effective_size": float(np.concatenate([notes["chain_effective_size"] for notes in runs]).mean()),
            "chain_runs": float(tried.mean() + 1),
        }
    return numbers


def _share(above: np.ndarray, below: np.ndarray) -> float:
    return float(above.sum() / below.sum()) if below.sum() else math.nan
