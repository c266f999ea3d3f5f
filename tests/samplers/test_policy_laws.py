"""The action laws of the policy: hand-worked probabilities, enumeration, frequencies, gradients."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.policy.laws import Bernoulli, Dpls, law, log_prob_with_fallback


def logit(*shares: float) -> torch.Tensor:
    return torch.tensor([[math.log(s / (1 - s)) for s in shares]])


def eligible(slots: int) -> torch.Tensor:
    return torch.ones(1, slots, dtype=torch.bool)


def orders(slots: list[int]):
    """Every action of the dynamic Plackett-Luce law: ordered picks of one or more of the slots."""
    for size in range(1, len(slots) + 1):
        yield from itertools.permutations(slots, size)


def placed(picks, width: int) -> torch.Tensor:
    action = torch.zeros(1, width, dtype=torch.int64)
    for place, slot in enumerate(picks, start=1):
        action[0, slot] = place
    return action


def test_bernoulli_log_probability_by_hand() -> None:
    # s = (.12, .5, .9), u = (0, 1, 1): ln .88 + ln .5 + ln .9 = -.12783 - .69315 - .10536 = -.9263
    found = Bernoulli().log_prob(logit(0.12, 0.5, 0.9), eligible(3), torch.tensor([[0, 1, 1]]))
    assert found.tolist() == pytest.approx([-0.9263], abs=1e-4)


def test_dpls_probabilities_by_hand() -> None:
    # b = (0, ln 2): first pick 1/3, 2/3; then the other one against STOP of weight 1: 2 -> STOP 1/2, 1 -> STOP 1/3
    b = torch.tensor([[0.0, math.log(2)]])
    expected = {(1,): 1 / 3, (1, 0): 1 / 3, (0,): 1 / 9, (0, 1): 2 / 9}
    for picks, probability in expected.items():
        found = Dpls().log_prob(b, eligible(2), placed(picks, 2)).exp()
        assert found.tolist() == pytest.approx([probability], abs=1e-6), picks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.3, 3), st.floats(0.3, 3))
def test_probabilities_of_all_actions_sum_to_one(seed, temperature, beta) -> None:
    generator = torch.Generator().manual_seed(seed)
    b = 2 * torch.randn(1, 4, generator=generator)
    open_slots = [0, 1, 3]
    can = torch.tensor([[True, True, False, True]])
    total = sum(float(Dpls(temperature, beta).log_prob(b, can, placed(picks, 4)).exp()) for picks in orders(open_slots))
    assert total == pytest.approx(1, abs=1e-5)
    subsets = [placed(picks, 4).clamp(max=1) for n in range(4) for picks in itertools.combinations(open_slots, n)]
    assert sum(float(Bernoulli(temperature, beta).log_prob(b, can, u).exp()) for u in subsets) == pytest.approx(
        1, abs=1e-4
    )


@pytest.mark.parametrize("name", ["bernoulli", "dpls"])
def test_row_without_an_eligible_slot_has_log_probability_zero_and_commits_nothing(name) -> None:
    b, none = torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    chosen = law(name)
    assert chosen.log_prob(b, none, torch.zeros(2, 3, dtype=torch.int64)).tolist() == [0.0, 0.0]
    assert not chosen.draw(b, none, lambda number: torch.rand(2, 4, dtype=torch.float64)).any()


@pytest.mark.parametrize("name", ["bernoulli", "dpls"])
def test_ineligible_slots_get_no_gradient(name) -> None:
    b = torch.tensor([[0.3, -1.0, 2.0, 0.5]], requires_grad=True)
    can = torch.tensor([[True, False, True, True]])
    law(name).log_prob(b, can, torch.tensor([[2, 0, 1, 0]])).sum().backward()
    assert b.grad[0, 1] == 0
    assert bool((b.grad[0, [0, 2, 3]] != 0).all())
    assert bool(b.grad.isfinite().all())


def test_gradient_of_dpls_equals_finite_differences() -> None:
    torch.manual_seed(0)
    b = torch.randn(1, 4, dtype=torch.float32)
    can, action = eligible(4), torch.tensor([[0, 2, 1, 0]])
    given_b = b.clone().requires_grad_(True)
    Dpls().log_prob(given_b, can, action).sum().backward()
    for slot in range(4):
        step = torch.zeros(1, 4)
        step[0, slot] = 1e-2
        slope = (Dpls().log_prob(b + step, can, action) - Dpls().log_prob(b - step, can, action)) / 2e-2
        assert float(given_b.grad[0, slot]) == pytest.approx(float(slope), abs=1e-3)


@pytest.mark.parametrize("name", ["bernoulli", "dpls"])
def test_draws_follow_the_law(name) -> None:
    rows = 40000
    generator = torch.Generator().manual_seed(4)
    numbers = [torch.rand(rows, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    b = torch.tensor([[0.4, -0.7, 1.1]]).expand(rows, 3)
    chosen = law(name, temperature=0.8, beta=1.3)
    drawn = chosen.draw(b, torch.ones(rows, 3, dtype=torch.bool), lambda number: numbers[number])
    for action in drawn.unique(dim=0):
        share = float((drawn == action).all(dim=1).float().mean())
        expected = float(chosen.log_prob(b[:1], eligible(3), action[None]).exp())
        # five standard deviations of a share of 40000 draws
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / rows) + 1e-6)


def test_beta_scales_the_share_up_to_one() -> None:
    # s = .3 becomes .75 at beta 2.5, s = .6 becomes 1: the first left alone, the second committed has probability .25
    found = Bernoulli(beta=2.5).log_prob(logit(0.3, 0.6), eligible(2), torch.tensor([[0, 1]])).exp()
    assert found.tolist() == pytest.approx([0.25], abs=1e-6)


def test_temperature_divides_logits() -> None:
    b = torch.tensor([[1.0, -2.0]])
    u = torch.tensor([[1, 0]])
    torch.testing.assert_close(
        Bernoulli(temperature=0.5).log_prob(b, eligible(2), u), Bernoulli().log_prob(2 * b, eligible(2), u)
    )


def test_fallback_probabilities_of_all_commits_sum_to_one() -> None:
    b, can = torch.tensor([[0.2, -0.4, -1.0]]), eligible(3)
    best = torch.tensor([[True, False, False]])
    subsets = [placed(picks, 3).clamp(max=1) for n in range(1, 4) for picks in itertools.combinations(range(3), n)]
    found = [float(log_prob_with_fallback(Bernoulli(), b, can, u, best).exp()) for u in subsets]
    assert sum(found) == pytest.approx(1, abs=1e-6)
    # only the best slot: drawn alone, or nothing drawn
    alone, nothing = (float(Bernoulli().log_prob(b, can, u).exp()) for u in (placed((0,), 3), placed((), 3)))
    assert found[0] == pytest.approx(alone + nothing, abs=1e-6)


@pytest.mark.parametrize("field", ["temperature", "beta"])
def test_knobs_that_are_not_above_zero_are_refused(field) -> None:
    with pytest.raises(ValueError, match=f"{field} of the unmasking policy is 0"):
        law("bernoulli", **{field: 0.0})
