"""Blocks, visibility, step budgets and fresh canvases, by hand."""

import pytest
import torch

from rollout.cache_policy import CachePolicy
from rollout.canvas import BlockView, Canvases
from rollout.layout import Layout
from rollout.request import Request, sequence_seed
from rollout.row import Row

FULL = Layout(None, block_causal=False)
SEMI = Layout(4, block_causal=False)
CAUSAL = Layout(4, block_causal=True)
SUB = Layout(8, block_causal=True, sub_block_length=4, first_slot_alone=True)
NONE = CachePolicy(kind="none")


def placed(layout: Layout, *shapes: tuple[int, int], steps: int | None = None) -> tuple[Canvases, list[Row]]:
    requests = [Request([7] * p, t, seed=1, steps=steps) for p, t in shapes]
    canvases = Canvases(
        num_slots=len(requests),
        max_length=max(request.length for request in requests),
        mask_id=9,
        pad_id=8,
        stop_ids=(8,),
        device=torch.device("cpu"),
    )
    for slot, request in enumerate(requests):
        canvases.place(slot, request)
    return canvases, [Row.of(i, request, i, layout, version=0) for i, request in enumerate(requests)]


@pytest.mark.parametrize(
    ("layout", "position", "block", "visible"),
    [
        # Prompt of 6, response of 9: positions 6..14.
        (FULL, 6, (6, 15), 15),
        (SEMI, 6, (6, 10), 15),
        (SEMI, 13, (10, 14), 15),
        (SEMI, 14, (14, 15), 15),
        (CAUSAL, 6, (6, 8), 8),  # the block 4..7 holds the end of the prompt
        (CAUSAL, 9, (8, 12), 12),
        (CAUSAL, 14, (12, 15), 15),
        (SUB, 9, (8, 12), 15),  # decoded in fours, attended in eights
        (SUB, 6, (6, 8), 8),
    ],
)
def test_block_and_visible_part_of_a_position(layout, position, block, visible) -> None:
    assert layout.block_of(position, 6, 15) == block
    assert layout.visible_until(position, 15) == visible


@pytest.mark.parametrize(("layout", "number"), [(FULL, 1), (SEMI, 3), (CAUSAL, 3), (SUB, 3)])
def test_number_of_blocks_a_response_touches(layout, number) -> None:
    assert layout.num_blocks(6, 15) == number


def test_fresh_canvases_hold_prompt_and_masks() -> None:
    canvases, _ = placed(SEMI, (2, 3), (1, 6))
    assert canvases.token_SN.tolist() == [[7, 7, 9, 9, 9, 8, 8], [7, 9, 9, 9, 9, 9, 9]]
    assert canvases.masked_SN.tolist() == [
        [False, False, True, True, True, False, False],
        [False, True, True, True, True, True, True],
    ]


def test_a_slot_that_is_used_again_forgets_the_sequence_before() -> None:
    canvases, _ = placed(SEMI, (1, 6))
    canvases.place(0, Request([5, 5], 2, seed=0))
    assert canvases.token_SN[0, :4].tolist() == [5, 5, 9, 9]
    assert canvases.masked_SN[0].tolist() == [False, False, True, True, False, False, False]


def test_step_budget_is_shared_out_over_the_blocks_and_never_zero() -> None:
    assert [row.block_steps for row in placed(SEMI, (2, 8), (2, 4), steps=6)[1]] == [3, 6]
    assert [row.block_steps for row in placed(SEMI, (2, 12), steps=2)[1]] == [1]
    assert [row.block_steps for row in placed(SEMI, (2, 12))[1]] == [0]


def test_block_state_names_slots_by_their_place_in_the_response() -> None:
    canvases, rows = placed(SEMI, (2, 3), (1, 6))
    state = BlockView(canvases, rows, SEMI).state
    assert state.candidate_RL.tolist() == [[True, True, True, False], [True, True, True, True]]
    assert state.slot_RL.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    canvases.masked_SN[1, 1:5] = False
    rows[1].enter_block_of(5)
    state = BlockView(canvases, rows, SEMI).state
    assert state.slot_RL[1].tolist()[:2] == [4, 5]
    assert state.block_masked_R.tolist() == [3, 2]


def test_first_slot_of_an_attention_block_is_the_only_candidate_until_it_is_filled() -> None:
    canvases, rows = placed(SUB, (8, 8), (7, 8))
    candidates = BlockView(canvases, rows, SUB).state.candidate_RL
    assert candidates.tolist() == [[True, False, False, False], [True, False, False, False]]
    canvases.masked_SN[0, 8] = False
    canvases.masked_SN[1, 7] = False
    rows[1].enter_block_of(8)
    candidates = BlockView(canvases, rows, SUB).state.candidate_RL
    assert candidates.tolist() == [[False, True, True, True], [True, False, False, False]]


def test_progress_needs_an_end_with_nothing_masked_before_it() -> None:
    canvases, rows = placed(FULL, (1, 3), (1, 3), (1, 3))
    for slot, filled in enumerate([{1: 8}, {2: 8}, {1: 5, 2: 5, 3: 5}]):
        for position, token in filled.items():
            canvases.token_SN[slot, position] = token
            canvases.masked_SN[slot, position] = False
    assert canvases.progress(BlockView(canvases, rows, FULL)) == ([2, 1, 4], [True, False, False])


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    canvases, rows = placed(FULL, (2, 2))
    canvases.token_SN[0, 0] = 8
    assert canvases.progress(BlockView(canvases, rows, FULL)) == ([2], [False])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # Prompt of 6, response of 9 in blocks of 4; the second block is 10..13.
        (CachePolicy(kind="dual"), [(0, 15), (6, 10), (0, 15), (10, 14)]),
        (CachePolicy(kind="prefix"), [(0, 15), (6, 15), (0, 15), (10, 15)]),
        (CachePolicy(kind="dual", refresh="generated"), [(0, 15), (6, 10), (6, 15), (10, 14)]),
        (CachePolicy(kind="dual", refresh="window", window=3), [(0, 15), (6, 10), (7, 15), (10, 14)]),
        (CachePolicy(kind="dual", period=1), [(0, 15), (0, 15), (0, 15), (0, 15)]),
    ],
)
def test_what_the_first_two_steps_of_two_blocks_compute(policy, expected) -> None:
    row = placed(SEMI, (6, 9))[1][0]
    found = []
    for position in (6, 10):
        if position == 10:
            row.enter_block_of(position)
        for _ in range(2):
            span = row.span(policy, shift=False)
            found.append((span.start, span.stop))
            row.count_forward(span, policy, SEMI)
            row.step += 1
            row.block_step += 1
    assert found == expected == row.computed


def test_a_block_causal_row_computes_a_finished_block_once_more_with_the_next_one() -> None:
    row, policy = placed(CAUSAL, (6, 9))[1][0], CachePolicy(kind="block")
    found = []
    for position in (6, 8, 12):
        row.enter_block_of(position)
        for _ in range(2):
            span = row.span(policy, shift=False)
            found.append((span.start, span.stop, span.visible))
            row.count_forward(span, policy, CAUSAL)
    assert found == [(0, 8, 8), (4, 8, 8), (4, 12, 12), (8, 12, 12), (8, 15, 15), (12, 15, 15)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"refresh": "windows"}, "refresh is 'windows'; did you mean 'window'"),
        ({"period": 0}, "at least 1"),
        ({"window": -1}, "0 or more"),
        ({"drift": -0.1}, "always refresh"),
    ],
)
def test_bad_policies_are_refused(fields, said) -> None:
    with pytest.raises(ValueError, match=said):
        CachePolicy(kind="dual", **fields)


def test_sequence_seeds_differ_by_every_part_of_their_key() -> None:
    seeds = {
        sequence_seed(*key)
        for key in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0), (0, "a", "0"), (0, "a\x1f0")]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sequence_seed(0, "a", 0) == sequence_seed(0, "a", 0)
