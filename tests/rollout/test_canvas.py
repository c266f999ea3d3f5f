"""Blocks, visibility and step budgets of canvases, by hand."""

import pytest
import torch

from rollout.canvas import Canvases, Layout
from rollout.request import Request, sequence_seed

FULL = Layout(None, block_causal=False)
SEMI = Layout(4, block_causal=False)
CAUSAL = Layout(4, block_causal=True)
SUB = Layout(8, block_causal=True, sub_block_length=4, first_slot_alone=True)


def canvases_of(layout: Layout, *shapes: tuple[int, int], steps: int | None = None) -> Canvases:
    requests = [Request([7] * p, t, seed=1, steps=steps) for p, t in shapes]
    return Canvases.of(requests, layout, mask_id=9, pad_id=8, device=torch.device("cpu"))


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


def test_fresh_canvases_hold_prompt_masks_and_padding() -> None:
    canvases = canvases_of(SEMI, (2, 3), (1, 6))
    assert canvases.token_RN.tolist() == [[7, 7, 9, 9, 9, 8, 8], [7, 9, 9, 9, 9, 9, 9]]
    assert canvases.masked_RN.tolist() == [
        [False, False, True, True, True, False, False],
        [False, True, True, True, True, True, True],
    ]


def test_step_budget_is_shared_out_over_the_blocks_and_never_zero() -> None:
    assert canvases_of(SEMI, (2, 8), (2, 4), steps=6).block_steps_R.tolist() == [3, 6]
    assert canvases_of(SEMI, (2, 12), steps=2).block_steps_R.tolist() == [1]
    assert canvases_of(SEMI, (2, 12)).block_steps_R.tolist() == [0]


def test_block_state_names_slots_by_their_place_in_the_response() -> None:
    canvases = canvases_of(SEMI, (2, 3), (1, 6))
    state = canvases.block_state(SEMI, stop_ids=(8,))
    assert state.candidate_RL.tolist() == [[True, True, True, False], [True, True, True, True]]
    assert state.slot_RL.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    canvases.masked_RN[1, 1:5] = False
    canvases.advance(SEMI)
    state = canvases.block_state(SEMI, stop_ids=(8,))
    assert state.slot_RL[1].tolist()[:2] == [4, 5]
    assert state.block_masked_R.tolist() == [3, 2]


def test_first_slot_of_an_attention_block_is_the_only_candidate_until_it_is_filled() -> None:
    canvases = canvases_of(SUB, (8, 8), (7, 8))
    candidates = canvases.block_state(SUB, stop_ids=(8,)).candidate_RL
    assert candidates.tolist() == [[True, False, False, False], [True, False, False, False]]
    canvases.masked_RN[0, 8] = False
    canvases.masked_RN[1, 7] = False
    canvases.advance(SUB)
    candidates = canvases.block_state(SUB, stop_ids=(8,)).candidate_RL
    assert candidates.tolist() == [[False, True, True, True], [True, False, False, False]]


def test_finished_needs_an_end_with_nothing_masked_before_it() -> None:
    canvases = canvases_of(FULL, (1, 3), (1, 3), (1, 3))
    for row, filled in enumerate([{1: 8}, {2: 8}, {1: 5, 2: 5, 3: 5}]):
        for position, token in filled.items():
            canvases.token_RN[row, position] = token
            canvases.masked_RN[row, position] = False
    assert canvases.finished(torch.tensor([8])).tolist() == [True, False, True]


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    request = Request([8, 7], 2, seed=0)
    canvases = Canvases.of([request], FULL, mask_id=9, pad_id=8, device=torch.device("cpu"))
    assert canvases.finished(torch.tensor([8])).tolist() == [False]


def test_rows_leave_and_join() -> None:
    canvases = canvases_of(SEMI, (2, 3), (1, 6), (1, 2))
    canvases.keep(torch.tensor([0, 2]))
    assert canvases.token_RN.shape == (2, 5)
    canvases.extend(canvases_of(SEMI, (3, 4)), pad_id=8)
    assert canvases.token_RN.tolist()[2] == [7, 7, 7, 9, 9, 9, 9]
    assert canvases.token_RN.tolist()[1] == [7, 9, 9, 8, 8, 8, 8]
    assert canvases.length_R.tolist() == [5, 3, 7]


def test_sequence_seeds_differ_by_every_part_of_their_key() -> None:
    seeds = {
        sequence_seed(*key)
        for key in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0), (0, "a", "0"), (0, "a\x1f0")]
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sequence_seed(0, "a", 0) == sequence_seed(0, "a", 0)
