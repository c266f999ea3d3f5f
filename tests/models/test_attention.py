"""Attention layouts against masks written out by hand."""

import torch

from models.attention import block_causal, canvas_mask, doubled_mask, positions


def as_mask(*rows):
    return torch.tensor([[character == "x" for character in row] for row in rows])


def test_positions_count_real_tokens_from_the_left():
    valid_BN = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    assert positions(valid_BN).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_blocks_see_themselves_and_earlier_ones():
    want = as_mask("xx...", "xx...", "xxxx.", "xxxx.", "xxxxx")
    assert torch.equal(block_causal(torch.arange(5)[None], 2)[0], want)


def test_whole_canvas_in_one_block_needs_no_mask():
    position_1N = torch.arange(4)[None]
    assert canvas_mask(position_1N) is None
    assert canvas_mask(position_1N, block_length=4) is None
    assert canvas_mask(position_1N, block_length=3) is not None


def test_padded_key_is_seen_by_itself_alone():
    valid_BN = torch.tensor([[False, True, True]])
    want = as_mask("xxx", ".xx", ".xx")
    assert torch.equal(canvas_mask(positions(valid_BN), valid_BN=valid_BN)[0, 0], want)


def test_left_padding_moves_the_blocks_with_the_tokens():
    valid_BN = torch.tensor([[False, True, True, True]])
    # real tokens are positions 0, 1, 2; blocks of two: {0, 1}, {2}; the padded query counts as position 0
    want = as_mask("xxx.", ".xx.", ".xx.", ".xxx")
    assert torch.equal(canvas_mask(positions(valid_BN), valid_BN=valid_BN, block_length=2)[0, 0], want)


def test_noisy_block_sees_itself_and_the_clean_blocks_before_it():
    # noisy 0 1 | 2, clean 0 1 | 2, blocks of two
    want = as_mask("xx....", "xx....", "..xxx.", "...xx.", "...xx.", "...xxx")
    assert torch.equal(doubled_mask(torch.arange(3)[None], 2)[0, 0], want)


def test_padding_of_the_doubled_layout_is_invisible_in_both_halves():
    valid_BN = torch.tensor([[True, True, False]])
    mask = doubled_mask(positions(valid_BN), 1, valid_BN=valid_BN)[0, 0]
    others = ~torch.eye(6, dtype=torch.bool)
    assert not (mask & others)[:, [2, 5]].any()
    assert torch.equal(mask[:2], as_mask("x.....", ".x.x.."))
