"""Samplers that rank by attention: oracles worked out by hand, and the two forms of Attn-Sampler."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import samplers
from samplers import ProbeSpec
from samplers.position import MaxS
from samplers.prediction import Prediction
from samplers.view import Slots, View
from tests.samplers.table_model import TableModel, columns, fill, state_of, tops

# Attention of the shared oracle: rows look at columns; position 0 is the prompt, 1 to 3 are slots.
ATTENTION = torch.tensor(
    [[0.55, 0.05, 0.10, 0.30], [0.50, 0.20, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10], [0.20, 0.10, 0.60, 0.10]]
)


class OracleModel(TableModel):
    """The oracle's attention on a canvas of three slots, some of them masked; sums as `ProbeSpec` defines them."""

    def __init__(self, probability: torch.Tensor, masked_L: torch.Tensor, kind: str) -> None:
        masked_N = torch.cat([torch.tensor([False]), masked_L])
        if kind == "column":
            others_NN = ATTENTION * masked_N[:, None] * ~torch.eye(4, dtype=torch.bool)
            sums_N = others_NN.sum(0)
        else:
            sums_N = (ATTENTION * ~masked_N).sum(1)
        super().__init__(probability, sums_N[None, 1:])


def committed(sampler, c: list[float], p: list[float], **changes) -> list[int]:
    """Slots counted from 1."""
    model = TableModel(tops(*p), torch.tensor([c]))
    commit = sampler.step(state_of(torch.ones(1, len(c), dtype=torch.bool), **changes), model)
    return [column + 1 for column in columns(commit)]


@pytest.mark.parametrize(
    ("c", "p", "expected"),
    [
        # Low is {2}: only slot 1 is attended to more.
        ([0.9, 0.7, 0.5, 0.3], [0.95, 0.80, 0.97, 0.99], [1]),
        # Slot 1 is low and the most attended one: nothing passes, slot 1 is committed.
        ([0.9, 0.7, 0.5, 0.3], [0.50, 0.95, 0.97, 0.99], [1]),
        ([0.9, 0.7, 0.5, 0.3], [0.95, 0.92, 0.97, 0.99], [1, 2, 3, 4]),
        # Slot 2 is low and ties with slot 1, which does not pass then; the lower of the two is committed.
        ([0.7, 0.7, 0.5, 0.3], [0.95, 0.80, 0.97, 0.99], [1]),
        ([0.3, 0.5, 0.9, 0.7], [0.95, 0.80, 0.97, 0.99], [3, 4]),
    ],
)
def test_parallel_rule_on_the_oracle(c: list[float], p: list[float], expected: list[int]) -> None:
    assert committed(samplers.build("attn"), c, p) == expected


def test_sequential_order_on_the_oracle() -> None:
    # Column sums over masked rows, the own row left out: (.7, .8, .2), then (.1, -, .1), then slot 3 alone.
    p = tops(0.9, 0.8, 0.7)
    sampler = samplers.build("attn", tokens_per_step=1)
    _, commits = fill(sampler, lambda _, masked: OracleModel(p, masked[0], "column"), rows=1, length=3, temperature=0.0)
    assert [int(commit.column_K) + 1 for commit in commits] == [2, 1, 3]


@pytest.mark.parametrize(
    ("min_prob", "top", "expected"),
    [
        (0.0, (0.85, 0.95, 0.93), 1),  # S = .5, .1, .2
        (0.9, (0.85, 0.95, 0.93), 3),
        (0.96, (0.85, 0.95, 0.93), 2),  # no slot passes: the highest probability
        (0.9, (0.90, 0.60, 0.70), 1),  # .90 is not above .9, and still the highest
    ],
)
def test_max_s_on_the_oracle(min_prob: float, top: tuple[float, ...], expected: int) -> None:
    masked_L = torch.ones(3, dtype=torch.bool)
    model = OracleModel(tops(*top), masked_L, "row")
    torch.testing.assert_close(model.attention_RL[0], torch.tensor([0.5, 0.1, 0.2]))
    commit = samplers.build("max_s", min_prob=min_prob).step(state_of(masked_L[None]), model)
    assert (commit.column_K + 1).tolist() == [expected]


def max_s_winner(top_M: torch.Tensor, seen_M: torch.Tensor, *, min_prob: float) -> int:
    state = state_of(torch.ones(1, len(top_M), dtype=torch.bool))
    view = View(Slots.candidates(state), state.candidate_RL, Prediction(top_M), seen_M)
    return int(MaxS(min_prob).score(view).argmax())


def test_max_s_passes_slots_above_its_bound_and_not_at_it() -> None:
    top_M, seen_M = torch.tensor([0.75, 0.5, 0.8125]), torch.tensor([0.9, 0.95, 0.1])
    assert max_s_winner(top_M, seen_M, min_prob=0.75) == 2
    assert max_s_winner(top_M, seen_M, min_prob=0.74) == 0


def test_max_s_tells_close_numbers_apart() -> None:
    # Neighbours in float32: a sum with anything of size 2 in float32 would make them equal.
    close_M = torch.tensor([0.3, 0.3]).nextafter(torch.tensor([0.0, 1.0]))
    assert max_s_winner(close_M, torch.zeros(2), min_prob=0.9) == 1
    assert max_s_winner(torch.full((2,), 0.95), close_M, min_prob=0.9) == 1


def threshold_form(c: list[float], p: list[float], tau: float) -> list[int]:
    """D = {high j: c_j > max of c over low}; all high ones if none is low; the most attended slot if D is empty."""
    low = [j for j in range(len(c)) if p[j] < tau]
    bar = max((c[j] for j in low), default=-1.0)
    chosen = [j for j in range(len(c)) if p[j] >= tau and c[j] > bar]
    return chosen or [max(range(len(c)), key=lambda j: (c[j], -j))]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(5, 9)), min_size=1, max_size=12))
def test_prefix_form_equals_the_threshold_form_with_ties(slots: list[tuple[int, int]]) -> None:
    c, p = [a / 4 for a, _ in slots], [b / 10 for _, b in slots]
    expected = threshold_form(c, p, 0.75)
    assert committed(samplers.build("attn", tau=0.75), c, p) == [j + 1 for j in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(5, 9)), min_size=1, max_size=12))
def test_threshold_above_one_is_the_sequential_sampler(slots: list[tuple[int, int]]) -> None:
    c, p = [a / 4 for a, _ in slots], [b / 10 for _, b in slots]
    sequential = committed(samplers.build("attn", tokens_per_step=1), c, p)
    assert committed(samplers.build("attn", tau=1.01), c, p) == sequential == [c.index(max(c)) + 1]


def test_under_a_step_budget_ties_go_to_the_lower_slot() -> None:
    # Slot 2 is low and would rank before slot 1 in the prefix form.
    budget = {"block_steps_R": torch.tensor([4])}
    assert committed(samplers.build("attn"), [0.7, 0.7, 0.7, 0.3], [0.95, 0.8, 0.7, 0.9], **budget) == [1]


def test_probes_say_what_is_needed_and_others_ask_for_nothing() -> None:
    assert samplers.build("attn").probe == ProbeSpec("column", "all", local=False)
    assert samplers.build("attn", layers=[0, 3], local=True).probe == ProbeSpec("column", (0, 3), local=True)
    assert samplers.build("max_s").probe == ProbeSpec("row", "last")
    assert [name for name in samplers.names() if samplers.build(name).probe is not None] == ["attn", "max_s"]


def test_sequential_attention_runs_the_head_where_it_commits_only() -> None:
    model = TableModel(tops(0.9, 0.8, 0.7), torch.tensor([[0.1, 0.3, 0.2]]))
    samplers.build("attn", tokens_per_step=1).step(state_of(torch.ones(1, 3, dtype=torch.bool)), model)
    assert model.asked == [3]
    assert model.head_rows == 1
