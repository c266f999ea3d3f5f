"""What one rank trains in one update: canvases with their masks drawn, and what is known of each scored slot.

Masks are drawn once and kept: the weights being trained, those at the start of the update and the reference see the
same canvases, in every inner epoch. `redraw_masks` draws a set for each epoch, all of them before the first step.

Symbols: M scored slots of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.agdo import Guide
from learner.config import ObjectiveConfig
from learner.estimators import canvases_of
from learner.guide import FinishedText
from learner.objective import influenced, normaliser_weights
from learner.plan import Canvas, CanvasPlan, micro_batches, num_computed, plan_given
from learner.records import BatchStats, Sample
from learner.terms import Slots, Terms, make_terms
from models import Family
from rollout.records import Trajectory


@dataclass
class Work:
    """The canvases of one set of masks; flat tensors live on the CPU, in the order of the plan."""

    objective: ObjectiveConfig
    plan: CanvasPlan
    groups: list[list[int]]
    temperature: float
    slots: Slots
    weight_M: torch.Tensor
    """Factor of each slot's own term: normaliser times the estimator's weight."""
    terms: Terms | None
    """What the objective sees in the place of slots; None if it is a sum over slots."""
    recorded_logprob_M: torch.Tensor
    old_logprob_M: torch.Tensor
    """Log-probabilities before the first step; of the first set of masks filled by the first epoch."""
    importance_M: torch.Tensor | None
    """Filled by the first epoch or before it; None where every weight is 1."""
    reference_logprob_M: torch.Tensor | None = None
    is_known: bool = False
    """Whether a pass without gradients has filled `old_logprob_M`."""
    gap_max: float = 0.0

    @property
    def num_canvases(self) -> int:
        """Canvases of one pass."""
        return len(self.plan.canvases)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in one pass."""
        return sum(num_computed(self.plan, group) for group in self.groups)


def trained_samples(samples: Sequence[Sample], objective: ObjectiveConfig) -> list[Sample]:
    """Samples that cost a pass: those with an advantage, and all if there is a divergence term."""
    trained = [sample for sample in samples if sample.advantage != 0 or objective.kl_coef > 0]
    _require_exact_cache([sample.trajectory for sample in trained], objective)
    for index, sample in enumerate(trained):
        if len(sample.trajectory.prompt_tokens) == 0:
            raise ValueError(f"trajectory {index} has no prompt tokens: scoring needs at least one before the answer")
    return trained


def finished_text(trajectory: Trajectory) -> FinishedText:
    """An answer as AGDO's probe sees it: its scored slots are ordered."""
    return FinishedText(
        trajectory.prompt_tokens, trajectory.tokens, ranked_T=trajectory.scored, block_length=trajectory.block_length
    )


def prepare(
    trained: Sequence[Sample],
    guides: Sequence[Guide | None],
    stats: BatchStats,
    objective: ObjectiveConfig,
    *,
    family: Family,
    micro_batch_tokens: int,
    draw: int,
) -> Work:
    """Draw masks, plan the canvases and spread what belongs to samples over their slots."""
    trajectories = [sample.trajectory for sample in trained]
    canvases = [
        canvases_of(t, t.scored, objective, family=family, draw=draw, guide=guide)
        for t, guide in zip(trajectories, guides, strict=True)
    ]
    plan = plan_given(trajectories, canvases, family=family)
    slots = _slots(trained, canvases, guides, plan, stats, objective)
    recorded = [trajectories[i].logprobs[k] for i, k in zip(plan.sample_M, plan.slot_M, strict=True)]
    return Work(
        objective=objective,
        plan=plan,
        groups=micro_batches(plan, micro_batch_tokens),
        temperature=_temperature(trained),
        slots=slots,
        weight_M=slots.normaliser_M * slots.factor_M,
        terms=None if objective.is_separable or objective.loss == "bounds" else make_terms(slots, objective),
        recorded_logprob_M=torch.from_numpy(np.array(recorded, dtype=np.float32)),
        old_logprob_M=torch.zeros(plan.num_slots, dtype=torch.float64),
        importance_M=None if objective.importance == "none" else torch.ones(plan.num_slots),
    )


def _slots(
    trained: Sequence[Sample],
    canvases: Sequence[Sequence[Canvas]],
    guides: Sequence[Guide | None],
    plan: CanvasPlan,
    stats: BatchStats,
    objective: ObjectiveConfig,
) -> Slots:
    sample_M = torch.from_numpy(plan.sample_M)

    def per_slot(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[sample_M]

    trajectories = [sample.trajectory for sample in trained]
    size_M = per_slot([float(trajectory.scored.sum()) for trajectory in trajectories])
    advantage_M = per_slot([sample.advantage for sample in trained])
    if objective.influence > 0:
        advantage_M = influenced(advantage_M, _influence(guides, plan), delta=objective.influence)
    scored_C = torch.tensor([len(canvas.slot_K) for canvas in plan.canvases], dtype=torch.float32)
    normaliser_M = normaliser_weights(
        objective.normaliser,
        num_scored_M=size_M,
        num_slots_M=per_slot([float(len(trajectory.tokens)) for trajectory in trajectories]),
        stats=stats,
        num_canvases_M=per_slot([float(len(own)) for own in canvases]),
        canvas_slots_M=scored_C[torch.from_numpy(plan.canvas_M)],
    )
    return Slots(
        sample_M=sample_M,
        slot_M=torch.from_numpy(plan.slot_M),
        factor_M=torch.from_numpy(plan.weight_M),
        normaliser_M=normaliser_M,
        advantage_M=advantage_M,
        size_M=size_M,
    )


def _influence(guides: Sequence[Guide | None], plan: CanvasPlan) -> torch.Tensor:
    """I of each scored slot."""
    of_sample = [guide.influence_T for guide in guides if guide is not None]
    found = [of_sample[i][k] for i, k in zip(plan.sample_M, plan.slot_M, strict=True)]
    return torch.from_numpy(np.array(found, dtype=np.float32))


def _require_exact_cache(trajectories: Sequence[Trajectory], objective: ObjectiveConfig) -> None:
    """Refuse answers drawn from an approximation of the law that is scored, unless weights make up for it."""
    approximate = sorted({trajectory.cache for trajectory in trajectories if not trajectory.exact_cache})
    if approximate and objective.importance == "none":
        weighted = "" if objective.facts.scores_drawn_law else " with learner.objective.likelihood 'trace_exact'"
        raise ValueError(
            f"answers were drawn with cache {', '.join(map(repr, approximate))}, which keeps outdated keys: the law "
            "that drew them is not the one that is scored. Draw with rollout.cache 'none' ('block' in block-causal "
            f"families), or set learner.objective.importance to 'token', 'step' or 'sequence'{weighted}"
        )


def _temperature(samples: Sequence[Sample]) -> float:
    found = sorted({sample.trajectory.temperature for sample in samples})
    if len(found) > 1:
        raise ValueError(f"samples of one update were drawn at temperatures {found}: draw them all at one")
    return found[0] if found else 1.0
