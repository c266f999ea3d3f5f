import dataclasses
import math

import pytest
import torch

from learner.config import ObjectiveConfig
from learner.objective import (
    clipped_surrogate,
    divergence,
    influenced,
    is_clipped,
    normaliser_weights,
    policy_loss,
    policy_ratio,
    truncated_weights,
)
from learner.records import BatchStats
from learner.terms import Slots, make_terms, sandwich_loss, term_loss

CLIP = {"clip_low": 0.2, "clip_high": 0.3}


def test_ratio_is_the_change_of_probability():
    old = torch.tensor([0.2, 0.5]).log()
    assert policy_ratio(torch.tensor([0.4, 0.1]).log(), old).tolist() == pytest.approx([2.0, 0.2])


def test_surrogate_takes_the_pessimistic_side_of_the_clip():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    # 1.5: A = 2 -> min(3, 1.3 * 2); A = -2 -> min(-3, -2.6).  .5: A = 2 -> min(1, 1.6); A = -2 -> min(-1, -1.6).
    assert clipped_surrogate(ratio, advantage, **CLIP).tolist() == pytest.approx([2.6, -3.0, 1.0, -1.6, 2.2])
    assert is_clipped(ratio, advantage, **CLIP).tolist() == [True, False, False, True, False]


def test_clipped_slots_have_no_gradient_and_the_others_that_of_ratio_times_advantage():
    logprob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0])
    clipped_surrogate(policy_ratio(logprob, torch.zeros(4)), advantage, **CLIP).sum().backward()
    assert logprob.grad.tolist() == pytest.approx([0.0, -3.0, 1.0, 0.0])


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_gradient_at_ratio_one_is_the_advantage_whatever_the_clip(clip):
    logprob = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    ratio = policy_ratio(logprob, logprob.detach())
    assert ratio.tolist() == [1.0, 1.0, 1.0]
    clipped_surrogate(ratio, torch.tensor([0.5, -0.5, 0.0]), clip_low=clip, clip_high=clip).sum().backward()
    assert logprob.grad.tolist() == [0.5, -0.5, 0.0]


def test_k3_of_a_doubled_and_of_a_halved_probability():
    # d = ln 2: 1/2 - 1 + .6931 = .1931.  d = -ln 2: 2 - 1 - .6931 = .3069.
    logprob = torch.tensor([math.log(2), -math.log(2), 0.0])
    assert divergence(logprob, torch.zeros(3), kind="k3").tolist() == pytest.approx([0.1931, 0.3069, 0.0], abs=1e-4)


def test_k3_is_unbiased_for_the_divergence():
    # Sum over tokens of p * k3 = sum p ln(p / r) because sum p * (r / p - 1) = 0.
    p, r = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    assert float((p * divergence(p.log(), r.log(), kind="k3")).sum()) == pytest.approx(float((p * (p / r).log()).sum()))


# Two samples: 3 scored slots of 4, 1 scored slot of 4. A third of 2 slots belongs to another rank.
STATS = BatchStats(num_samples=3, num_tokens=6)
NUM_SCORED = torch.tensor([3.0, 3.0, 3.0, 1.0])
NUM_SLOTS = torch.tensor([4.0, 4.0, 4.0, 4.0])


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        ("token", [1 / 6] * 4),
        ("sequence", [1 / 9] * 3 + [1 / 3]),
        ("fixed", [1 / 12] * 4),
    ],
)
def test_normaliser_divides_by_counts_of_the_whole_batch(normaliser, expected):
    weight = normaliser_weights(normaliser, num_scored_M=NUM_SCORED, num_slots_M=NUM_SLOTS, stats=STATS)
    assert weight.tolist() == pytest.approx(expected)


def test_unknown_normaliser_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'batch' is unknown: choose token, sequence, fixed or canvas"):
        normaliser_weights("batch", num_scored_M=NUM_SCORED, num_slots_M=NUM_SLOTS, stats=STATS)


def test_truncated_weights_cap_what_became_more_likely_and_carry_no_gradient():
    proximal = torch.tensor([0.1, 0.2, 0.9]).log().requires_grad_()
    weight = truncated_weights(proximal, torch.tensor([0.1, 0.4, 0.3]).log(), cap=2.0)
    assert weight.tolist() == pytest.approx([1.0, 0.5, 2.0])
    assert not weight.requires_grad
    with pytest.raises(ValueError, match="cap must be at least 1"):
        truncated_weights(proximal, proximal, cap=0.5)


def test_weights_of_steps_and_answers_are_products_over_their_slots():
    # Ratios 1.5, .5, 3, .8 in units 0, 0, 1, 1: products .75 and 2.4, of which the second is cut to 2.
    gap = torch.tensor([1.5, 0.5, 3.0, 0.8]).log()
    weight = truncated_weights(gap, torch.zeros(4), unit_M=torch.tensor([0, 0, 1, 1]))
    assert weight.tolist() == pytest.approx([0.75, 0.75, 2.0, 2.0])
    # In another order, and with a unit that has no slot.
    weight = truncated_weights(gap[[2, 0, 3, 1]], torch.zeros(4), unit_M=torch.tensor([3, 0, 3, 0]))
    assert weight.tolist() == pytest.approx([2.0, 0.75, 2.0, 0.75])
    assert truncated_weights(torch.zeros(0), torch.zeros(0), unit_M=torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_importance_weighs_the_surrogate_and_not_the_divergence():
    # Slot 0: weight .5, ratio 1, A .5, d = ln 2 -> -.25 + .1 * .1931.  Slot 1: weight 2, A -1, d = 0 -> 2.
    logprob = torch.tensor([0.4, 0.3]).log()
    terms = policy_loss(
        logprob,
        old_logprob_M=logprob,
        advantage_M=torch.tensor([0.5, -1.0]),
        weight_M=torch.tensor([0.25, 0.5]),
        config=ObjectiveConfig(kl_coef=0.1),
        reference_logprob_M=torch.tensor([0.2, 0.3]).log(),
        importance_M=torch.tensor([0.5, 2.0]),
    )
    assert float(terms.loss) == pytest.approx(0.25 * (-0.25 + 0.1 * 0.19315) + 0.5 * 2.0, abs=1e-5)
    assert terms.ratio_M.tolist() == [1.0, 1.0]


def test_loss_is_the_weighted_sum_of_surrogate_and_divergence():
    # Slot 0: ratio 1, A .5, d = ln 2 -> -.5 + .1 * .1931.  Slot 1: ratio 1.5, A 1 -> clipped at 1.2, d = 0 -> -1.2.
    logprob = torch.tensor([0.4, 0.3]).log()
    terms = policy_loss(
        logprob,
        old_logprob_M=torch.tensor([0.4, 0.2]).log(),
        advantage_M=torch.tensor([0.5, 1.0]),
        weight_M=torch.tensor([0.25, 0.5]),
        config=ObjectiveConfig(kl_coef=0.1),
        reference_logprob_M=torch.tensor([0.2, 0.3]).log(),
    )
    assert float(terms.loss) == pytest.approx(0.25 * (-0.5 + 0.1 * 0.19315) + 0.5 * -1.2, abs=1e-5)
    assert terms.ratio_M.tolist() == pytest.approx([1.0, 1.5])
    assert terms.is_clipped_M.tolist() == [False, True]
    assert terms.kl_M.tolist() == pytest.approx([0.19315, 0.0], abs=1e-5)


def test_loss_without_a_reference_has_no_divergence():
    terms = policy_loss(
        torch.zeros(1),
        old_logprob_M=torch.zeros(1),
        advantage_M=torch.ones(1),
        weight_M=torch.ones(1),
        config=ObjectiveConfig(),
    )
    assert float(terms.loss) == -1.0
    assert terms.kl_M is None


# ---- other objectives, by hand


def test_dual_clip_bounds_the_loss_of_a_bad_answer_that_became_likely():
    ratio, advantage = torch.tensor([5.0, 1.1, 5.0]), torch.tensor([-1.0, -1.0, 1.0])
    # 5: min(-5, -1.3) = -5, not below 3 * -1.  1.1: -1.1.  A > 0: min(5, 1.3), untouched.
    assert clipped_surrogate(ratio, advantage, **CLIP, clip_dual=3.0).tolist() == pytest.approx([-3.0, -1.1, 1.3])


@pytest.mark.parametrize(("kind", "expected"), [("k1", [0.6931, -0.6931]), ("k2", [0.2402, 0.2402])])
def test_other_estimates_of_the_divergence(kind, expected):
    d = torch.tensor([math.log(2), -math.log(2)])
    assert divergence(d, torch.zeros(2), kind=kind).tolist() == pytest.approx(expected, abs=1e-4)


def test_influence_pushes_with_the_sign_of_the_advantage():
    # I = (.95, 1.10, .60); delta 1: A = 1 -> 1 + I; A = -.5 -> -.5 - I; A = 0 stays 0. delta 0 changes nothing.
    influence = torch.tensor([0.95, 1.10, 0.60])
    assert influenced(torch.ones(3), influence, delta=1.0).tolist() == pytest.approx([1.95, 2.10, 1.60])
    assert influenced(torch.full((3,), -0.5), influence, delta=1.0).tolist() == pytest.approx([-1.45, -1.60, -1.10])
    assert influenced(torch.zeros(3), influence, delta=10.0).tolist() == [0.0, 0.0, 0.0]
    assert influenced(torch.full((3,), -0.5), influence, delta=0.0).tolist() == [-0.5] * 3


def test_canvas_normaliser_lets_every_canvas_of_an_answer_count_the_same():
    # Answer 0: canvases of 2 and 1 slots; answer 1: one canvas of 1. A third answer has no slot here.
    weight = normaliser_weights(
        "canvas",
        num_scored_M=torch.tensor([3.0, 3.0, 3.0, 1.0]),
        num_slots_M=NUM_SLOTS,
        stats=STATS,
        num_canvases_M=torch.tensor([2.0, 2.0, 2.0, 1.0]),
        canvas_slots_M=torch.tensor([2.0, 2.0, 1.0, 1.0]),
    )
    assert weight.tolist() == pytest.approx([1 / 12, 1 / 12, 1 / 6, 1 / 3])


# Two answers: slots 0, 1 of the first (scored twice: by two canvases), slot 0 of the second.
SLOTS = Slots(
    sample_M=torch.tensor([0, 0, 0, 0, 1]),
    slot_M=torch.tensor([0, 1, 0, 1, 0]),
    factor_M=torch.tensor([0.5, 0.5, 1.0, 0.25, 1.0]),
    normaliser_M=torch.tensor([0.25, 0.25, 0.25, 0.25, 0.5]),
    advantage_M=torch.tensor([1.0, 1.0, 1.0, 1.0, -2.0]),
    size_M=torch.tensor([2.0, 2.0, 2.0, 2.0, 1.0]),
)
LOGPROB = torch.tensor([-1.0, -2.0, -3.0, -4.0, -0.5], dtype=torch.float64)


def term_loss_of(old, **config):
    config = ObjectiveConfig(**config)
    logprob = LOGPROB.clone().requires_grad_()
    terms = make_terms(SLOTS, config)
    found = term_loss(terms, logprob, old_logprob_M=old, config=config, reference_logprob_M=None, importance_M=None)
    (slope,) = torch.autograd.grad(found.loss, logprob)
    return found, slope.tolist()


def test_pairs_of_canvases_make_one_term_of_each_slot():
    # Slot 0: .5 * -1 + 1 * -3 = -3.5; slot 1: .5 * -2 + .25 * -4 = -2. Old values 1 lower in the first canvas: changes
    # .5 and .5, ratios e^.5 = 1.649, clipped at 1.2; the other answer has ratio 1.
    old = LOGPROB - torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    found, slope = term_loss_of(old, likelihood="coupled", clip_high=1.0)
    assert sorted(found.ratio_M.tolist()) == pytest.approx([1.0, 1.6487, 1.6487], abs=1e-4)
    # -weight * A * ratio * factor: .25 * 1.6487 * (.5, .5, 1, .25), and .5 * 2 for the other answer.
    expected = [-0.20609, -0.20609, -0.41218, -0.10305, 1.0]
    assert slope == pytest.approx(expected, abs=1e-4)
    found, slope = term_loss_of(old, likelihood="coupled", clip_high=0.2)
    assert slope == pytest.approx([0.0, 0.0, 0.0, 0.0, 1.0])
    assert found.is_clipped_M.sum() == 2


def test_ratio_of_an_answer_is_the_mean_change_of_its_weighted_log_likelihood():
    # Sum of factor * change = .5 * 1 + .5 * 1 = 1 over 2 slots: ratio e^.5; its weight is 2 slots * .25.
    old = LOGPROB - torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    found, slope = term_loss_of(old, likelihood="elbo", ratio="sequence", clip_high=1.0)
    assert found.ratio_M.tolist() == pytest.approx([math.exp(0.5), 1.0])
    assert float(found.loss.detach()) == pytest.approx(-0.5 * math.exp(0.5) + 0.5 * 2.0)
    # d/dl = -weight * A * ratio * factor / 2.
    assert slope[:2] == pytest.approx([-0.5 * math.exp(0.5) * 0.25] * 2)
    assert slope[4] == pytest.approx(1.0)


def test_divergence_of_an_answer_counts_its_slots():
    # ESPO: (change of the ELBO)^2 / (2 T') with T' = 2 and change .5 * 1 + .5 * 1 = 1: .25, times .5 / 2 slots * 2.
    config = ObjectiveConfig(likelihood="elbo", ratio="sequence", kl="k2", kl_coef=1.0)
    anchor = LOGPROB - torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    found = term_loss(
        make_terms(SLOTS, config),
        LOGPROB,
        old_logprob_M=LOGPROB,
        config=config,
        reference_logprob_M=anchor,
        importance_M=None,
    )
    assert found.kl_M.tolist() == pytest.approx([0.25, 0.0])
    assert float(found.loss) == pytest.approx(-0.5 + 0.5 * 2.0 + 0.5 * 0.25)


def test_sandwich_raises_the_lower_bound_of_good_answers_and_lowers_the_upper_one_of_bad_ones():
    # Answer 0 (A = 1): lower bound .5 * -1 + .5 * -2 + 1 * -3 + .25 * -4 = -5.5. Answer 1 (A = -2), one draw of weight
    # 1: both bounds are -.5. Loss = -.25 * 1 * -5.5 - .5 * -2 * -.5 = 1.375 - .5.
    config = ObjectiveConfig(likelihood="elbo", loss="bounds", bound_beta=2.0, bound_weight=1.0)
    assert float(sandwich_loss(SLOTS, LOGPROB, config).loss) == pytest.approx(0.875)
    # With A = -1 for answer 0 its upper bound counts, beta 2: slot 0: ln(.5 e^-2 + 1 e^-6) / 2 = -1.32859; slot 1:
    # ln(.5 e^-4 + .25 e^-8) / 2 = -2.34202. Loss = .25 * (-3.67060) - .5.
    bad = dataclasses.replace(SLOTS, advantage_M=torch.tensor([-1.0, -1.0, -1.0, -1.0, -2.0]))
    found = float(sandwich_loss(bad, LOGPROB, config).loss)
    upper = math.log(0.5 * math.exp(-2) + math.exp(-6)) / 2 + math.log(0.5 * math.exp(-4) + 0.25 * math.exp(-8)) / 2
    assert found == pytest.approx(0.25 * upper - 0.5)
    assert upper == pytest.approx(-3.67060, abs=1e-4)


def test_likelihood_loss_has_no_ratio():
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    terms = policy_loss(
        logprob,
        old_logprob_M=logprob.detach() - 3.0,
        advantage_M=torch.tensor([0.5, -1.0]),
        weight_M=torch.tensor([1.0, 0.5]),
        config=ObjectiveConfig(loss="likelihood"),
    )
    assert float(terms.loss) == pytest.approx(0.5 - 1.0)
    terms.loss.backward()
    assert logprob.grad.tolist() == pytest.approx([-0.5, 0.5])
    assert terms.ratio_M.tolist() == [1.0, 1.0]
