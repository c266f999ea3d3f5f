"""Token draws follow the law they say, to the last token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.draw import draw, invert_cumulative, nucleus
from samplers.randomness import POSITION_STREAM, TOKEN_STREAM, uniform

ONE, ZERO = torch.ones(1), torch.zeros(1)


def test_greedy_takes_the_lowest_of_equal_tokens_and_reports_temperature_one() -> None:
    token, logprob = draw(torch.tensor([[0.0, 1.0, 1.0]]), ZERO, ONE, torch.zeros(1, dtype=torch.float64))
    assert token.tolist() == [1]
    # e / (1 + e + e)
    torch.testing.assert_close(logprob.exp(), torch.tensor([0.42232]), atol=1e-5, rtol=0)


def test_inverse_cumulative_splits_the_unit_interval_by_the_weights() -> None:
    weight = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(6, -1)
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999999], dtype=torch.float64)
    assert invert_cumulative(weight, u).tolist() == [0, 0, 2, 2, 3, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
def test_two_level_search_equals_one_running_sum(size: int, seed: int, u: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(1, size, generator=generator) * (torch.rand(1, size, generator=generator) < 0.7)
    weight[0, int(torch.randint(size, (1,), generator=generator))] = 0.5
    running = weight.to(torch.float64).cumsum(1)[0]
    target = u * float(running[-1])
    found = int(invert_cumulative(weight, torch.tensor([u], dtype=torch.float64)))
    assert weight[0, found] > 0
    # The other order of summation may move a boundary by a rounding error.
    low = float(running[found - 1]) if found else 0.0
    assert low - 1e-9 <= target <= float(running[found]) + 1e-9


def test_token_of_weight_zero_is_never_drawn_even_at_the_far_end() -> None:
    weight = torch.zeros(1, 300)
    weight[0, 100] = 1.0
    for u in (0.0, 0.5, 1 - 2**-53):
        assert invert_cumulative(weight, torch.tensor([u], dtype=torch.float64)).tolist() == [100]


def test_drawn_frequencies_match_the_tempered_law() -> None:
    number = 40_000
    logits = torch.tensor([[0.3, -1.0, 2.0, -torch.inf, 0.9]]).expand(number, -1)
    temperature = torch.full((number,), 0.7)
    u = uniform(
        torch.arange(number),
        torch.zeros(number, dtype=torch.int64),
        torch.zeros(number, dtype=torch.int64),
        stream=TOKEN_STREAM,
    )
    token, logprob = draw(logits, temperature, torch.ones(number), u)
    expected = (logits[0] / 0.7).softmax(0)
    observed = torch.bincount(token, minlength=5) / number
    assert observed[3] == 0
    assert float((observed - expected).abs().max()) < 0.01  # four standard deviations
    torch.testing.assert_close(logprob, expected.log()[token])


def test_nucleus_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    kept = [torch.isfinite(nucleus(p.log(), torch.tensor([mass])))[0].tolist() for mass in (0.4, 0.5, 0.6, 0.76, 1.0)]
    assert kept == [
        [False, True, False, False],
        [False, True, False, False],
        [False, True, False, True],
        [False, True, True, True],
        [True, True, True, True],
    ]


def test_nucleus_draw_reports_the_renormalised_law() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    token, logprob = draw(p.log(), ONE, torch.tensor([0.6]), torch.tensor([0.9], dtype=torch.float64))
    assert token.tolist() == [3]  # 0.5 / 0.75 = 0.667 < 0.9
    torch.testing.assert_close(logprob.exp(), torch.tensor([1 / 3]))


def test_rows_of_one_call_keep_their_own_temperature_and_nucleus() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    u = torch.tensor([0.1, 0.1], dtype=torch.float64)
    token, logprob = draw(logits, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), u)
    assert token.tolist() == [1, 0]
    torch.testing.assert_close(logprob, logits.log_softmax(1)[[0, 1], [1, 0]])


@pytest.mark.parametrize("stream", [TOKEN_STREAM, POSITION_STREAM])
def test_uniform_numbers_are_uniform_and_uncorrelated_between_neighbours(stream: int) -> None:
    seed, slot = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    u = uniform(seed.flatten(), torch.zeros(40_000, dtype=torch.int64), slot.flatten(), stream=stream).view(200, 200)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u.flatten(), bins=10, min=0, max=1) / 40_000
    assert float((counts - 0.1).abs().max()) < 0.006  # four standard deviations
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02


def test_streams_are_independent() -> None:
    n = torch.arange(10_000)
    zero = torch.zeros_like(n)
    u, v = uniform(n, zero, zero, stream=TOKEN_STREAM), uniform(n, zero, zero, stream=POSITION_STREAM)
    assert abs(float(torch.corrcoef(torch.stack([u, v]))[0, 1])) < 0.04
