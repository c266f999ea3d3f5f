"""Token draws follow the law they say, to the last token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.draw import Law, draw, invert_cumulative
from samplers.randomness import POSITION_STREAM, TOKEN_STREAM, uniform


def law_of(temperature, top_p=None, top_k=None) -> Law:
    temperature_K = torch.tensor(temperature, dtype=torch.float32)
    top_p_K = torch.ones(len(temperature)) if top_p is None else torch.tensor(top_p)
    top_k_K = torch.zeros(len(temperature), dtype=torch.int64) if top_k is None else torch.tensor(top_k)
    return Law(
        temperature_K,
        top_p_K,
        top_k_K,
        any_temperature=bool((temperature_K > 0).any()),
        any_greedy=bool((temperature_K == 0).any()),
        any_top_p=bool((top_p_K < 1).any()),
        max_top_k=int(top_k_K.max()),
    )


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_greedy_takes_the_lowest_of_equal_tokens_and_reports_temperature_one() -> None:
    token, logprob = draw(torch.tensor([[0.0, 1.0, 1.0]]), law_of([0.0]), numbers(0.0))
    assert token.tolist() == [1]
    # e / (1 + e + e)
    torch.testing.assert_close(logprob.exp(), torch.tensor([0.42232]), atol=1e-5, rtol=0)


def test_inverse_cumulative_splits_the_unit_interval_by_the_weights() -> None:
    weight = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(6, -1)
    u = numbers(0.0, 0.19, 0.21, 0.69, 0.71, 0.999999)
    assert invert_cumulative(weight, u).tolist() == [0, 0, 2, 2, 3, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
def test_two_level_search_equals_one_running_sum(size: int, seed: int, u: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(1, size, generator=generator) * (torch.rand(1, size, generator=generator) < 0.7)
    weight[0, int(torch.randint(size, (1,), generator=generator))] = 0.5
    running = weight.to(torch.float64).cumsum(1)[0]
    target = u * float(running[-1])
    found = int(invert_cumulative(weight, numbers(u)))
    assert weight[0, found] > 0
    # Chunks are summed in float32, so a boundary may move by a rounding error of that.
    low = float(running[found - 1]) if found else 0.0
    assert low - 2e-5 <= target <= float(running[found]) + 2e-5


def test_token_of_weight_zero_is_never_drawn_even_at_the_far_end() -> None:
    weight = torch.zeros(1, 600)
    weight[0, 100] = 1.0
    for u in (0.0, 0.5, 1 - 2**-53):
        assert invert_cumulative(weight, numbers(u)).tolist() == [100]


def test_rounding_of_the_sums_never_leads_past_the_last_token() -> None:
    # The float32 sum of a chunk lies above the float64 sum of its members in about half of these rows.
    weight_KV = torch.rand(200, 128, generator=torch.Generator().manual_seed(0))
    found_K = invert_cumulative(weight_KV, torch.full((200,), 1 - 2**-53, dtype=torch.float64))
    assert int(found_K.max()) == 127


def test_drawn_frequencies_match_the_tempered_law() -> None:
    number = 40_000
    logits = torch.tensor([[0.3, -1.0, 2.0, -torch.inf, 0.9]]).expand(number, -1)
    zero = torch.zeros(number, dtype=torch.int64)
    u = uniform(torch.arange(number), zero, zero, stream=TOKEN_STREAM)
    token, logprob = draw(logits, law_of([0.7] * number), u)
    expected = (logits[0] / 0.7).softmax(0)
    observed = torch.bincount(token, minlength=5) / number
    assert observed[3] == 0
    assert float((observed - expected).abs().max()) < 0.01  # four standard deviations
    torch.testing.assert_close(logprob, expected.log()[token])


def test_truncated_draw_reports_the_renormalised_law() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    token, logprob = draw(logits, law_of([1.0], top_p=[0.6]), numbers(0.9))
    assert token.tolist() == [3]  # 0.5 and 0.25 are kept; 0.5 / 0.75 = 0.667 < 0.9
    torch.testing.assert_close(logprob.exp(), torch.tensor([1 / 3]))


def test_nucleus_counts_the_mass_that_top_k_leaves() -> None:
    # Top-3 leaves (.4, .3, .2) / .9 = (.444, .333, .222): .75 is reached by two of them, of the whole law by three.
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = law_of([1.0], top_p=[0.75], top_k=[3]).apply(logits).isfinite()[0].tolist()
    assert kept == [True, True, False, False]
    assert law_of([1.0], top_p=[0.75]).apply(logits).isfinite()[0].tolist() == [True, True, True, False]


def test_rows_of_one_call_keep_their_own_law() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(5, -1)
    law = law_of([0.0, 1.0, 1.0, 1.0, 0.5], top_p=[0.1, 1.0, 0.6, 1.0, 1.0], top_k=[1, 0, 0, 1, 0])
    token, logprob = draw(logits, law, numbers(0.99, 0.99, 0.99, 0.99, 0.99))
    # Greedy ignores the cuts in its record; T = 0.5 squares: .25, .09, .04 of .38.
    assert token.tolist() == [0, 2, 1, 0, 2]
    expected = torch.tensor([0.5, 0.2, 0.375, 1.0, 0.04 / 0.38])
    torch.testing.assert_close(logprob.exp(), expected)


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
