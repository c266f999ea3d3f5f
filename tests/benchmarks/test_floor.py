"""Operations counted by hand."""

import numpy as np
import pytest

from benchmarks.floor import (
    Forward,
    Products,
    Shape,
    block_forwards,
    dual_forwards,
    exact_forwards,
    floor_ratios,
    needed_flops,
    prompt_forwards,
    training_flops,
    whole_flops,
)

# width 2, one head of 2 channels, feed-forward 4, vocabulary 5; a layer costs a position
#   keys and values   2 matrices of 2 x 2, 2 operations an entry         = 16
#   queries, output   2 matrices of 2 x 2                                = 16
#   feed-forward      3 matrices of 2 x 4                                = 48
#   attention         2 products over 2 channels, 2 operations, a key    =  8 a key
# and the head 2 x 2 x 5 = 20
SHAPE = Shape(width=2, layers=3, heads=1, kv_heads=1, head_dim=2, ffn=4, vocabulary=5)


def steps(*values):
    return np.array(values, dtype=np.int32)


def test_whole_work_is_every_layer_and_the_head_at_every_position():
    # 6 positions x (3 layers x (16 + 16 + 48 + 6 keys x 8) + 20)
    assert whole_flops(SHAPE, [Forward(tokens=6, keys=6, needed=2)]) == 6 * (3 * 128 + 20)


def test_needed_work_leaves_out_the_head_and_most_of_the_last_layer():
    # 6 positions: 3 x 16 for keys and values, 2 layers x (64 + 48); 2 slots: one layer's 64 + 48, and the head
    assert needed_flops(SHAPE, [Forward(tokens=6, keys=6, needed=2)]) == 6 * (48 + 224) + 2 * (112 + 20)


def test_shared_key_heads_make_keys_and_values_cheaper_only():
    shape = Shape(width=4, layers=1, heads=4, kv_heads=2, head_dim=3, ffn=8, vocabulary=10)
    # keys and values 2 x (4 x 6) x 2 = 96; queries and output 2 x (4 x 12) x 2 = 192, feed-forward 3 x 32 x 2 = 192,
    # attention 4 x 12 x 5 keys = 240; head 80
    assert whole_flops(shape, [Forward(tokens=1, keys=5, needed=1)]) == 96 + 192 + 192 + 240 + 80


def test_work_of_several_forwards_adds_up():
    one, other = Forward(6, 6, 2), Forward(2, 6, 1)
    assert needed_flops(SHAPE, [one, other]) == needed_flops(SHAPE, [one]) + needed_flops(SHAPE, [other])


def test_training_costs_three_forwards_and_frozen_weights_save_one_product_each():
    # of the 1896 needed operations: products with weights 6 x (48 + 2 x 64) + 2 x (64 + 20) = 1224, attention
    # (6 x 2 layers + 2) x 8 x 6 keys = 672
    forwards = [Forward(tokens=6, keys=6, needed=2)]
    assert training_flops(SHAPE, forwards, adapters=False) == 3 * 1896
    assert training_flops(SHAPE, forwards, adapters=True) == 2 * 1224 + 3 * 672


def test_exact_mode_forwards_the_whole_canvas_and_needs_the_masked_slots_of_the_active_block():
    # prompt 2, 4 slots in blocks of 2: slots 0, 1, 3, 2 are committed at steps 0, 1, 2, 3
    forwards = exact_forwards(2, steps(0, 1, 3, 2), 4, 2)
    assert forwards == [Forward(6, 6, 2), Forward(6, 6, 1), Forward(6, 6, 2), Forward(6, 6, 1)]


def test_slots_that_were_never_committed_count_as_masked():
    # 3 steps in one block of 4; slot 3 lies after the end token
    assert [forward.needed for forward in exact_forwards(1, steps(1, 0, 2, 3), 3, 4)] == [4, 3, 2]


def test_dual_mode_forwards_the_canvas_at_a_blocks_first_step_and_then_the_block():
    forwards = dual_forwards(2, steps(0, 1, 3, 2), 4, 2)
    assert forwards == [Forward(6, 6, 2), Forward(2, 6, 1), Forward(6, 6, 2), Forward(2, 6, 1)]


def test_block_mode_sees_what_is_behind_and_computes_finished_blocks_once_more():
    # prompt 3, blocks of 4 from position 0: slot 0 is in the prompt's last block, slots 1 to 4 fill the next one
    forwards = block_forwards(3, steps(0, 1, 1, 2, 3), 4, 4)
    first, finished = Forward(4, 4, 1), Forward(4, 4, 0)
    assert forwards == [first, finished, Forward(4, 8, 4), Forward(4, 8, 2), Forward(4, 8, 1)]


def test_a_prompt_is_forwarded_in_whole_blocks():
    assert prompt_forwards(3, 4) == []
    assert prompt_forwards(9, 4) == [Forward(4, 4, 0), Forward(4, 8, 0)]


def test_times_the_floor_uses_the_speed_of_the_same_round():
    # products: 100 operations in 1 s, then in 2 s; 300 operations then take 3 s and 6 s at least
    products = Products(SHAPE, rows=1, flops=100, run=lambda: None)
    assert floor_ratios(300, products, [1.0, 2.0], [6.0, 9.0]) == [2.0, 1.5]


def test_products_count_the_layers_matrices_and_keep_to_the_models_sizes(small):
    products = Products.of(small, rows=8, seconds=0.001)
    # width 32, two heads of 16, feed-forward 48: 4 matrices of 32 x 32 and 3 of 32 x 48, 8 rows, 2 operations an entry
    assert products.flops % (8 * 2 * (4 * 32 * 32 + 3 * 32 * 48)) == 0
    products.run()


@pytest.mark.parametrize(("heads", "kv_heads"), [("llada", 2), ("sdar", 1)])
def test_shape_is_read_off_the_backbone(heads, kv_heads, small, small_block_causal):
    denoiser = small if heads == "llada" else small_block_causal
    shape = Shape(width=32, layers=2, heads=2, kv_heads=kv_heads, head_dim=16, ffn=48, vocabulary=4096)
    assert Shape.of(denoiser) == shape
