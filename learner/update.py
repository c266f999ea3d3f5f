"""One policy update: samples in, gradient steps and metrics out. Knows nothing of DeepSpeed or of Ray.

    plan      canvases of the samples with a nonzero advantage, cut into micro-batches by the token budget
    reference log-probabilities under the frozen starting weights, once (only with a divergence term)
    proximal  log-probabilities under the weights now, once (only for importance weights of whole answers)
    epochs    for each: every micro-batch forward and backward, then one optimizer step

The old log-probabilities are those of the first epoch's own pass, before any step: the first ratio is exactly 1, its
gradient exactly A * grad l, and later epochs are measured against the weights at the start of the update. The rollout's
recorded log-probabilities serve as a check: their gap to the first pass shows at once when rollout and learner differ.
With `importance` they are the law that drew the answers, and the first pass weighs each term by how much more likely
the weights now make it (`objective.truncated_weights`); later epochs keep these weights.

Peak memory is that of one micro-batch. A sample with advantage 0 costs no pass, yet counts in every denominator (see
`BatchStats`). If no rank has anything to train, weights and optimizer stay untouched.

Symbols: M scored slots of this rank, m those of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch

from learner.config import ObjectiveConfig
from learner.likelihood import ESTIMATORS, score
from learner.objective import LossTerms, normaliser_weights, policy_loss, truncated_weights
from learner.plan import CanvasPlan, micro_batches, num_computed, plan_canvases
from learner.records import BatchStats, Sample
from models import Denoiser
from rollout.records import Trajectory

T = TypeVar("T")


class Trainer(Protocol):
    """What an update needs from whoever owns the optimizer; `LearnerEngine` is one, a plain torch loop another."""

    denoiser: Denoiser

    def evaluate(self, compute: Callable[[], T]) -> T:
        """Run one pass without gradients."""
        ...

    def backward(self, compute: Callable[[], torch.Tensor]) -> float:
        """Run one pass that returns a loss, and its backward pass; add up gradients over passes and ranks."""
        ...

    def align(self) -> None:
        """Let all ranks have made equally many passes; between a phase of `evaluate` and one of `backward`."""
        ...

    def step(self) -> dict[str, float]:
        """One optimizer step from the gradients added up; returns `grad_norm` and `lr`."""
        ...

    def reference(self) -> AbstractContextManager[Denoiser]:
        """The frozen starting weights."""
        ...

    def sum_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Sums of values with the same keys on every rank."""
        ...

    def max_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Likewise, the largest."""
        ...


def policy_update(
    trainer: Trainer,
    samples: Sequence[Sample],
    stats: BatchStats,
    objective: ObjectiveConfig,
    *,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """Train on this rank's samples; `stats` counts those of all ranks. Returns metrics, the same on every rank."""
    work = _prepare(trainer.denoiser, samples, stats, objective, micro_batch_tokens)
    sums = dict.fromkeys(_SUMS, 0.0)
    taken = {"grad_norm": 0.0, "lr": 0.0}
    if trainer.sum_over_ranks({"micro_batches": float(len(work.groups))})["micro_batches"] > 0:
        if objective.kl_coef > 0:
            _score_reference(trainer, work)
        if objective.importance == "sequence":
            _score_proximal(trainer, work)
        for epoch in range(objective.num_epochs):
            for group in work.groups:
                loss = partial(_micro_batch_loss, trainer.denoiser, work, group, sums, is_first=epoch == 0)
                sums["loss"] += trainer.backward(loss)
            taken = trainer.step()
    largest = trainer.max_over_ranks({"logprob_gap_max": work.gap_max})
    return _means(trainer.sum_over_ranks(sums), objective) | trainer.sum_over_ranks(_cost(work)) | largest | taken


@dataclass
class _Work:
    """What one rank trains in one update; flat tensors live on the CPU, in the order of the plan."""

    objective: ObjectiveConfig
    plan: CanvasPlan
    groups: list[list[int]]
    temperature: float
    advantage_M: torch.Tensor
    weight_M: torch.Tensor
    recorded_logprob_M: torch.Tensor
    old_logprob_M: torch.Tensor
    """Filled by the first epoch."""
    importance_M: torch.Tensor | None
    """Filled by the first epoch or before it; None where every weight is 1."""
    reference_logprob_M: torch.Tensor | None = None
    gap_max: float = 0.0


def _prepare(
    denoiser: Denoiser,
    samples: Sequence[Sample],
    stats: BatchStats,
    objective: ObjectiveConfig,
    micro_batch_tokens: int,
) -> _Work:
    """Plan the canvases and spread what belongs to samples over their slots."""
    trained = [sample for sample in samples if sample.advantage != 0 or objective.kl_coef > 0]
    trajectories = [sample.trajectory for sample in trained]
    _require_exact_cache(trajectories, objective)
    plan = plan_canvases(
        trajectories,
        [trajectory.scored for trajectory in trajectories],
        estimator=ESTIMATORS[objective.likelihood],
        family=denoiser.family,
    )

    def per_slot(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)[torch.from_numpy(plan.sample_M)]

    normaliser_M = normaliser_weights(
        objective.normaliser,
        num_scored_M=per_slot([float(trajectory.scored.sum()) for trajectory in trajectories]),
        num_slots_M=per_slot([float(len(trajectory.tokens)) for trajectory in trajectories]),
        stats=stats,
    )
    recorded = [trajectories[i].logprobs[k] for i, k in zip(plan.sample_M, plan.slot_M, strict=True)]
    return _Work(
        objective=objective,
        plan=plan,
        groups=micro_batches(plan, micro_batch_tokens),
        temperature=_temperature(trained),
        advantage_M=per_slot([sample.advantage for sample in trained]),
        weight_M=normaliser_M * torch.from_numpy(plan.weight_M),
        recorded_logprob_M=torch.from_numpy(np.array(recorded, dtype=np.float32)),
        old_logprob_M=torch.zeros(plan.num_slots),
        importance_M=None if objective.importance == "none" else torch.ones(plan.num_slots),
    )


def _require_exact_cache(trajectories: Sequence[Trajectory], objective: ObjectiveConfig) -> None:
    """Refuse answers drawn from an approximation of the law that is scored, unless weights make up for it."""
    approximate = sorted({trajectory.cache for trajectory in trajectories if not trajectory.exact_cache})
    if approximate and objective.importance == "none":
        raise ValueError(
            f"answers were drawn with cache {', '.join(map(repr, approximate))}, which keeps outdated keys: the law "
            "that drew them is not the one that is scored. Draw with rollout.cache 'none' ('block' in block-causal "
            "families), or set learner.objective.importance to 'token', 'step' or 'sequence'"
        )


def _temperature(samples: Sequence[Sample]) -> float:
    found = sorted({sample.trajectory.temperature for sample in samples})
    if len(found) > 1:
        raise ValueError(f"samples of one update were drawn at temperatures {found}: draw them all at one")
    return found[0] if found else 1.0


def _score_reference(trainer: Trainer, work: _Work) -> None:
    """Log-probabilities under the frozen weights, kept for all epochs."""
    work.reference_logprob_M = torch.zeros(work.plan.num_slots)
    with trainer.reference() as frozen:
        for group in work.groups:
            scored = trainer.evaluate(partial(score, frozen, work.plan, group, temperature=work.temperature))
            work.reference_logprob_M[scored.index_M] = scored.logprob_M.cpu().float()
    trainer.align()


def _score_proximal(trainer: Trainer, work: _Work) -> None:
    """Importance weights of whole answers, whose slots may lie in several micro-batches."""
    proximal_M = torch.zeros(work.plan.num_slots)
    for group in work.groups:
        scored = trainer.evaluate(partial(score, trainer.denoiser, work.plan, group, temperature=work.temperature))
        proximal_M[scored.index_M] = scored.logprob_M.cpu().float()
    trainer.align()
    work.importance_M = truncated_weights(
        proximal_M,
        work.recorded_logprob_M,
        cap=work.objective.importance_cap,
        unit_M=torch.from_numpy(work.plan.sample_M),
    )


def _weigh(work: _Work, index_m: torch.Tensor) -> None:
    """Importance weights of the tokens or steps of one micro-batch; a step's slots are all in one canvas."""
    assert work.importance_M is not None
    work.importance_M[index_m] = truncated_weights(
        work.old_logprob_M[index_m],
        work.recorded_logprob_M[index_m],
        cap=work.objective.importance_cap,
        unit_M=torch.from_numpy(work.plan.canvas_M)[index_m] if work.objective.importance == "step" else None,
    )


def _micro_batch_loss(
    denoiser: Denoiser, work: _Work, group: Sequence[int], sums: dict[str, float], *, is_first: bool
) -> torch.Tensor:
    """One pass: this micro-batch's part of the loss; adds its part of the metrics to `sums`."""
    scored = score(denoiser, work.plan, group, temperature=work.temperature)
    index_m, logprob_m = scored.index_M, scored.logprob_M
    if is_first:
        work.old_logprob_M[index_m] = logprob_m.detach().cpu().float()
        if work.objective.importance in ("token", "step"):
            _weigh(work, index_m)
        _compare_with_rollout(work, index_m, sums)

    def take(value_M: torch.Tensor) -> torch.Tensor:
        return value_M[index_m].to(logprob_m.device)

    terms = policy_loss(
        logprob_m,
        old_logprob_M=take(work.old_logprob_M),
        advantage_M=take(work.advantage_M),
        weight_M=take(work.weight_M),
        config=work.objective,
        reference_logprob_M=None if work.reference_logprob_M is None else take(work.reference_logprob_M),
        importance_M=None if work.importance_M is None else take(work.importance_M),
    )
    _add(sums, terms, scored.entropy_M)
    return terms.loss


# ---- metrics: sums that ranks add up, then means

_SUMS = (
    *("loss", "slots", "ratio", "clipped", "kl", "entropy"),
    *("first_slots", "gap", "stale_weight", "stale_weight_squared", "importance", "truncated"),
)


def _add(sums: dict[str, float], terms: LossTerms, entropy_m: torch.Tensor) -> None:
    sums["slots"] += len(entropy_m)
    sums["ratio"] += float(terms.ratio_M.sum())
    sums["clipped"] += float(terms.is_clipped_M.sum())
    sums["entropy"] += float(entropy_m.sum())
    if terms.kl_M is not None:
        sums["kl"] += float(terms.kl_M.sum())


def _compare_with_rollout(work: _Work, index_m: torch.Tensor, sums: dict[str, float]) -> None:
    """How far the rollout's record is from the learner's own first pass."""
    difference_m = work.old_logprob_M[index_m] - work.recorded_logprob_M[index_m]
    stale_weight_m = difference_m.exp()
    sums["first_slots"] += len(difference_m)
    sums["gap"] += float(difference_m.abs().sum())
    sums["stale_weight"] += float(stale_weight_m.sum())
    sums["stale_weight_squared"] += float(stale_weight_m.square().sum())
    if work.importance_M is not None:
        sums["importance"] += float(work.importance_M[index_m].sum())
        sums["truncated"] += float((work.importance_M[index_m] >= work.objective.importance_cap).sum())
    work.gap_max = max(work.gap_max, float(difference_m.abs().max()))


def _cost(work: _Work) -> dict[str, float]:
    """Canvases scored, the tokens computed for them, and how much there was to train."""
    num_passes = work.objective.num_epochs + (work.objective.kl_coef > 0) + (work.objective.importance == "sequence")
    num_canvases = len(work.plan.canvases)
    return {
        "num_canvases": float(num_canvases),
        "num_trained_samples": float(len(work.plan.trajectories)),
        "likelihood_forwards": float(num_passes * num_canvases),
        "likelihood_tokens": float(num_passes * sum(num_computed(work.plan, group) for group in work.groups)),
    }


def _means(sums: dict[str, float], objective: ObjectiveConfig) -> dict[str, float]:
    """Means over slots of the sums of all ranks; `ess` is the effective share of the slots after importance weights."""
    num_slots, num_first = max(sums["slots"], 1.0), max(sums["first_slots"], 1.0)
    metrics = {
        "loss": sums["loss"] / objective.num_epochs,
        "ratio_mean": sums["ratio"] / num_slots,
        "clip_rate": sums["clipped"] / num_slots,
        "entropy": sums["entropy"] / num_slots,
        "logprob_gap_mean": sums["gap"] / num_first,
        "ess": sums["stale_weight"] ** 2 / max(num_first * sums["stale_weight_squared"], 1e-30),
    }
    if objective.kl_coef > 0:
        metrics["kl"] = sums["kl"] / num_slots
    if objective.importance != "none":
        metrics["importance_mean"] = sums["importance"] / num_first
        metrics["truncated_rate"] = sums["truncated"] / num_first
    return metrics
