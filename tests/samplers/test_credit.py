"""Credit of slots that keep predicting the same token; numbers worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import samplers
from samplers.credit import Credit, boosted
from samplers.prediction import Need, summarise
from tests.samplers.table_model import TableModel, columns, one_step, state_of, tops

NEEDS = Need.TOP_PROB | Need.TOP_TOKEN


def step(sampler, table: torch.Tensor, memory_RL=None, **changes):
    """One step on one row whose slots are all masked."""
    masked_RL = torch.ones(1, len(table), dtype=torch.bool)
    more = {} if memory_RL is None else {"memory_RL": memory_RL}
    return sampler.step(state_of(masked_RL, sampler=sampler, **more | changes), TableModel(table))


def test_credit_of_an_unchanging_prediction_worked_out_by_hand() -> None:
    # p = .6: C = .6^.2 = .9029, then .8 * .9029 + .9029 = 1.6252.
    # Raised by .7 ln(1 + C) = .4504, then .6756: .6 e^.4504 / (.6 e^.4504 + .4) = .7018, then .7467.
    credit = Credit(torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    found = []
    for _ in range(2):
        prediction = summarise(tops(0.6).log(), NEEDS, given_token_M=credit.token_M)
        credit = credit.updated(prediction, decay=0.8, power=0.2)
        raised = boosted(prediction, credit.token_M, 0.7 * credit.credit_M.log1p())
        found += [float(credit.credit_M), float(raised.top_prob_M)]
    assert found == pytest.approx([0.9029, 0.7018, 1.6252, 0.7467], abs=1e-4)


def test_more_steps_bring_a_slot_over_the_threshold() -> None:
    sampler = samplers.build("credit", tau=0.72)
    table = tops(0.6, 0.6, 0.9)
    first = step(sampler, table)
    assert columns(first) == [2]
    assert columns(step(sampler, table, first.memory_RL)) == [0, 1, 2]


def test_another_token_takes_over_where_its_credit_is_larger() -> None:
    table = torch.tensor([[0.6, 0.4]])
    turned = torch.tensor([[0.3, 0.7]])
    sampler = samplers.build("credit")
    once = step(sampler, table).memory_RL
    # .8 * .9029 = .7223 < .7^.2 = .9311
    after = step(sampler, turned, once).memory_RL
    assert after["credit_token"].tolist() == [[1.0]]
    assert after["credit"].item() == pytest.approx(0.9311, abs=1e-4)
    # .8 * 1.6252 = 1.3002 > .9311: the first token stays, the second one's credit is forgotten.
    after = step(sampler, turned, step(sampler, table, once).memory_RL).memory_RL
    assert after["credit_token"].tolist() == [[0.0]]
    assert after["credit"].item() == pytest.approx(1.3002, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_raised_prediction_equals_the_dense_matrix_while_no_prediction_turns(seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    favourite_M = torch.randint(9, (5,), generator=generator)
    credit = Credit(torch.zeros(5, dtype=torch.int64), torch.zeros(5))
    dense_MV = torch.zeros(5, 9)
    for _ in range(steps):
        logits_MV = torch.randn(5, 9, generator=generator)
        # A noise of one deviation now and then passes 4; a favourite that it beats is a prediction that turns.
        logits_MV = logits_MV.clamp(max=3.5)
        logits_MV[torch.arange(5), favourite_M] = 4 + torch.rand(5, generator=generator)
        prediction = summarise(logits_MV, NEEDS, given_token_M=credit.token_M)
        credit = credit.updated(prediction, decay=0.8, power=0.2)
        raised = boosted(prediction, credit.token_M, 0.7 * credit.credit_M.log1p())
        dense_MV *= 0.8
        dense_MV[torch.arange(5), favourite_M] += prediction.top_prob_M**0.2
        expected_M = (logits_MV + 0.7 * dense_MV.log1p()).softmax(-1).amax(-1)
        torch.testing.assert_close(raised.top_prob_M, expected_M)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 3))
def test_raising_one_token_equals_adding_to_its_logit(seed: int, boost: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_MV = torch.randn(40, 6, generator=generator)
    token_M = torch.randint(6, (40,), generator=generator)
    raised = boosted(summarise(logits_MV, NEEDS, given_token_M=token_M), token_M, torch.full((40,), boost))
    expected_MV = logits_MV.scatter_add(1, token_M[:, None], torch.full((40, 1), boost)).softmax(-1)
    torch.testing.assert_close(raised.top_prob_M, expected_MV.amax(-1))
    assert torch.equal(raised.top_token_M, expected_MV.argmax(-1))


def test_tokens_come_from_the_raised_law_and_records_of_greedy_ones_are_the_models() -> None:
    # Token 0 is remembered with credit 4: .45 e^(.7 ln 5) = 1.388 beats .55, and its share is 1.388 / 1.938 = .716.
    memory_RL = {"credit_token": torch.zeros(1, 1), "credit": torch.tensor([[5.0]])}
    table = torch.tensor([[0.45, 0.55]])
    greedy = step(samplers.build("credit"), table, memory_RL)
    assert greedy.token_K.tolist() == [0]
    assert greedy.logprob_K.exp().item() == pytest.approx(0.45, abs=1e-6)
    drawn = step(samplers.build("credit"), table, memory_RL, temperature=1.0)
    assert drawn.logprob_K.exp().item() == pytest.approx(0.716 if drawn.token_K.item() == 0 else 0.284, abs=1e-3)
    own = step(samplers.build("credit", boost_draw=False), table, memory_RL)
    assert own.token_K.tolist() == [1]
    assert own.logprob_K.exp().item() == pytest.approx(0.55, abs=1e-6)


def test_likelihood_is_exact_only_without_raised_draws() -> None:
    assert not samplers.build("credit").exact_likelihood
    assert samplers.build("credit", boost_draw=False).exact_likelihood


def test_memory_of_slots_that_are_no_candidates_is_kept() -> None:
    sampler = samplers.build("credit")
    memory_RL = {"credit_token": torch.tensor([[3.0, 1.0]]), "credit": torch.tensor([[2.0, 1.5]])}
    state = state_of(torch.tensor([[False, True]]), memory_RL=memory_RL)
    after = sampler.step(state, TableModel(tops(0.6, 0.6))).memory_RL
    assert after["credit_token"][0, 0] == 3.0
    assert after["credit"][0, 0] == 2.0
    assert after["credit"][0, 1] == pytest.approx(0.8 * 1.5, abs=1e-6)  # larger than .6^.2 = .9029 of token 0
    assert memory_RL["credit"].tolist() == [[2.0, 1.5]]


def test_without_strength_it_is_the_threshold_sampler() -> None:
    table = (3 * torch.randn(20, 8, generator=torch.Generator().manual_seed(3))).softmax(-1)
    plain = one_step(samplers.build("threshold", tau=0.7), table, temperature=1.0)
    credit = one_step(samplers.build("credit", strength=0.0, tau=0.7), table, temperature=1.0)
    assert len(plain.column_K) > 1
    for field in ("column_K", "token_K", "logprob_K"):
        torch.testing.assert_close(getattr(plain, field), getattr(credit, field))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decay is 1\.0; it must be at least 0 and below 1"):
        samplers.build("credit", decay=1.0)
    with pytest.raises(ValueError, match="strength is -1"):
        samplers.build("credit", strength=-1)
