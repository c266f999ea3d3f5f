"""Estimators that replay how an answer was made: canvases from its step map.

    trace_exact        step s: masked where step_map >= s, scored the slots of step s
    ar_exact           slot k: masked from k on, scored slot k
    ar_fast(share)     the canvases of `ar_exact` for the slots of highest entropy at rollout
    trace_merged(c)    the canvas of the first of c consecutive steps, scored the slots of all c
    trace_sampled(n)   n steps of `trace_exact`, drawn with probability q, weighted by 1 / (n q)

`trace_exact` is exact for every position-first sampler, parallel commits included, `ar_exact` (JustGRPO, 2601.15165)
for answers drawn left to right. For a rule that chooses positions from the prediction the recorded order is a
condition, not part of the likelihood: the gradient ignores that other weights would rank the slots otherwise. `ar_fast`
(JustGRPO-Fast) leaves out slots that hardly could have been otherwise. `trace_merged` (TraceRL's shrink, 2509.06949;
d2's StepMerge, 2509.21474) scores later steps before their context is there. `trace_sampled` (AGRPO, 2510.04019) is
unbiased for `trace_exact`; its published form is ours divided by the number of steps.

All keep a slot that was never committed (step_map = S) masked in every canvas.

Symbols: K scored slots of one canvas, S distinct steps of the wanted slots, T response slots, n draws.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from learner.plan import Canvas
from rollout.records import Trajectory

if TYPE_CHECKING:
    from learner.objective_config import EstimatorConfig  # needs pydantic, which likelihoods do without

EVEN_SHARE = 0.1
"""Of the draws of `step_law: entropy`, so that a step of certain tokens is drawn too and no weight passes 10."""


def trace_exact(trajectory: Trajectory, wanted_T: np.ndarray) -> list[Canvas]:
    """One canvas a denoising step, as it was."""
    require_exact(trajectory)
    step_map = trajectory.step_map
    steps = np.unique(step_map[wanted_T])
    return [plain_canvas(step_map >= step, np.flatnonzero(wanted_T & (step_map == step))) for step in steps]


def ar_exact(trajectory: Trajectory, wanted_T: np.ndarray) -> list[Canvas]:
    """One canvas a slot, everything from it on masked."""
    require_exact(trajectory)
    _require_left_to_right(trajectory, "ar_exact")
    return _left_to_right(trajectory, np.flatnonzero(wanted_T))


def ar_fast(trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig) -> list[Canvas]:
    """The canvases of the ceil(share * wanted) slots of highest recorded entropy; ties to the lower slot."""
    require_exact(trajectory)
    _require_left_to_right(trajectory, "ar_fast")
    slot_K = np.flatnonzero(wanted_T)
    # As a fraction, ceil(0.1 * 30) is 4: the product is rounded before it is rounded up.
    num_kept = math.ceil(round(config.kept_share * len(slot_K), 6))
    kept = np.argsort(-trajectory.entropies[slot_K], kind="stable")[:num_kept]
    return _left_to_right(trajectory, np.sort(slot_K[kept]))


def trace_merged(trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig) -> list[Canvas]:
    """One canvas for each run of consecutive distinct steps, as it was before the first of them."""
    require_exact(trajectory)
    step_map = trajectory.step_map
    steps = np.unique(step_map[wanted_T])
    num_groups = math.ceil(len(steps) / config.merged_steps)
    if config.num_canvases is not None:
        num_groups = min(config.num_canvases, len(steps))
        groups = np.array_split(steps, num_groups) if num_groups else []
    else:
        groups = [steps[i * config.merged_steps : (i + 1) * config.merged_steps] for i in range(num_groups)]
    return [plain_canvas(step_map >= group[0], np.flatnonzero(wanted_T & np.isin(step_map, group))) for group in groups]


def trace_sampled(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """The canvases of n drawn steps; a step that is drawn more than once counts as often.

    The draws are systematic (one uniform number, n points at equal distance), which leaves each of them with the law q
    and spreads them over the steps; n = S even draws are every step once.
    """
    canvases = trace_exact(trajectory, wanted_T)
    if not canvases:
        return []
    law_S = np.ones(len(canvases))
    if config.step_law == "entropy":
        law_S = np.array([trajectory.entropies[canvas.slot_K].sum(dtype=np.float64) for canvas in canvases])
        law_S = np.ones(len(canvases)) if law_S.sum() <= 0 else law_S / law_S.sum()
        law_S = (1 - EVEN_SHARE) * law_S + EVEN_SHARE / len(canvases)
    law_S = law_S / law_S.sum()
    point_n = (random.random() + np.arange(config.num_draws)) / config.num_draws
    drawn_n = np.minimum(np.searchsorted(np.cumsum(law_S), point_n, side="right"), len(law_S) - 1)
    drawn, counts = np.unique(drawn_n, return_counts=True)
    return [
        weighted_canvas(canvases[i].masked_T, canvases[i].slot_K, count / (config.num_draws * law_S[i]))
        for i, count in zip(drawn.tolist(), counts.tolist(), strict=True)
    ]


def plain_canvas(masked_T: np.ndarray, slot_K: np.ndarray) -> Canvas:
    """A canvas whose slots have weight 1."""
    return weighted_canvas(masked_T, slot_K, 1.0)


def weighted_canvas(
    masked_T: np.ndarray, slot_K: np.ndarray, weight: float, prompt_masked_P: np.ndarray | None = None
) -> Canvas:
    """A canvas whose slots have one weight."""
    return Canvas(masked_T, slot_K, np.full(len(slot_K), weight, dtype=np.float32), prompt_masked_P)


def require_exact(trajectory: Trajectory) -> None:
    """Refuse answers whose tokens were not drawn from a law that a rebuilt canvas gives."""
    if not trajectory.exact_likelihood:
        raise ValueError(
            f"sampler {trajectory.sampler!r} does not draw its tokens from the law that a rebuilt canvas gives, so its "
            "answers have no exact likelihood at temperature > 0; use a position-first sampler: ar, random, "
            "confidence, margin, entropy or threshold"
        )
    if (trajectory.top_p < 1 or trajectory.top_k > 0) and trajectory.temperature > 0:
        cut = f"top_p is {trajectory.top_p}" if trajectory.top_p < 1 else f"top_k is {trajectory.top_k}"
        raise ValueError(
            f"{cut}: the law drawn from was cut off, and other weights would cut it off elsewhere; answers to be "
            "scored must be drawn with temperature alone (top_p: 1, top_k: 0)"
        )


def _left_to_right(trajectory: Trajectory, slots: np.ndarray) -> list[Canvas]:
    slot_T = np.arange(len(trajectory.tokens))
    return [plain_canvas(slot_T >= slot, np.array([slot])) for slot in slots]


def _require_left_to_right(trajectory: Trajectory, name: str) -> None:
    num_committed = int(trajectory.committed.sum())
    if not np.array_equal(trajectory.step_map[:num_committed], np.arange(num_committed)):
        raise ValueError(
            f"likelihood {name!r} needs answers drawn left to right, one token a step, but sampler "
            f"{trajectory.sampler!r} committed its first slots at steps {trajectory.step_map[:8].tolist()}: use "
            "sampler 'ar' with tokens_per_step 1, or likelihood 'trace_exact'"
        )
