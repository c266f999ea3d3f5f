"""Gradients of every estimator and objective against the slow loop in float64, to 1e-6; splits change nothing."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import rollout
import samplers
from learner import BatchStats, Sample, balance, policy_update
from learner.config import ObjectiveConfig
from learner.objective_config import LIKELIHOODS
from tests.learner.slow_objective import slow_gradients
from tests.learner.small_models import small_denoiser, trajectory
from tests.learner.test_update import PlainTrainer, RankOf

SHIFTED = ("dream", "fast_dllm_v2")
LEFT_TO_RIGHT = ("ar_exact", "ar_fast")
ADVANTAGES = (0.5, -1.0, 0.0, 1.5, -0.25, 1.0)
LR = 0.01


def samples_of(denoiser, likelihood):
    name = "ar" if likelihood in LEFT_TO_RIGHT else "random"
    options = {} if name == "ar" else {"tokens_per_step": 2}
    engine = rollout.Engine(denoiser, samplers.build(name, **options))
    answers = engine.generate([[5], [6, 7, 8, 9], [10, 11]], num_samples=2, max_new_tokens=6, temperature=1.0, seed=3)
    return [Sample(answer, advantage) for answer, advantage in zip(answers, ADVANTAGES, strict=True)]


def settings(likelihood, **options):
    if likelihood == "trace_merged":
        options["estimator"] = {"merged_steps": 2} | options.get("estimator", {})
    if likelihood == "agdo":
        options["agdo"] = {"slots_per_rank": 2, "block_length": 4, "num_canvases": 3} | options.get("agdo", {})
    return ObjectiveConfig(likelihood=likelihood, **options)


class WatchedTrainer(PlainTrainer):
    """Keeps the weights before each step."""

    def __init__(self, denoiser, **options):
        super().__init__(denoiser, **options)
        self.weights = []

    def step(self):
        self.weights.append(copy.deepcopy(self.denoiser.state_dict()))
        return super().step()


def fast_gradients(denoiser, samples, objective, *, micro_batch_tokens=64, frozen=None):
    trainer = WatchedTrainer(denoiser, lr=LR, reference=frozen)
    metrics = policy_update(trainer, samples, BatchStats.of(samples), objective, micro_batch_tokens=micro_batch_tokens)
    return trainer, metrics


def assert_equal_gradients(found, expected, atol=1e-6):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        largest = max(float(value.abs().max()) for value in right.values())
        assert largest > 1e-3
        for name, value in right.items():
            torch.testing.assert_close(left[name], value, atol=atol * max(1.0, largest), rtol=0)


@pytest.mark.parametrize(
    ("likelihood", "family"),
    [(likelihood, family) for likelihood in LIKELIHOODS for family in ("llada", "sdar")]
    + [(likelihood, family) for likelihood in ("trace_exact", "one_step", "agdo") for family in SHIFTED],
)
def test_gradient_of_every_estimator_equals_the_loop(likelihood, family):
    denoiser = small_denoiser(family).double()
    samples = samples_of(denoiser, likelihood)
    objective = settings(likelihood)
    trainer, metrics = fast_gradients(copy.deepcopy(denoiser), samples, objective)
    assert metrics["ratio_mean"] == 1.0
    assert metrics["clip_rate"] == 0.0
    expected = slow_gradients(denoiser, samples, objective, weights=trainer.weights)
    assert_equal_gradients(trainer.gradients, expected)


TIGHT = {"clip_low": 0.01, "clip_high": 0.01}
OBJECTIVES = {
    "GRPO": ("trace_exact", TIGHT | {"normaliser": "token"}),
    "Dr. GRPO": ("trace_exact", TIGHT | {"normaliser": "fixed"}),
    "DAPO": ("trace_merged", {"clip_low": 0.01, "clip_high": 0.05, "normaliser": "token"}),
    "dual clip": ("ar_exact", {"clip_low": 0.5, "clip_high": 0.01, "clip_dual": 1.02}),
    "TraceRL": ("trace_merged", TIGHT | {"normaliser": "canvas", "kl_coef": 0.3, "kl_anchor": "phase_start"}),
    "diffu-GRPO": ("one_step", TIGHT | {"normaliser": "token", "kl_coef": 0.4, "redraw_masks": True}),
    "coupled-GRPO": ("coupled", TIGHT | {"normaliser": "token", "kl": "k2", "kl_coef": 0.02}),
    "UniGRPO": ("random_mask", TIGHT),
    "AGRPO": ("trace_sampled", TIGHT | {"estimator": {"step_law": "entropy", "num_draws": 3}}),
    "GSPO": ("trace_exact", {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.01, "kl": "k1", "kl_coef": 0.1}),
    "ESPO": ("elbo_pair", {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.02, "kl": "k2", "kl_coef": 0.3}),
    "wd1": ("one_step", {"loss": "likelihood", "normaliser": "fixed", "redraw_masks": True}),
    "SPG": ("elbo", {"loss": "bounds", "normaliser": "token", "estimator": {"num_draws": 3}}),
    "SPG, blocks": ("block_mask", {"loss": "bounds", "bound_beta": 1.0, "bound_weight": 1.0}),
    "AGDO": ("agdo", TIGHT | {"normaliser": "canvas", "influence": 1.0, "kl_coef": 0.1, "kl_anchor": "phase_start"}),
    "influence on a replay": ("trace_exact", TIGHT | {"influence": 3.0}),
    "influence on pairs": ("coupled", TIGHT | {"influence": 1.0}),
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_inner_epoch_of_every_objective_equals_the_loop(name):
    likelihood, options = OBJECTIVES[name]
    denoiser = small_denoiser("llada").double()
    frozen = copy.deepcopy(denoiser)
    with torch.no_grad():
        frozen.backbone.lm_head.weight.mul_(1.05)
    samples = samples_of(denoiser, likelihood)
    objective = settings(likelihood, num_epochs=3, **options)
    anchor = frozen if objective.needs_reference else None
    trainer, metrics = fast_gradients(copy.deepcopy(denoiser), samples, objective, frozen=anchor)
    expected = slow_gradients(denoiser, samples, objective, weights=trainer.weights, frozen=anchor)
    assert_equal_gradients(trainer.gradients, expected)
    if objective.loss == "clip":
        assert metrics["ratio_mean"] != 1.0
        assert metrics["clip_rate"] > 0 or objective.clip_low > 0.1  # so that the clip is part of what is compared


@pytest.mark.parametrize("name", ["trace_exact", "trace_sampled", "coupled", "elbo_pair", "agdo", "SPG", "GSPO"])
@pytest.mark.parametrize("family", ["llada", "sdar"])
def test_splits_into_micro_batches_ranks_and_orders_change_nothing(name, family):
    likelihood, options = OBJECTIVES.get(name, (name, {}))
    denoiser = small_denoiser(family).double()
    samples = samples_of(denoiser, likelihood)
    objective = settings(likelihood, num_epochs=1, **options)
    if objective.needs_reference:
        objective = objective.model_copy(update={"kl_coef": 0.0})
    whole, _ = fast_gradients(copy.deepcopy(denoiser), samples, objective, micro_batch_tokens=10_000)
    split, _ = fast_gradients(copy.deepcopy(denoiser), samples[::-1], objective, micro_batch_tokens=1)
    assert_equal_gradients(split.gradients, whole.gradients)
    (expected,) = whole.gradients
    total = {name: torch.zeros_like(value) for name, value in expected.items()}
    for share in balance(samples, 2):
        trainer = RankOf(copy.deepcopy(denoiser))
        policy_update(trainer, share, BatchStats.of(samples), objective, micro_batch_tokens=40)
        for key, value in trainer.gradients[0].items():
            total[key] += value
    assert_equal_gradients([total], [expected])


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_group_without_advantage_has_no_gradient_and_the_random_state_is_untouched(likelihood):
    denoiser = small_denoiser("llada")
    samples = [dataclasses.replace(sample, advantage=0.0) for sample in samples_of(denoiser, likelihood)]
    trainer, before = PlainTrainer(denoiser), (torch.get_rng_state(), np.random.get_state()[1].copy())
    options = {"influence": 10.0} if likelihood == "agdo" else {}
    policy_update(trainer, samples, BatchStats.of(samples), settings(likelihood, **options), micro_batch_tokens=64)
    assert trainer.num_steps == 0
    live = samples_of(denoiser, likelihood)
    policy_update(trainer, live, BatchStats.of(live), settings(likelihood), micro_batch_tokens=64)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    "likelihood", ["one_step", "coupled", "random_mask", "elbo", "elbo_pair", "block_mask", "agdo"]
)
def test_masks_are_the_same_for_the_same_answer_and_others_for_another_draw(likelihood):
    denoiser = small_denoiser("llada").double()
    samples = samples_of(denoiser, likelihood)
    options = {"estimator": {"prompt_mask_rate": 0.5}} if likelihood in ("one_step", "random_mask") else {}
    kept = settings(likelihood, num_epochs=2, clip_low=10, clip_high=10, **options)
    trainer = PlainTrainer(denoiser, lr=0.0)
    policy_update(trainer, samples, BatchStats.of(samples), kept, micro_batch_tokens=64)
    first, second = trainer.gradients
    assert all(torch.equal(first[name], second[name]) for name in first)
    redrawn = kept.model_copy(update={"redraw_masks": True})
    trainer = PlainTrainer(denoiser, lr=0.0)
    policy_update(trainer, samples, BatchStats.of(samples), redrawn, micro_batch_tokens=64)
    third, fourth = trainer.gradients
    assert all(torch.equal(first[name], third[name]) for name in first)
    assert any(float((third[name] - fourth[name]).abs().max()) > 1e-4 for name in third)


def test_answers_of_any_sampler_train_where_masks_are_drawn_and_are_refused_where_they_are_replayed():
    denoiser = small_denoiser("llada")
    engine = rollout.Engine(denoiser, samplers.build("lcr"))
    answers = engine.generate([[5, 6]], num_samples=2, max_new_tokens=5, temperature=1.0, seed=0)
    samples = [Sample(answer, a) for answer, a in zip(answers, (1.0, -1.0), strict=True)]
    for likelihood, facts in LIKELIHOODS.items():
        trainer = PlainTrainer(denoiser)
        if facts.replays:
            with pytest.raises(ValueError, match="'lcr' does not draw its tokens"):
                policy_update(trainer, samples, BatchStats.of(samples), settings(likelihood), micro_batch_tokens=64)
        else:
            policy_update(trainer, samples, BatchStats.of(samples), settings(likelihood), micro_batch_tokens=64)
            assert trainer.num_steps == 1


def test_cost_counts_passes_with_gradients_three_times():
    denoiser = small_denoiser("llada")
    samples = [Sample(trajectory([7, 8, 9, 7], [0, 1, 2, 3], seed=i), a) for i, a in enumerate((1.0, -1.0))]

    def cost(likelihood, **options):
        _, metrics = fast_gradients(small_denoiser("llada"), samples, settings(likelihood, **options), frozen=denoiser)
        return metrics["forward_equivalents"]

    assert cost("trace_exact") == 3 * 8
    assert cost("trace_exact", num_epochs=2, kl_coef=0.1) == 8 + 2 * 3 * 8  # one pass for the reference
    assert cost("coupled", num_epochs=2) <= 3 * 6 + 6 + 3 * 6  # three canvases; the second epoch needs values first
    assert cost("one_step", num_epochs=2, redraw_masks=True) == 2 + 2 * 3 * 2  # old values of the second mask
    assert cost("agdo") == 2 + 3 * 2 * 2  # one probe an answer; four slots in ranks of two are two canvases
