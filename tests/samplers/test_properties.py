"""What holds for every sampler, on random tables, masks, laws and batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import samplers
from samplers.choice import choose
from samplers.count import CountRule, Fixed, Ranked
from samplers.view import Slots, View
from tests.samplers.table_model import TableModel, fill, state_of

CASES = [(name, {}) for name in samplers.names()] + [
    ("ar", {"tokens_per_step": 3}),
    ("attn", {"tokens_per_step": 2}),
    ("confidence", {"position_temperature": 0.2, "tokens_per_step": 2}),
    ("credit", {"tau": 0.4, "boost_draw": False}),
    ("eb", {"gamma": 1.0, "order": "entropy"}),
    ("egi", {"tokens_per_step": 2}),
    ("entropy", {"f": 1.5}),
    ("lcr", {"tau": 0.3}),
    ("margin", {"tau": 0.5, "score_on": "sampling"}),
    ("random", {"gamma": 1.0}),
]
EACH = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{'-'.join(o)}" for name, o in CASES])
ROWS, LENGTH, VOCABULARY = 4, 7, 11


def random_case(seed: int):
    """Masks, a table and attention sums, all random, with ties; at least one masked slot a row."""
    generator = torch.Generator().manual_seed(seed)
    masked_RL = torch.rand(ROWS, LENGTH, generator=generator) < 0.6
    masked_RL[torch.arange(ROWS), torch.randint(LENGTH, (ROWS,), generator=generator)] = True
    table = (torch.randint(-4, 5, (ROWS, LENGTH, VOCABULARY), generator=generator) / 2).softmax(-1)
    attention_RL = torch.randint(5, (ROWS, LENGTH), generator=generator) / 4
    temperature_R = torch.randint(4, (ROWS,), generator=generator) / 2
    changes = {
        "temperature_R": temperature_R,
        "top_p_R": torch.tensor([1.0, 0.7, 1.0, 0.9]),
        "top_k_R": torch.tensor([0, 0, 3, 4]),
        "block_steps_R": torch.tensor([0, 0, 2, 0]),
        "block_masked_R": torch.full((ROWS,), LENGTH),
        "step_R": torch.randint(3, (ROWS,), generator=generator),
        "seed_R": torch.randint(2**62, (ROWS,), generator=generator),
        "stop_ids": (1, 4),
        "whole_response": bool(seed % 2),
    }
    return masked_RL, table, attention_RL, changes


@EACH
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_step_commits_candidates_only_and_at_least_one_a_row(name, options, seed) -> None:
    masked_RL, table, attention_RL, changes = random_case(seed)
    sampler = samplers.build(name, **options)
    commit = sampler.step(state_of(masked_RL, sampler=sampler, **changes), TableModel(table, attention_RL))
    pairs = list(zip(commit.row_K.tolist(), commit.column_K.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert {row for row, _ in pairs} == set(range(ROWS))
    assert all(masked_RL[pair] for pair in pairs)
    assert bool((commit.token_K >= 0).all())
    assert bool((commit.token_K < VOCABULARY).all())
    assert bool((commit.logprob_K <= 0).all())
    assert bool(((commit.entropy_K >= 0) & (commit.entropy_K < 2.4)).all())  # ln 11 = 2.398


@EACH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_row_alone_gets_what_it_gets_among_others(name, options, seed) -> None:
    masked_RL, table, attention_RL, changes = random_case(seed)
    sampler = samplers.build(name, **options)
    memory_RL = {key: torch.randint(VOCABULARY, masked_RL.shape).float() for key in sampler.memory}
    together = sampler.step(state_of(masked_RL, memory_RL=memory_RL, **changes), TableModel(table, attention_RL))
    for row in range(ROWS):
        one = slice(row, row + 1)
        own = {key: value[one] if isinstance(value, torch.Tensor) else value for key, value in changes.items()}
        own["memory_RL"] = {key: value[one] for key, value in memory_RL.items()}
        alone = sampler.step(state_of(masked_RL[one], **own), TableModel(table[one], attention_RL[one]))
        here = together.row_K == row
        assert torch.equal(together.column_K[here], alone.column_K)
        assert torch.equal(together.token_K[here], alone.token_K)
        torch.testing.assert_close(together.logprob_K[here], alone.logprob_K)
        torch.testing.assert_close(together.entropy_K[here], alone.entropy_K)


@EACH
def test_columns_that_pad_the_block_change_nothing(name, options) -> None:
    masked_RL, table, attention_RL, changes = random_case(11)
    sampler = samplers.build(name, **options)
    commits = []
    for padding in (0, 5):
        wide_RL = torch.nn.functional.pad(masked_RL, (0, padding))
        wide = torch.cat([table, torch.rand(ROWS, padding, VOCABULARY)], dim=1)
        wide_attention_RL = torch.cat([attention_RL, 9 * torch.ones(ROWS, padding)], dim=1)
        state = state_of(wide_RL, sampler=sampler, **changes)
        commits.append(sampler.step(state, TableModel(wide, wide_attention_RL)))
    for field in ("row_K", "column_K", "token_K", "logprob_K", "entropy_K"):
        torch.testing.assert_close(getattr(commits[0], field), getattr(commits[1], field))


@EACH
def test_every_position_is_committed_exactly_once(name, options) -> None:
    _, table, attention_RL, _ = random_case(5)
    sampler = samplers.build(name, **options)
    rows = 30

    def predict(token_RL: torch.Tensor, masked_RL: torch.Tensor) -> TableModel:
        # The prediction depends on what has been committed; `fill` refuses a second commit of a slot.
        shift_R = token_RL.clamp(min=0).sum(dim=1) % ROWS
        return TableModel(table[shift_R], attention_RL[shift_R])

    token_RL, commits = fill(sampler, predict, rows=rows, length=LENGTH, temperature=1.0)
    assert len(commits) <= LENGTH
    assert sum(len(commit.row_K) for commit in commits) == rows * LENGTH
    assert bool((token_RL >= 0).all())


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device: numbers read back, and lists whose length must be known."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.lists = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.numbers += func is torch.ops.aten._local_scalar_dense.default
        self.lists += func is torch.ops.aten.nonzero.default
        return func(*args, **(kwargs or {}))


@EACH
def test_a_step_reads_no_number_back_and_makes_few_lists(name, options) -> None:
    masked_RL, table, attention_RL, changes = random_case(6)
    sampler = samplers.build(name, **options)
    budgets = ({}, {"block_steps_R": torch.zeros(ROWS, dtype=torch.int64)})
    states = [state_of(masked_RL, sampler=sampler, **changes | budget) for budget in budgets]
    for state in states:
        with Reads() as reads:
            sampler.step(state, TableModel(table, attention_RL))
        assert reads.numbers == 0
        # A chain lists its candidates and their slots too.
        assert reads.lists <= (4 if name.startswith("imh") else 2)
    if not state.whole_response and (name, options) in (("ar", {}), ("random", {})):
        assert reads.lists == 0  # one slot a row, and nothing asked of the model before it is known


class One(CountRule):
    """The best slot, by the way that every other rule goes."""

    def select(self, ranked: Ranked) -> torch.Tensor:
        return ranked.first(torch.ones_like(ranked.state.masked_R))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_short_way_to_the_best_slot_equals_the_sorted_one(seed: int) -> None:
    masked_RL, _, _, _ = random_case(seed)
    state = state_of(masked_RL)
    for slots in (Slots.candidates(state), Slots.grid(state)):
        generator = torch.Generator().manual_seed(seed)
        score_M = torch.randint(3, slots.row_M.shape, generator=generator).float()
        view = View(slots, state.candidate_RL)
        assert torch.equal(choose(view, score_M, Fixed(1)).index_K, choose(view, score_M, One()).index_K)
