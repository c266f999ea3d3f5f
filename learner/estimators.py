"""Estimators by name: what turns answers into canvases.

`learner.replay` rebuilds canvases from the step map, `learner.mask_estimators` draws masks, `learner.agdo` follows
attention; `learner.objective_config.LIKELIHOODS` says what each can be combined with.

Random ones draw from (seed of the answer, number of the draw) alone: neither the number of ranks nor micro-batches nor
the global random state have a part in it, and the same draw gives the same masks to every pass of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from learner import mask_estimators, replay
from learner.agdo import Guide, guided_masks
from learner.mask_estimators import by_block
from learner.objective_config import LIKELIHOODS, AgdoConfig, EstimatorConfig, ObjectiveConfig
from learner.plan import Canvas
from models import Family
from rollout.records import Trajectory

Drawn = Callable[[Trajectory, np.ndarray, EstimatorConfig, np.random.Generator], list[Canvas]]

_DRAWN: dict[str, Drawn] = {
    "trace_sampled": replay.trace_sampled,
    "one_step": mask_estimators.one_step,
    "coupled": mask_estimators.coupled,
    "random_mask": mask_estimators.random_mask,
    "elbo": mask_estimators.elbo,
    "elbo_pair": mask_estimators.elbo_pair,
    "block_mask": mask_estimators.block_mask,
}
_AS_DRAWN = ("trace_exact", "ar_exact", "ar_fast", "trace_sampled")
"""Their canvases are those of the rollout, also where a block-causal family is asked for something else."""


def canvases_of(
    trajectory: Trajectory,
    wanted_T: np.ndarray,
    objective: ObjectiveConfig,
    *,
    family: Family,
    draw: int = 0,
    guide: Guide | None = None,
) -> list[Canvas]:
    """Canvases that score the wanted slots (bool) of one answer, of those that the estimator does not leave out.

    `draw` numbers the sets of masks of one update; `guide` is needed by `agdo`.
    """
    name, config = objective.likelihood, objective.estimator
    if name == "trace_exact":
        found = replay.trace_exact(trajectory, wanted_T)
    elif name == "ar_exact":
        found = replay.ar_exact(trajectory, wanted_T)
    elif name == "ar_fast":
        found = replay.ar_fast(trajectory, wanted_T, config)
    elif name == "trace_merged":
        found = replay.trace_merged(trajectory, wanted_T, config)
    else:
        random = np.random.default_rng([abs(trajectory.seed), draw, sorted(LIKELIHOODS).index(name)])
        if name == "agdo":
            assert guide is not None
            found = guided(guide, random, objective.agdo)
        else:
            found = _DRAWN[name](trajectory, wanted_T, config, random)
    return by_block(trajectory, found) if family.block_causal and name not in _AS_DRAWN else found


def guided(guide: Guide, random: np.random.Generator, config: AgdoConfig) -> list[Canvas]:
    """Canvases of the attention-guided order: of each step a random part, later steps hidden."""
    masks = guided_masks(guide.step_T, guide.num_steps, random, config=config)
    return [replay.plain_canvas(masked_T, scored_K) for masked_T, scored_K in masks]


def wanted_of(trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
    """The slots that an objective may train."""
    return [trajectory.scored for trajectory in trajectories]
