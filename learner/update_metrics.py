"""The numbers of one update: sums that ranks add up, then means.

ratio_mean, clip_rate, kl       over the terms of the loss: slots, or answers with `ratio: sequence`
logprob_gap_*, ess              against the rollout's record, where the likelihood scores the law that drew
forward_equivalents             canvases of passes without gradients + 3 * canvases of passes with gradients
agdo/...                        means over answers of the statistics of influence and row mass (`learner.agdo`)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from learner.agdo import Guide, guide_statistics
from learner.config import ObjectiveConfig
from learner.objective import LossTerms
from learner.work import Work

GRADIENT_COST = 3
"""A forward and a backward pass, in forwards."""
_GUIDE_PARTS = ("mean", "q10", "q50", "q90", "max")
_GUIDE_NAMES = (
    "steps",
    "influence_top_share",
    *(f"influence_{part}" for part in _GUIDE_PARTS),
    *(f"row_mass_{part}" for part in _GUIDE_PARTS),
)
_SUMS = (
    *("loss", "terms", "slots", "ratio", "clipped", "kl", "entropy"),
    *("first_slots", "gap", "stale_weight", "stale_weight_squared", "importance", "truncated"),
    *("num_canvases", "num_trained_samples", "likelihood_forwards", "likelihood_tokens", "forward_equivalents"),
    *("guides", *(f"agdo/{name}" for name in _GUIDE_NAMES)),
)


def empty_sums() -> dict[str, float]:
    """The same keys on every rank."""
    return dict.fromkeys(_SUMS, 0.0)


def add_terms(sums: dict[str, float], terms: LossTerms) -> None:
    """Ratios, clipped terms and divergence of some terms."""
    sums["terms"] += len(terms.ratio_M)
    sums["ratio"] += float(terms.ratio_M.sum())
    sums["clipped"] += float(terms.is_clipped_M.sum())
    if terms.kl_M is not None:
        sums["kl"] += float(terms.kl_M.sum())


def add_entropy(sums: dict[str, float], entropy_m: torch.Tensor) -> None:
    """Entropies of the scored slots of one pass with gradients."""
    sums["slots"] += len(entropy_m)
    sums["entropy"] += float(entropy_m.sum())


def add_pass(sums: dict[str, float], work: Work, *, has_gradients: bool) -> None:
    """What one pass over all canvases costs."""
    sums["likelihood_forwards"] += work.num_canvases
    sums["likelihood_tokens"] += work.num_tokens
    sums["forward_equivalents"] += work.num_canvases * (GRADIENT_COST if has_gradients else 1)


def add_guides(sums: dict[str, float], guides: Sequence[Guide | None]) -> None:
    """Statistics of guides, and their forwards."""
    for guide in guides:
        if guide is not None and (found := guide_statistics(guide)):
            sums["guides"] += 1
            sums["likelihood_forwards"] += 1
            sums["forward_equivalents"] += 1
            for name in _GUIDE_NAMES:
                sums[f"agdo/{name}"] += found[name]


def compare_with_rollout(sums: dict[str, float], work: Work, index_m: torch.Tensor) -> None:
    """How far the rollout's record is from the learner's log-probabilities before the first step."""
    if work.objective.facts.scores_drawn_law:
        difference_m = work.old_logprob_M[index_m] - work.recorded_logprob_M[index_m]
        stale_weight_m = difference_m.exp()
        sums["first_slots"] += len(difference_m)
        sums["gap"] += float(difference_m.abs().sum())
        sums["stale_weight"] += float(stale_weight_m.sum())
        sums["stale_weight_squared"] += float(stale_weight_m.square().sum())
        work.gap_max = max(work.gap_max, float(difference_m.abs().max()))
    if work.importance_M is not None:
        sums["importance"] += float(work.importance_M[index_m].sum())
        sums["truncated"] += float((work.importance_M[index_m] >= work.objective.importance_cap).sum())


def means(sums: dict[str, float], objective: ObjectiveConfig) -> dict[str, float]:
    """Means of the sums of all ranks; `ess` is the effective share of the slots after importance weights."""
    num_terms, num_slots, num_first = (max(sums[name], 1.0) for name in ("terms", "slots", "first_slots"))
    metrics = {
        "loss": sums["loss"] / objective.num_epochs,
        "ratio_mean": sums["ratio"] / num_terms,
        "clip_rate": sums["clipped"] / num_terms,
        "entropy": sums["entropy"] / num_slots,
    }
    if objective.facts.scores_drawn_law:
        metrics["logprob_gap_mean"] = sums["gap"] / num_first
        metrics["ess"] = sums["stale_weight"] ** 2 / max(num_first * sums["stale_weight_squared"], 1e-30)
    if objective.kl_coef > 0:
        metrics["kl"] = sums["kl"] / num_terms
    if objective.importance != "none":
        metrics["importance_mean"] = sums["importance"] / num_first
        metrics["truncated_rate"] = sums["truncated"] / num_first
    if objective.needs_guide:
        metrics |= {f"agdo/{n}": sums[f"agdo/{n}"] / max(sums["guides"], 1.0) for n in _GUIDE_NAMES}
    costs = ("num_canvases", "num_trained_samples", "likelihood_forwards", "likelihood_tokens", "forward_equivalents")
    return metrics | {name: sums[name] for name in costs}
