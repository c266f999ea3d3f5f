"""Positions drawn instead of sorted: law, record, randomness."""

import math

import pytest
import torch

import samplers
from samplers.choice import gumbel, plackett_luce
from tests.samplers.table_model import TableModel, state_of, tops


def test_first_slot_is_drawn_by_the_softmax_of_the_scores() -> None:
    # Scores .9 and .6 at temperature .3: e^3 / (e^3 + e^2) = .7311.
    number = 40_000
    sampler = samplers.build("confidence", position_temperature=0.3)
    commit = sampler.step(state_of(torch.ones(number, 2, dtype=torch.bool)), TableModel(tops(0.9, 0.6)))
    first_K = commit.column_K == 0
    assert float(first_K.float().mean()) == pytest.approx(0.7311, abs=0.009)  # four standard deviations
    expected_R = torch.where(first_K, math.log(0.7311), math.log(0.2689))
    torch.testing.assert_close(commit.position_logprob_R, expected_R, atol=1e-3, rtol=0)


def test_probability_of_an_order_is_that_of_draws_without_replacement() -> None:
    # Weights 1, 2, 3 in this order: 1/6, then 2/5, then 1. The last slot cannot be drawn.
    logit_RL = torch.tensor([[1.0, 2.0, 3.0, 0.0]], dtype=torch.float64).log().expand(4, -1)
    found = plackett_luce(logit_RL, torch.tensor([0, 1, 2, 3])).exp().tolist()
    assert found == pytest.approx([1.0, 1 / 6, 1 / 15, 1 / 15])


def test_several_slots_are_drawn_without_replacement() -> None:
    # P({0, 1}) of weights 1, 2, 3: 1/6 * 2/5 + 2/6 * 1/4 = .15; {0, 2}: 1/6 * 3/5 + 3/6 * 1/3 = .2667.
    number = 40_000
    weights = torch.tensor([1.0, 2.0, 3.0])
    temperature = 0.1
    top = (weights.log() * temperature + 0.8).tolist()
    sampler = samplers.build("confidence", position_temperature=temperature, tokens_per_step=2)
    commit = sampler.step(state_of(torch.ones(number, 3, dtype=torch.bool)), TableModel(tops(*top)))
    sums_R = torch.zeros(number, dtype=torch.int64).index_add_(0, commit.row_K, commit.column_K)
    observed = [float((sums_R == total).float().mean()) for total in (1, 2, 3)]
    assert observed == pytest.approx([0.15, 0.2667, 0.5833], abs=0.01)  # four standard deviations
    # The record is the probability of the order: for {0, 1} either 1/6 * 2/5 or 2/6 * 1/4.
    found = {round(value, 3) for value in commit.position_logprob_R[sums_R == 1].exp().tolist()}
    assert found == {0.067, 0.083}


def test_only_candidates_are_drawn_and_budgets_hold() -> None:
    masked_RL = torch.tensor([[True, False, True, True, False]]).expand(500, -1)
    sampler = samplers.build("entropy", position_temperature=5.0)
    state = state_of(masked_RL, block_steps_R=torch.full((500,), 2))
    commit = sampler.step(state, TableModel(tops(0.9, 0.99, 0.6, 0.7, 0.99)))
    assert len(commit.row_K) == 1000
    assert set(commit.column_K.tolist()) == {0, 2, 3}
    assert bool(commit.position_logprob_R.isfinite().all())


def test_low_temperature_sorts_and_a_drawn_order_is_the_sequences_own() -> None:
    table = tops(0.6, 0.9, 0.8)
    cold = samplers.build("confidence", position_temperature=1e-4)
    commit = cold.step(state_of(torch.ones(50, 3, dtype=torch.bool)), TableModel(table))
    assert set(commit.column_K.tolist()) == {1}
    warm = samplers.build("confidence", position_temperature=1.0)
    many = warm.step(state_of(torch.ones(50, 3, dtype=torch.bool)), TableModel(table)).column_K
    for row in (3, 17, 40):
        alone = state_of(torch.ones(1, 3, dtype=torch.bool), seed_R=torch.tensor([row + 11]))
        assert warm.step(alone, TableModel(table)).column_K.tolist() == [many[row]]


def test_noise_has_gumbels_mean_and_spread() -> None:
    noise = gumbel(state_of(torch.ones(400, 100, dtype=torch.bool)))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.026)  # four standard deviations
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.05)


def test_positions_that_are_not_drawn_leave_no_record() -> None:
    commit = samplers.build("confidence").step(state_of(torch.ones(1, 2, dtype=torch.bool)), TableModel(tops(0.9, 0.6)))
    assert commit.position_logprob_R is None


def test_draws_of_positions_want_a_fixed_number_of_tokens() -> None:
    with pytest.raises(ValueError, match="needs a fixed number of tokens a step"):
        samplers.build("confidence", position_temperature=1.0, tau=0.9)
    with pytest.raises(ValueError, match=r"position_temperature is 0\.0; it must be above 0"):
        samplers.build("confidence", position_temperature=0.0)
