import math

import pytest
import torch

from learner.config import ObjectiveConfig
from learner.objective import (
    clipped_surrogate,
    is_clipped,
    k3,
    normaliser_weights,
    policy_loss,
    policy_ratio,
    truncated_weights,
)
from learner.records import BatchStats

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
    assert k3(logprob, torch.zeros(3)).tolist() == pytest.approx([0.1931, 0.3069, 0.0], abs=1e-4)


def test_k3_is_unbiased_for_the_divergence():
    # Sum over tokens of p * k3 = sum p ln(p / r) because sum p * (r / p - 1) = 0.
    p, r = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    assert float((p * k3(p.log(), r.log())).sum()) == pytest.approx(float((p * (p / r).log()).sum()))


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
    with pytest.raises(ValueError, match="'batch' is unknown: choose token, sequence or fixed"):
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
