from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.agdo import random_subset
from learner.masking import (
    RANDOM_MASK,
    block_index,
    blockwise_canvases,
    compressed,
    random_canvases,
    random_mask,
    scored_slots,
    step_canvases,
    stratified_rates,
)
from learner.sft import make_example
from learner.sft_config import BlockwiseMasking, RandomMasking

EOS = 0


def example(num_prompt=2, num_answer=3, num_slots=6, block_length=0):
    prompt, answer = [5] * num_prompt, [7] * num_answer
    return make_example(prompt, answer, max_new_tokens=num_slots, eos_token_id=EOS, block_length=block_length)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rates_are_one_from_each_part():
    rates = stratified_rates(10, t_min=0.5, t_max=0.9, generator=generator())
    # ten parts of (0.5, 0.9), each 0.04 wide
    assert sorted(((rates - 0.5) / 0.04).int().tolist()) == list(range(10))


def test_slots_are_masked_at_their_rate():
    masked = random_mask(torch.tensor([0.0, 0.25, 1.0]), 10_000, generator=generator())
    # standard deviation of the share: sqrt(.25 * .75 / 10000) = .0043
    assert masked.float().mean(1).tolist() == pytest.approx([0.0, 0.25, 1.0], abs=0.02)


def test_weights_of_a_random_canvas_are_one_over_rate_slots_and_canvases():
    """One example, two canvases, rates near 1: each of 6 slots is masked and weighs 1 / (1 * 6 * 2)."""
    masking = RandomMasking(t_min=0.9999, num_canvases=2)
    (masked,) = random_canvases([example()], masking, seed=0, step=0)
    assert [canvas.slot_K.tolist() for canvas in masked.canvases] == [[0, 1, 2, 3, 4, 5]] * 2
    assert np.allclose([canvas.weight_K for canvas in masked.canvases], 1 / 12, rtol=1e-3)


def test_mean_weights_add_up_to_one():
    masking = RandomMasking(t_min=0.5, t_max=0.9, num_canvases=3, weight="mean")
    (masked,) = random_canvases([example(num_slots=40)], masking, seed=0, step=0)
    assert sum(canvas.weight_K.sum() for canvas in masked.canvases) == pytest.approx(1.0, rel=1e-6)


def test_each_attention_block_has_a_rate_and_a_canvas_of_its_own():
    """Prompt 3, 9 slots, blocks of 4 from position 0: slots 0 | 1-4 | 5-8. Weights are 1 / (t 9), one t a block."""
    given_example = example(num_prompt=3, num_slots=9, block_length=4)
    (masked,) = random_canvases([given_example], RandomMasking(t_min=0.9999), seed=0, step=0)
    assert [canvas.slot_K.tolist() for canvas in masked.canvases] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    for canvas in masked.canvases:
        assert np.flatnonzero(canvas.masked_T).tolist() == canvas.slot_K.tolist()  # earlier blocks are clean
        assert len(set(canvas.weight_K.tolist())) == 1
    assert len({float(canvas.weight_K[0]) for canvas in masked.canvases}) == 3


def test_blockwise_canvases_follow_the_definition():
    """Prompt 2, 6 slots, blocks of 4 from the first slot: slots 0-3, then 4-5; the mean over two canvases."""
    (masked,) = blockwise_canvases([example()], BlockwiseMasking(block_length=4), seed=0, step=0)
    first, second = masked.canvases
    assert set(first.slot_K) <= {0, 1, 2, 3}
    assert np.flatnonzero(first.masked_T).tolist() == [*first.slot_K.tolist(), 4, 5]
    assert set(second.slot_K) <= {4, 5}
    assert np.flatnonzero(second.masked_T).tolist() == second.slot_K.tolist()
    assert first.weight_K.tolist() == pytest.approx([1 / (2 * len(first.slot_K))] * len(first.slot_K))


def test_blocks_are_counted_as_the_family_counts_them():
    assert block_index(example(num_prompt=3), 4).tolist() == [0, 0, 0, 0, 1, 1]
    # positions 3 | 4 5 6 7 | 8 of attention blocks of 4; of parts of 2: 3 | 4 5 | 6 7 | 8
    assert block_index(example(num_prompt=3, block_length=4), 4).tolist() == [0, 1, 1, 1, 1, 2]
    assert block_index(example(num_prompt=3, block_length=4), 2).tolist() == [0, 1, 1, 2, 2, 3]
    with pytest.raises(ValueError, match=r"block_length 3 does not divide the attention block of 4"):
        block_index(example(block_length=4), 3)


def test_end_tokens_past_the_scored_ones_stay_masked():
    """3 answer tokens, post_num 1: slots 0-2, the first end token 3 and one more; slot 5 is the tail."""
    masking = BlockwiseMasking(block_length=2, post_num=1)
    (masked,) = blockwise_canvases([example()], masking, seed=0, step=0)
    assert len(masked.canvases) == 3
    assert all(canvas.masked_T[5] and 5 not in canvas.slot_K for canvas in masked.canvases)
    (without,) = blockwise_canvases([example()], BlockwiseMasking(block_length=2, post_num=0), seed=0, step=0)
    assert len(without.canvases) == 2  # the block of slots 4 and 5 has nothing to score
    step_T, num_steps = compressed(np.array([2, 0, 1, 5, 3, 4]), scored_slots(example(), 0))
    assert (step_T.tolist(), num_steps) == ([2, 0, 1, 3, 4, 4], 4)


def test_subset_is_never_empty_and_each_slot_is_kept_half_of_the_time():
    """Per slot the rate is U(.1, .9), so it is kept with probability .5; of two slots, given that one is kept, each of
    {0}, {1}, {0, 1} has probability 1/3."""
    random = np.random.default_rng(0)
    assert all(random_subset(np.array([4]), random, config=RANDOM_MASK).tolist() == [4] for _ in range(50))
    counts = Counter(tuple(random_subset(np.array([0, 1]), random, config=RANDOM_MASK).tolist()) for _ in range(9000))
    # standard deviation of a count: sqrt(9000 * 2 / 9) = 45
    assert counts == {key: pytest.approx(3000, abs=300) for key in [(0,), (1,), (0, 1)]}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_every_step_has_a_canvas_whose_later_steps_are_masked_and_earlier_ones_clean(steps, seed):
    step_T = np.unique(steps, return_inverse=True)[1]
    num_steps, unit_T = int(step_T.max()) + 1, np.ones(len(step_T), dtype=np.float32)
    canvases = step_canvases(step_T, num_steps, unit_T, np.random.default_rng(seed), RANDOM_MASK)
    assert len(canvases) == num_steps
    for step, canvas in enumerate(canvases):
        assert set(step_T[canvas.slot_K]) == {step}
        assert canvas.masked_T[canvas.slot_K].all()
        assert canvas.masked_T[step_T > step].all()
        assert not canvas.masked_T[step_T < step].any()
    assert sum(float(canvas.weight_K.sum()) for canvas in canvases) == pytest.approx(1.0)


def test_masks_follow_from_seed_and_step_and_place_in_the_batch_alone():
    def masks(draw, masking, seed, step):
        drawn = draw([example(num_slots=20)] * 4, masking, seed=seed, step=step)
        return [canvas.masked_T.tolist() for one in drawn for canvas in one.canvases]

    for draw, masking in ((random_canvases, RandomMasking(t_min=0.1)), (blockwise_canvases, BlockwiseMasking())):
        assert masks(draw, masking, 1, 2) == masks(draw, masking, 1, 2)
        assert masks(draw, masking, 1, 2) != masks(draw, masking, 1, 3)
        assert masks(draw, masking, 1, 2) != masks(draw, masking, 2, 2)


def test_drawing_masks_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    random_canvases([example()], RandomMasking(), seed=0, step=0)
    blockwise_canvases([example()], BlockwiseMasking(), seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


def test_rates_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"t_min 0\.9 must be below t_max 0\.5"):
        RandomMasking(t_min=0.9, t_max=0.5)
