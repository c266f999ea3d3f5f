import contextlib
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rollout
import samplers
from learner import BatchStats, Sample, balance, group_advantages, policy_update
from learner.config import ObjectiveConfig
from tests.learner.small_models import obvious_logprob, small_denoiser, trajectory

FAMILIES = ["llada", "dream", "sdar"]


class PlainTrainer:
    """Gradients added up, then plain descent: the least that an update can run on."""

    def __init__(self, denoiser, *, lr=0.0, reference=None):
        self.denoiser, self.lr, self.frozen = denoiser, lr, reference
        self.num_backwards = self.num_evaluations = self.num_steps = 0
        self.gradients = []

    def evaluate(self, compute):
        self.num_evaluations += 1
        with torch.no_grad():
            return compute()

    def backward(self, compute):
        self.num_backwards += 1
        loss = compute()
        loss.backward()
        return float(loss.detach())

    def align(self):
        pass

    def step(self):
        self.num_steps += 1
        self.gradients.append(
            {name: p.grad.clone() for name, p in self.denoiser.named_parameters() if p.grad is not None}
        )
        with torch.no_grad():
            for parameter in self.denoiser.parameters():
                if parameter.grad is not None:
                    parameter -= self.lr * parameter.grad
        self.denoiser.zero_grad()
        return {"grad_norm": 1.0, "lr": self.lr}

    @contextlib.contextmanager
    def reference(self):
        yield self.frozen

    def sum_over_ranks(self, values):
        return dict(values)

    max_over_ranks = sum_over_ranks


class RankOf(PlainTrainer):
    """One of several ranks run one after another: another rank always has something to train."""

    def sum_over_ranks(self, values):
        return {name: value + (name == "micro_batches") for name, value in values.items()}


def answers_of(denoiser, *, name="random", num_samples=3, seed=0, **options):
    engine = rollout.Engine(denoiser, samplers.build(name, **options))
    prompts = [[5], [6, 7, 8, 9], [10, 11]]
    return engine.generate(prompts, num_samples=num_samples, max_new_tokens=6, temperature=1.0, seed=seed)


def samples_of(denoiser, *, advantages=(0.5, -1.0, 0.0, 1.5, -0.25, 1.0, 0.75, -0.5, 0.0), **options):
    answers = answers_of(denoiser, **options)
    return [Sample(answer, advantage) for answer, advantage in zip(answers, advantages, strict=True)]


def update(trainer, samples, *, stats=None, micro_batch_tokens=64, **objective):
    stats = stats or BatchStats.of(samples)
    return policy_update(trainer, samples, stats, ObjectiveConfig(**objective), micro_batch_tokens=micro_batch_tokens)


def gradient(denoiser, samples, **options):
    trainer = PlainTrainer(denoiser)
    update(trainer, samples, **options)
    (found,) = trainer.gradients
    return found


def assert_same_gradient(left, right, atol=1e-6):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=atol, rtol=1e-4)


# ---- the gradient


def slow_gradient(denoiser, samples, weight):
    """Gradient of -sum A * weight * log p, one slot and one canvas at a time; weight(sample) of each scored slot."""
    denoiser.zero_grad()
    for sample in samples:
        for slot in np.flatnonzero(sample.trajectory.scored):
            (-sample.advantage * weight(sample) * obvious_logprob(denoiser, sample.trajectory, slot)).backward()
    found = {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
    denoiser.zero_grad()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_first_gradient_is_advantage_times_gradient_of_the_likelihood(family):
    denoiser = small_denoiser(family)
    samples = samples_of(denoiser, tokens_per_step=2)
    expected = slow_gradient(denoiser, samples, lambda s: 1 / (len(samples) * s.trajectory.scored.sum()))
    assert_same_gradient(gradient(denoiser, samples), expected, atol=1e-5)


@pytest.mark.parametrize("likelihood", ["ar_exact", "trace_exact"])
@pytest.mark.parametrize("normaliser", ["token", "sequence", "fixed"])
def test_left_to_right_gradient_equals_the_loop_over_slots_for_every_normaliser(likelihood, normaliser):
    denoiser = small_denoiser("llada")
    samples = samples_of(denoiser, name="ar")
    stats = BatchStats.of(samples)
    weight = {
        "token": lambda s: 1 / stats.num_tokens,
        "sequence": lambda s: 1 / (9 * s.trajectory.scored.sum()),
        "fixed": lambda s: 1 / (9 * 6),
    }[normaliser]
    found = gradient(denoiser, samples, likelihood=likelihood, normaliser=normaliser)
    assert_same_gradient(found, slow_gradient(denoiser, samples, weight), atol=1e-5)


def test_clip_has_no_effect_on_the_first_step():
    denoiser = small_denoiser("llada")
    samples = samples_of(denoiser)
    tight, loose = (gradient(denoiser, samples, clip_low=c, clip_high=c) for c in (0.0, 10.0))
    for name in tight:
        assert torch.equal(tight[name], loose[name])


@settings(max_examples=6, deadline=None)
@given(
    order=st.permutations(range(9)),
    micro_batch_tokens=st.sampled_from([1, 17, 40, 10_000]),
    normaliser=st.sampled_from(["token", "sequence", "fixed"]),
)
def test_order_and_micro_batches_do_not_change_the_gradient(order, micro_batch_tokens, normaliser):
    denoiser = small_denoiser("dream")
    samples = samples_of(denoiser)
    expected = gradient(denoiser, samples, normaliser=normaliser)
    shuffled = [samples[i] for i in order]
    found = gradient(denoiser, shuffled, micro_batch_tokens=micro_batch_tokens, normaliser=normaliser)
    assert_same_gradient(found, expected, atol=1e-5)


@pytest.mark.parametrize("normaliser", ["token", "sequence", "fixed"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_gradients_of_ranks_add_up_to_that_of_one(normaliser, num_ranks):
    denoiser = small_denoiser("sdar")
    samples = samples_of(denoiser)
    expected = gradient(denoiser, samples, normaliser=normaliser)
    total = {name: torch.zeros_like(value) for name, value in expected.items()}
    for share in balance(samples, num_ranks):
        trainer = RankOf(denoiser)
        update(trainer, share, stats=BatchStats.of(samples), normaliser=normaliser)
        for name, value in trainer.gradients[0].items():
            total[name] += value
    assert_same_gradient(total, expected, atol=1e-5)


def test_slots_after_the_first_end_token_do_not_enter():
    denoiser = small_denoiser("llada")
    # Slot 3 is committed after the end token at slot 2, which is scored.
    short = trajectory([7, 8, 0, 9], [1, 2, 3, 0])
    other = trajectory([7, 8, 9, 7], [0, 1, 2, 3])
    samples = [Sample(short, 1.0), Sample(other, -1.0)]
    assert BatchStats.of(samples) == BatchStats(num_samples=2, num_tokens=7)
    expected = slow_gradient(denoiser, samples, lambda s: 1 / 7)
    assert_same_gradient(gradient(denoiser, samples, normaliser="token"), expected, atol=1e-5)


# ---- what costs nothing


def test_zero_advantage_samples_are_skipped_but_count_in_the_denominator():
    denoiser = small_denoiser("llada")
    samples = samples_of(denoiser)
    kept = [sample for sample in samples if sample.advantage != 0]
    with_zeros, trainer = gradient(denoiser, samples), PlainTrainer(denoiser)
    metrics = update(trainer, samples)
    assert metrics["num_trained_samples"] == len(kept) == 7
    assert metrics["num_canvases"] == sum(sample.trajectory.scored.sum() for sample in kept)
    # Of 9 samples 7 are trained: the gradient is 7/9 of what they would give alone.
    alone = gradient(denoiser, kept)
    assert_same_gradient(with_zeros, {name: value * 7 / 9 for name, value in alone.items()})


def test_batch_without_any_advantage_takes_no_step():
    denoiser = small_denoiser("llada")
    answers = answers_of(denoiser)
    advantage_BG = group_advantages(torch.full((3, 3), 0.3), torch.ones(3, 3, dtype=torch.bool), kind="std")
    samples = [Sample(a, float(x)) for a, x in zip(answers, advantage_BG.flatten(), strict=True)]
    trainer = PlainTrainer(denoiser, lr=1.0)
    metrics = update(trainer, samples)
    assert trainer.num_steps == trainer.num_backwards == 0
    assert metrics["num_canvases"] == metrics["loss"] == metrics["grad_norm"] == 0.0
    assert all(np.isfinite(value) for value in metrics.values())


def test_rank_without_work_still_steps_with_the_others():
    trainer = RankOf(small_denoiser("llada"))
    idle, busy = update(trainer, [], stats=BatchStats(4, 20), num_epochs=2), PlainTrainer(small_denoiser("llada"))
    assert trainer.num_steps == 2
    assert trainer.num_backwards == 0
    assert idle.keys() == update(busy, samples_of(busy.denoiser)).keys()


# ---- epochs, reference, metrics


def test_first_epoch_has_ratio_one_and_no_gap_to_the_rollout():
    denoiser = small_denoiser("sdar")
    metrics = update(PlainTrainer(denoiser), samples_of(denoiser))
    assert metrics["ratio_mean"] == 1.0
    assert metrics["clip_rate"] == 0.0
    assert metrics["logprob_gap_max"] < 1e-5
    assert metrics["logprob_gap_mean"] <= metrics["logprob_gap_max"]
    assert metrics["ess"] == pytest.approx(1.0, abs=1e-4)
    assert "kl" not in metrics


def test_gap_shows_answers_of_other_weights():
    denoiser = small_denoiser("llada", seed=1)
    samples = [
        dataclasses.replace(s, trajectory=dataclasses.replace(s.trajectory, logprobs=s.trajectory.logprobs - 0.25))
        for s in samples_of(denoiser)
    ]
    metrics = update(PlainTrainer(denoiser), samples)
    # Every slot is e^.25 times as likely as recorded; equal weights still count as a full sample.
    assert metrics["logprob_gap_mean"] == pytest.approx(0.25, abs=1e-4)
    assert metrics["logprob_gap_max"] == pytest.approx(0.25, abs=1e-4)
    assert metrics["ess"] == pytest.approx(1.0, abs=1e-3)


def test_entropy_is_the_mean_of_the_trained_slots():
    denoiser = small_denoiser("dream")
    samples = samples_of(denoiser)
    recorded = np.concatenate([s.trajectory.entropies[s.trajectory.scored] for s in samples if s.advantage != 0])
    assert update(PlainTrainer(denoiser), samples)["entropy"] == pytest.approx(float(recorded.mean()), abs=1e-4)


def test_later_epochs_measure_the_ratio_against_the_first():
    denoiser = small_denoiser("llada")
    samples = samples_of(denoiser)
    before = copy.deepcopy(denoiser)
    trainer = PlainTrainer(denoiser, lr=0.05)
    metrics = update(trainer, samples, num_epochs=2, normaliser="token", clip_low=100.0, clip_high=100.0)
    assert trainer.num_steps == 2
    # The weights after one step of the first gradient, and the ratio of each trained slot there.
    first = copy.deepcopy(before)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            parameter -= 0.05 * trainer.gradients[0].get(name, torch.zeros_like(parameter))
        slots = [(s, k) for s in samples if s.advantage != 0 for k in np.flatnonzero(s.trajectory.scored)]
        new, old = (
            torch.stack([obvious_logprob(weights, s.trajectory, k) for s, k in slots]) for weights in (first, before)
        )
    ratio = (new - old).exp()
    assert float((ratio - 1).abs().max()) > 0.01
    assert metrics["ratio_mean"] == pytest.approx((1.0 + float(ratio.mean())) / 2, abs=1e-4)
    advantage = torch.tensor([s.advantage for s, _ in slots])
    losses = [-(r * advantage).sum() / BatchStats.of(samples).num_tokens for r in (torch.ones_like(ratio), ratio)]
    assert metrics["loss"] == pytest.approx(float(sum(losses)) / 2, abs=1e-4)


def test_clip_rate_counts_slots_that_moved_too_far():
    denoiser = small_denoiser("llada")
    trainer = PlainTrainer(denoiser, lr=0.3)
    metrics = update(trainer, samples_of(denoiser), num_epochs=2, clip_low=0.01, clip_high=0.01)
    # No slot is clipped in the first of two epochs.
    assert 0.1 < metrics["clip_rate"] <= 0.5


def test_divergence_from_the_same_weights_is_zero_and_trains_every_sample():
    denoiser = small_denoiser("llada")
    samples = samples_of(denoiser)
    trainer = PlainTrainer(denoiser, reference=copy.deepcopy(denoiser))
    metrics = update(trainer, samples, kl_coef=0.5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["num_trained_samples"] == 9
    assert trainer.num_evaluations == trainer.num_backwards > 1
    assert metrics["likelihood_forwards"] == 2 * metrics["num_canvases"]
    # k3 has zero gradient at its minimum: the same step as without it.
    assert_same_gradient(trainer.gradients[0], gradient(denoiser, samples), atol=1e-5)


def test_gradient_of_the_divergence_is_that_of_k3_at_every_scored_slot():
    denoiser, frozen = small_denoiser("llada", seed=0), small_denoiser("llada", seed=0)
    with torch.no_grad():
        frozen.backbone.lm_head.weight.mul_(1.1)
    samples = [dataclasses.replace(sample, advantage=0.0) for sample in samples_of(denoiser)]
    trainer = PlainTrainer(denoiser, reference=frozen)
    metrics = update(trainer, samples, kl_coef=0.3, normaliser="token")
    denoiser.zero_grad()
    slots = [(sample.trajectory, k) for sample in samples for k in np.flatnonzero(sample.trajectory.scored)]
    d = torch.stack([obvious_logprob(denoiser, *s) - obvious_logprob(frozen, *s).detach() for s in slots])
    k3 = (torch.exp(-d) - 1 + d).mean()
    (0.3 * k3).backward()
    assert metrics["kl"] == pytest.approx(float(k3.detach()), rel=1e-3)
    assert metrics["kl"] > 1e-4
    expected = {name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None}
    assert_same_gradient(trainer.gradients[0], expected, atol=1e-5)


def test_descent_makes_good_answers_more_likely_and_bad_ones_less():
    denoiser = small_denoiser("dream")
    answers = answers_of(denoiser, num_samples=1)
    samples = [Sample(answers[0], 1.0), Sample(answers[1], -1.0)]

    def likelihoods():
        with torch.no_grad():
            return [sum(float(obvious_logprob(denoiser, a, k)) for k in np.flatnonzero(a.scored)) for a in answers[:2]]

    before = likelihoods()
    update(PlainTrainer(denoiser, lr=0.01), samples)
    after = likelihoods()
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_global_random_state_is_untouched():
    denoiser = small_denoiser("llada")
    samples = samples_of(denoiser)
    before = torch.get_rng_state()
    update(PlainTrainer(denoiser), samples)
    assert torch.equal(torch.get_rng_state(), before)


# ---- answers of another law

SHIFTS = (math.log(1.5), math.log(0.5), math.log(3.0))


def drawn_by_others(denoiser, *, shifts=SHIFTS, cache="none", **options):
    """Answers whose record says that slot k was exp(-shifts[k % 3]) times as likely as it is."""
    samples = samples_of(denoiser, **options)
    shift = [np.resize(np.float32(shifts), len(s.trajectory.tokens)) for s in samples]
    return [
        Sample(dataclasses.replace(s.trajectory, logprobs=s.trajectory.logprobs - x, cache=cache), s.advantage)
        for s, x in zip(samples, shift, strict=True)
    ]


@pytest.mark.parametrize("importance", ["token", "step", "sequence"])
@pytest.mark.parametrize("micro_batch_tokens", [17, 10_000])
def test_importance_weighs_each_slot_by_its_token_step_or_answer(importance, micro_batch_tokens):
    denoiser = small_denoiser("llada")
    samples = drawn_by_others(denoiser, tokens_per_step=2)

    def weight(sample, slot):
        answer = sample.trajectory
        shift = np.where(answer.scored, np.resize(SHIFTS, len(answer.tokens)), 0.0)
        unit = {"token": np.arange(len(shift)) == slot, "step": answer.step_map == answer.step_map[slot]}
        return min(math.exp(shift[unit.get(importance, slice(None))].sum()), 2.0)

    denoiser.zero_grad()
    slots = [(s, k) for s in samples if s.advantage != 0 for k in np.flatnonzero(s.trajectory.scored)]
    weights = [weight(*slot) for slot in slots]
    for (sample, slot), w in zip(slots, weights, strict=True):
        factor = -sample.advantage * w / BatchStats.of(samples).num_tokens
        (factor * obvious_logprob(denoiser, sample.trajectory, slot)).backward()
    expected = {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
    denoiser.zero_grad()
    trainer = PlainTrainer(denoiser)
    metrics = update(trainer, samples, importance=importance, normaliser="token", micro_batch_tokens=micro_batch_tokens)
    assert_same_gradient(trainer.gradients[0], expected, atol=1e-5)
    assert metrics["importance_mean"] == pytest.approx(np.mean(weights), abs=1e-3)
    assert metrics["truncated_rate"] == pytest.approx(np.mean(np.array(weights) == 2.0), abs=1e-6)
    assert metrics["logprob_gap_max"] == pytest.approx(math.log(3.0), abs=1e-4)
    assert metrics["ratio_mean"] == 1.0


@pytest.mark.parametrize("importance", ["token", "step", "sequence"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_answers_of_an_exact_cache_have_weights_of_one(importance, family):
    denoiser = small_denoiser(family)
    samples = samples_of(denoiser, tokens_per_step=2)
    trainer = PlainTrainer(denoiser)
    metrics = update(trainer, samples, importance=importance)
    assert metrics["importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["truncated_rate"] == 0.0
    assert_same_gradient(trainer.gradients[0], gradient(denoiser, samples), atol=1e-4)


def test_weights_of_the_first_epoch_hold_for_later_ones():
    denoiser = small_denoiser("llada")
    samples = drawn_by_others(denoiser, shifts=(math.log(1.25),))
    once = update(PlainTrainer(copy.deepcopy(denoiser), lr=0.05), samples, importance="token", clip_high=100.0)
    twice = update(
        PlainTrainer(denoiser, lr=0.05), samples, importance="token", num_epochs=2, clip_low=1.0, clip_high=100.0
    )
    assert once["importance_mean"] == pytest.approx(1.25, abs=1e-3)
    assert twice["importance_mean"] == pytest.approx(1.25, abs=1e-3)
    assert twice["ratio_mean"] != 1.0


def test_whole_answers_cost_one_more_pass():
    denoiser = small_denoiser("llada")
    trainer = PlainTrainer(denoiser)
    metrics = update(trainer, samples_of(denoiser), importance="sequence")
    assert trainer.num_evaluations == trainer.num_backwards > 1
    assert metrics["likelihood_forwards"] == 2 * metrics["num_canvases"]


def test_answers_of_an_approximate_cache_need_importance_weights():
    denoiser = small_denoiser("llada")
    samples = drawn_by_others(denoiser, cache="dual/window=32")
    with pytest.raises(
        ValueError, match=r"cache 'dual/window=32'.*rollout.cache 'none'.*objective.importance to 'token'"
    ):
        update(PlainTrainer(denoiser), samples)
    assert update(PlainTrainer(denoiser), samples, importance="token")["importance_mean"] > 0
    assert "importance_mean" not in update(PlainTrainer(denoiser), drawn_by_others(denoiser, cache="block"))


# ---- records


def test_shares_of_ranks_have_equal_canvas_tokens_and_lose_nothing():
    # Costs: steps * (P + T): 4 * 6 = 24, 2 * 4 = 8, 2 * 4 = 8, 2 * 4 = 8; the last sample teaches nothing: 0.
    answers = [trajectory([7] * t, list(range(t))) for t in (4, 2, 2, 2, 4)]
    samples = [Sample(answer, 1.0) for answer in answers[:4]] + [Sample(answers[4], 0.0)]
    first, second = balance(samples, 2)
    assert first == [samples[0], samples[4]]
    assert second == samples[1:4]
    # With a divergence term it costs 24 like the first.
    first, second = balance(samples, 2, keep_zero_advantage=True)
    assert first == [samples[0], samples[1], samples[3]]
    assert second == [samples[4], samples[2]]
    with pytest.raises(ValueError, match="num_ranks must be at least 1, got 0"):
        balance(samples, 0)


def test_advantage_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="has advantage nan: advantages must be finite"):
        Sample(trajectory([7], [0]), float("nan"))


def test_samples_of_different_temperatures_are_refused():
    samples = [Sample(trajectory([7], [0], temperature=t), 1.0) for t in (1.0, 0.5)]
    with pytest.raises(ValueError, match=r"drawn at temperatures \[0.5, 1.0\]"):
        update(PlainTrainer(small_denoiser("llada")), samples)


def test_draw_first_answers_are_refused():
    denoiser = small_denoiser("llada")
    with pytest.raises(ValueError, match="'lcr' does not draw its tokens"):
        update(PlainTrainer(denoiser), samples_of(denoiser, name="lcr"))
