"""How-many rules on numbers worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import samplers
from samplers.count import CountRule, EntropyBound, Factor, Fixed, Ranked, Threshold
from samplers.position import Confidence, Margin
from samplers.sampler import Sampler
from tests.samplers.table_model import TableModel, columns, one_step, state_of

# Slots a, b, c, d of the shared oracle: probabilities of three tokens; entropies .8979, .2235, .7422, .3317.
P = torch.tensor([[0.60, 0.30, 0.10], [0.95, 0.04, 0.01], [0.50, 0.49, 0.01], [0.92, 0.05, 0.03]])
A, B, C, D = range(4)


def committed(name: str, **options) -> list[int]:
    return columns(one_step(samplers.build(name, **options), P))


@pytest.mark.parametrize(("tau", "expected"), [(0.9, [B, D]), (0.94, [B]), (0.99, [B]), (0.55, [A, B, D])])
def test_threshold_commits_every_slot_that_reaches_it_and_never_none(tau: float, expected: list[int]) -> None:
    assert committed("threshold", tau=tau) == expected


@pytest.mark.parametrize(("tokens_per_step", "expected"), [(1, [B]), (2, [B, D]), (3, [A, B, D]), (9, [A, B, C, D])])
def test_fixed_number_is_capped_by_the_masked_slots(tokens_per_step: int, expected: list[int]) -> None:
    assert committed("confidence", tokens_per_step=tokens_per_step) == expected


@pytest.mark.parametrize(
    ("f", "expected"), [(0.05, [B]), (0.2, [B]), (0.5, [B, D]), (2.0, [A, B, D]), (3.0, [A, B, C, D])]
)
def test_factor_takes_prefixes_of_the_terms_10_24_160_250(f: float, expected: list[int]) -> None:
    assert committed("factor", f=f) == expected


def test_factor_bound_is_strict() -> None:
    # (1 + 1)(1 - .75) = .5, then (2 + 1)(1 - .75) = .75, exact in binary.
    masked_RL = torch.ones(1, 2, dtype=torch.bool)
    ranked = Ranked(state_of(masked_RL), masked_RL, top_prob_RL=torch.tensor([[0.75, 0.75]]))
    assert Factor(0.75).select(ranked).tolist() == [[True, False]]
    assert Factor(0.76).select(ranked).tolist() == [[True, True]]


def test_factor_in_another_order_bounds_the_least_confident_of_the_prefix() -> None:
    # From the left .60, .95, .50, .92: 2 * .40 = .8, 3 * .40 = 1.2, 4 * .50 = 2.0, 5 * .50 = 2.5.
    for f, expected in ((0.5, [A]), (1.0, [A]), (1.3, [A, B]), (2.1, [A, B, C]), (2.6, [A, B, C, D])):
        assert committed("ar", f=f) == expected


@pytest.mark.parametrize(
    ("gamma", "order", "expected"),
    [
        (0.0, "confidence", [B]),
        (0.3, "confidence", [B, D]),
        (0.6, "confidence", [A, B, D]),
        (1.3, "confidence", [A, B, C, D]),
        (0.6, "entropy", [B, C, D]),
        (0.3, "margin", [B, D]),
    ],
)
def test_entropy_bound_takes_prefixes_of_slack_0_2235_5552_12974(gamma: float, order: str, expected: list[int]) -> None:
    assert committed("eb", gamma=gamma, order=order) == expected


def test_entropy_bound_of_a_row_knows_nothing_of_its_neighbours() -> None:
    # A running maximum over the batch would let the neighbour's large entropies pay for this row's.
    uneven = torch.full((4, 3), 1 / 3)
    for rows in ([uneven, P], [P, uneven]):
        state = state_of(torch.ones(2, 4, dtype=torch.bool))
        commit = samplers.build("eb", gamma=0.3).step(state, TableModel(torch.stack(rows)))
        mine = 0 if rows[0] is P else 1
        assert commit.column_K[commit.row_K == mine].tolist() == [B, D]
        # ln 3 = 1.0986 each: the second slot's slack is above .3.
        assert commit.column_K[commit.row_K != mine].tolist() == [A]


def test_threshold_marks_by_probability_whatever_the_order() -> None:
    # From the left, yet b and d are the ones that reach it; where none does, the leftmost slot.
    assert committed("ar", tau=0.9) == [B, D]
    assert committed("ar", tau=0.99) == [A]


def test_rules_judge_the_sampling_law_if_told() -> None:
    # At T = 0.5: a .36/.46 = .783, b .997, c .25/.4902 = .510, d .996.
    options = {"tau": 0.75}
    model = one_step(samplers.build("threshold", **options), P, temperature=0.5)
    sampling = one_step(samplers.build("threshold", score_on="sampling", **options), P, temperature=0.5)
    assert (columns(model), columns(sampling)) == ([B, D], [A, B, D])


def test_step_budget_spreads_ten_slots_over_four_steps_as_3_3_2_2() -> None:
    table, masked_RL, taken = torch.full((10, 3), 1 / 3), torch.ones(1, 10, dtype=torch.bool), []
    for step in range(4):
        state = state_of(
            masked_RL.clone(),
            block_step_R=torch.tensor([step]),
            block_masked_R=torch.tensor([10]),
            block_steps_R=torch.tensor([4]),
        )
        commit = samplers.build("ar").step(state, TableModel(table))
        masked_RL[0, commit.column_K] = False
        taken.append(len(commit.column_K))
    assert taken == [3, 3, 2, 2]


def test_step_budget_stands_before_the_how_many_rule_in_the_rows_that_have_one() -> None:
    state = state_of(torch.ones(2, 4, dtype=torch.bool), block_steps_R=torch.tensor([0, 1]))
    commit = samplers.build("threshold", tau=0.9).step(state, TableModel(P))
    assert commit.column_K[commit.row_K == 0].tolist() == [B, D]
    assert commit.column_K[commit.row_K == 1].tolist() == [A, B, C, D]


def test_each_row_of_a_batch_is_chosen_by_its_own_slots() -> None:
    masked_RL = torch.tensor([[True, True, True, True], [True, False, True, False]])
    commit = samplers.build("threshold", tau=0.9).step(state_of(masked_RL), TableModel(P))
    assert list(zip(commit.row_K.tolist(), commit.column_K.tolist(), strict=True)) == [(0, B), (0, D), (1, A)]


@pytest.mark.parametrize("position", [Confidence(), Margin()])
@pytest.mark.parametrize("count", [Threshold(1.01), Factor(1e-9), Fixed(1)])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_rules_too_strict_for_any_slot_are_the_sequential_sampler(position, count: CountRule, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = (2 * torch.randn(3, 6, 5, generator=generator)).softmax(-1)
    masked_RL = torch.rand(3, 6, generator=generator) < 0.6
    masked_RL[:, 0] = True
    commits = [
        Sampler("x", position, rule).step(state_of(masked_RL, temperature=1.0), TableModel(table))
        for rule in (count, Fixed(1))
    ]
    assert commits[0].row_K.tolist() == [0, 1, 2]
    for field in ("row_K", "column_K", "token_K"):
        assert torch.equal(getattr(commits[0], field), getattr(commits[1], field))


def test_bad_settings_are_refused_with_their_range() -> None:
    with pytest.raises(ValueError, match="tokens_per_step is 0; it must be at least 1"):
        Fixed(0)
    with pytest.raises(ValueError, match=r"tau is 0\.0; it must be above 0"):
        Threshold(0.0)
    with pytest.raises(ValueError, match=r"f is -1; it must be above 0"):
        Factor(-1)
    with pytest.raises(ValueError, match=r"gamma is -0\.1; it must be 0 or more"):
        EntropyBound(-0.1)
