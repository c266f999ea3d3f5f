"""One policy update: samples in, gradient steps and metrics out. Knows nothing of DeepSpeed or of Ray.

    guides    attention of the finished answers, once (only for AGDO)
    plan      canvases of the samples with a nonzero advantage, cut into micro-batches by the token budget
    reference log-probabilities under the frozen starting weights, once (only with a divergence from them)
    old       log-probabilities under the weights now, once (only where the first epoch's own pass comes too late: for
              importance weights of whole answers, for losses whose terms span canvases and depend on more than the
              change of log-probabilities, and for masks that later epochs draw anew)
    epochs    for each: every micro-batch forward and backward, then one optimizer step

The old log-probabilities are else those of the first epoch's own pass, before any step: the first ratio is exactly 1,
its gradient exactly A * grad l, and later epochs are measured against the weights at the start of the update. The
rollout's recorded log-probabilities serve as a check: their gap to the first pass shows at once when rollout and
learner differ. With `importance` they are the law that drew the answers, and the first pass weighs each term by how
much more likely the weights now make it (`objective.truncated_weights`); later epochs keep these weights.

A loss whose terms span canvases (`learner.terms`) is taken on the flat log-probabilities of the rank, from a pass
without gradients; its derivative by each of them is then the factor of that slot's log-probability in the passes with
gradients. In the first epoch a loss of changes alone needs no such pass: all changes are 0.

Peak memory is that of one micro-batch. A sample with advantage 0 costs no pass, yet counts in every denominator (see
`BatchStats`). If no rank has anything to train, weights and optimizer stay untouched.

Symbols: M scored slots of this rank, m those of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, TypeVar

import torch

from learner.agdo import Guide
from learner.config import ObjectiveConfig
from learner.guide import guide_batches, guide_texts
from learner.likelihood import ScoredSlots, score
from learner.objective import LossTerms, policy_loss, truncated_weights
from learner.records import BatchStats, Sample
from learner.terms import sandwich_loss, term_loss
from learner.update_metrics import (
    add_entropy,
    add_guides,
    add_pass,
    add_terms,
    compare_with_rollout,
    empty_sums,
    means,
)
from learner.work import Work, finished_text, prepare, trained_samples
from models import Denoiser

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
    sums = empty_sums()
    trained = trained_samples(samples, objective)
    works = _works(trainer, trained, stats, objective, micro_batch_tokens, sums)
    taken = {"grad_norm": 0.0, "lr": 0.0}
    if trainer.sum_over_ranks({"micro_batches": float(len(works[0].groups))})["micro_batches"] > 0:
        if objective.needs_reference:
            _score_reference(trainer, works, sums)
        _score_old(trainer, works, sums)
        for epoch in range(objective.num_epochs):
            work = works[epoch % len(works)]
            run_epoch = _slot_epoch if objective.is_separable else _term_epoch
            run_epoch(trainer, work, sums, is_first=epoch == 0)
            taken = trainer.step()
    sums["num_canvases"] = works[0].num_canvases
    sums["num_trained_samples"] = len(trained)
    metrics = means(trainer.sum_over_ranks(sums), objective)
    if objective.facts.scores_drawn_law:
        metrics |= trainer.max_over_ranks({"logprob_gap_max": max(work.gap_max for work in works)})
    return metrics | taken


def _works(
    trainer: Trainer,
    trained: Sequence[Sample],
    stats: BatchStats,
    objective: ObjectiveConfig,
    micro_batch_tokens: int,
    sums: dict[str, float],
) -> list[Work]:
    """One set of masks, or one an epoch."""
    guides = _guides(trainer, trained, objective, micro_batch_tokens)
    add_guides(sums, guides)
    return [
        prepare(
            trained,
            guides,
            stats,
            objective,
            family=trainer.denoiser.family,
            micro_batch_tokens=micro_batch_tokens,
            draw=draw,
        )
        for draw in range(objective.num_epochs if objective.redraw_masks else 1)
    ]


def _guides(
    trainer: Trainer, trained: Sequence[Sample], objective: ObjectiveConfig, micro_batch_tokens: int
) -> list[Guide | None]:
    """Order and influence of each answer by the weights now; None where nothing asks for them."""
    guides: list[Guide | None] = [None] * len(trained)
    if not objective.needs_guide:
        return guides
    texts = [finished_text(sample.trajectory) for sample in trained]
    for batch in guide_batches(texts, micro_batch_tokens=micro_batch_tokens):
        of_batch = [texts[i] for i in batch]
        found = trainer.evaluate(partial(guide_texts, trainer.denoiser, of_batch, config=objective.agdo))
        for index, guide in zip(batch, found, strict=True):
            guides[index] = guide
    trainer.align()
    return guides


# ---- passes without gradients


def _evaluated(trainer: Trainer, denoiser: Denoiser, work: Work, sums: dict[str, float]) -> torch.Tensor:
    """Log-probabilities of every scored slot, on the CPU; the caller aligns."""
    logprob_M = torch.zeros(work.plan.num_slots, dtype=torch.float64)
    for group in work.groups:
        scored = trainer.evaluate(partial(score, denoiser, work.plan, group, temperature=work.temperature))
        logprob_M[scored.index_M] = scored.logprob_M.cpu().double()
    add_pass(sums, work, has_gradients=False)
    return logprob_M


def _score_reference(trainer: Trainer, works: Sequence[Work], sums: dict[str, float]) -> None:
    """Log-probabilities under the frozen weights, kept for all epochs."""
    with trainer.reference() as frozen:
        for work in works:
            work.reference_logprob_M = _evaluated(trainer, frozen, work, sums)
    trainer.align()


def _score_old(trainer: Trainer, works: Sequence[Work], sums: dict[str, float]) -> None:
    """Log-probabilities under the weights now, where the first epoch's own pass comes too late."""
    objective = works[0].objective
    depends_on_values = not objective.is_separable and (objective.loss == "bounds" or objective.needs_reference)
    depends_on_values |= not objective.is_separable and objective.loss == "likelihood"
    late = [w for i, w in enumerate(works) if i or depends_on_values or objective.importance == "sequence"]
    for work in late:
        work.old_logprob_M, work.is_known = _evaluated(trainer, trainer.denoiser, work, sums), True
        if objective.importance != "none":
            _weigh(work, torch.arange(work.plan.num_slots))
    if late:
        trainer.align()


# ---- epochs


def _slot_epoch(trainer: Trainer, work: Work, sums: dict[str, float], *, is_first: bool) -> None:
    """A loss that is a sum over slots, micro-batch by micro-batch."""
    for group in work.groups:
        sums["loss"] += trainer.backward(partial(_slot_loss, trainer.denoiser, work, group, sums, is_first=is_first))
    add_pass(sums, work, has_gradients=True)


def _slot_loss(
    denoiser: Denoiser, work: Work, group: Sequence[int], sums: dict[str, float], *, is_first: bool
) -> torch.Tensor:
    """One pass: this micro-batch's part of the loss; adds its part of the metrics to `sums`."""
    scored = score(denoiser, work.plan, group, temperature=work.temperature)
    index_m, logprob_m = scored.index_M, scored.logprob_M
    if is_first:
        _note_first(work, scored, sums)

    def take(value_M: torch.Tensor) -> torch.Tensor:
        return value_M[index_m].to(logprob_m)

    anchor_M = _anchor(work)
    terms = policy_loss(
        logprob_m,
        old_logprob_M=take(work.old_logprob_M),
        advantage_M=take(work.slots.advantage_M),
        weight_M=take(work.weight_M),
        config=work.objective,
        reference_logprob_M=None if anchor_M is None else take(anchor_M),
        importance_M=None if work.importance_M is None else take(work.importance_M),
    )
    add_terms(sums, terms)
    add_entropy(sums, scored.entropy_M)
    return terms.loss


def _term_epoch(trainer: Trainer, work: Work, sums: dict[str, float], *, is_first: bool) -> None:
    """A loss whose terms span canvases: its derivative by each log-probability first, then passes with gradients."""
    if is_first:
        logprob_M = work.old_logprob_M.clone()  # known, or all 0: the changes, which are what counts, are 0
    else:
        logprob_M = _evaluated(trainer, trainer.denoiser, work, sums)
        trainer.align()
    terms, slope_M = _slopes(work, logprob_M.double())
    sums["loss"] += float(terms.loss.detach())
    add_terms(sums, terms)
    for group in work.groups:
        trainer.backward(partial(_linear_loss, trainer.denoiser, work, group, slope_M, sums, is_first=is_first))
    add_pass(sums, work, has_gradients=True)


def _slopes(work: Work, logprob_M: torch.Tensor) -> tuple[LossTerms, torch.Tensor]:
    """The loss of the rank's slots, and its derivative by each log-probability."""
    logprob_M.requires_grad_()
    if work.terms is None:
        terms = sandwich_loss(work.slots, logprob_M, work.objective)
    else:
        terms = term_loss(
            work.terms,
            logprob_M,
            old_logprob_M=work.old_logprob_M.double(),
            config=work.objective,
            reference_logprob_M=_anchor(work),
            importance_M=work.importance_M,
        )
    (slope_M,) = torch.autograd.grad(terms.loss, logprob_M)
    return terms, slope_M


def _linear_loss(
    denoiser: Denoiser,
    work: Work,
    group: Sequence[int],
    slope_M: torch.Tensor,
    sums: dict[str, float],
    *,
    is_first: bool,
) -> torch.Tensor:
    """One pass: the part of the gradient that comes through this micro-batch's log-probabilities."""
    scored = score(denoiser, work.plan, group, temperature=work.temperature)
    if is_first:
        _note_first(work, scored, sums)
    add_entropy(sums, scored.entropy_M)
    return (slope_M[scored.index_M].to(scored.logprob_M) * scored.logprob_M).sum()


def _note_first(work: Work, scored: ScoredSlots, sums: dict[str, float]) -> None:
    """Keep the log-probabilities before the first step, unless a pass without gradients did."""
    index_m = scored.index_M
    if not work.is_known or work.objective.is_separable:
        work.old_logprob_M[index_m] = scored.logprob_M.detach().to(work.old_logprob_M)
    if work.objective.importance in ("token", "step"):
        _weigh(work, index_m)
    compare_with_rollout(sums, work, index_m)


def _weigh(work: Work, index_m: torch.Tensor) -> None:
    """Importance weights of some slots; all slots of a step are in one canvas, so a micro-batch has all or none."""
    assert work.importance_M is not None
    units = {"step": torch.from_numpy(work.plan.canvas_M), "sequence": work.slots.sample_M}
    unit_M = units.get(work.objective.importance)
    work.importance_M[index_m] = truncated_weights(
        work.old_logprob_M[index_m],
        work.recorded_logprob_M[index_m],
        cap=work.objective.importance_cap,
        unit_M=None if unit_M is None else unit_M[index_m],
    ).to(work.importance_M)


def _anchor(work: Work) -> torch.Tensor | None:
    """What the divergence is measured from."""
    if work.objective.kl_coef == 0:
        return None
    return work.reference_logprob_M if work.objective.kl_anchor == "reference" else work.old_logprob_M
