"""AGDO-SFT against its invariants, and against numbers worked out by hand from the matrix of `learner.agdo`.

A = | .55 .05 .10 .30 |   position 0 is the prompt; influence over all queries (.95, 1.10, .60) of slots 0, 1, 2
    | .50 .20 .20 .10 |
    | .10 .60 .20 .10 |
    | .20 .10 .60 .10 |
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.agdo import Guide, guides
from learner.agdo_sft import agdo_canvases, finished_texts, influence_weights, mean_statistics
from learner.guide import guide_texts
from learner.masking import block_index, blockwise_canvases, compressed, scored_slots
from learner.plan import micro_batches
from learner.sft import make_example, plan_masked, sft_loss
from learner.sft_config import AgdoMasking, BlockwiseMasking
from tests.learner.small_models import EOS, small_denoiser

A = torch.tensor(
    [[0.55, 0.05, 0.10, 0.30], [0.50, 0.20, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10], [0.20, 0.10, 0.60, 0.10]]
)


def example(num_slots=3, num_answer=3, num_prompt=1, block_length=0):
    return make_example(
        [5] * num_prompt, [7] * num_answer, max_new_tokens=num_slots, eos_token_id=EOS, block_length=block_length
    )


def guide_of(given_example, key_T, influence_T=None, post_num=None):
    """A guide whose steps are in the order of the given keys."""
    ranked_T = scored_slots(given_example, post_num)
    step_T, num_steps = compressed(np.asarray(key_T), ranked_T)
    influence_T = np.ones(len(step_T)) if influence_T is None else np.asarray(influence_T)
    influence_T = np.where(ranked_T, influence_T, 0.0).astype(np.float32)
    return Guide(ranked_T, step_T, num_steps, influence_T, np.zeros(len(step_T), dtype=np.float32))


def drawn(given_example, guide, **settings):
    return agdo_canvases([given_example], [guide], AgdoMasking(**settings), seed=3, step=4)[0].canvases


def same(canvases, others):
    assert len(canvases) == len(others)
    for one, other in zip(canvases, others, strict=True):
        assert np.array_equal(one.masked_T, other.masked_T)
        assert np.array_equal(one.slot_K, other.slot_K)
        assert np.array_equal(one.weight_K, other.weight_K)  # to the last bit


@pytest.mark.parametrize("post_num", [None, 1])
def test_order_by_blocks_without_weights_is_blockwise_to_the_last_bit(post_num):
    given = example(num_slots=11, num_answer=6)
    guide = guide_of(given, block_index(given, 4), influence_T=np.linspace(0, 3, 11), post_num=post_num)
    masking = BlockwiseMasking(block_length=4, post_num=post_num)
    (blockwise,) = blockwise_canvases([given], masking, seed=3, step=4)
    same(drawn(given, guide, gamma=0, post_num=post_num), blockwise.canvases)


def test_loss_of_the_worked_example():
    """gamma 100: weights 1 + 100 (.95, 1.10, .60) = 96, 111, 61. One step, scored slots 0 and 1 with log p (-.5, -1):
    L = (96 * .5 + 111 * 1) / 2 = 79.5; without weights (.5 + 1) / 2 = .75."""
    (guide,) = guides([A], [np.ones(3, dtype=bool)], config=AgdoMasking(slots_per_rank=2, block_length=3))
    assert influence_weights(guide, AgdoMasking(), np.random.default_rng(0)) == pytest.approx([96, 111, 61])
    # Slots 0 and 1 alone: rate 1 masks all of a step, and slot 2 is the tail.
    guide = replace(guide, ranked_T=np.array([True, True, False]), step_T=np.array([0, 0, 1]), num_steps=1)
    for gamma, expected in ((100.0, 79.5), (0.0, 0.75)):
        (canvas,) = drawn(example(), guide, gamma=gamma, rate_low=1.0, rate_high=1.0)
        assert canvas.slot_K.tolist() == [0, 1]
        assert canvas.masked_T.tolist() == [True, True, True]
        assert float(canvas.weight_K @ np.array([0.5, 1.0])) == pytest.approx(expected, rel=1e-6)


def test_equal_influences_multiply_the_order_alone_by_one_plus_gamma():
    given, keys = example(num_slots=8), [3, 0, 2, 1, 4, 7, 5, 6]
    weighted = drawn(given, guide_of(given, keys), gamma=7)
    alone = drawn(given, guide_of(given, keys), gamma=0)
    for one, other in zip(weighted, alone, strict=True):
        assert np.array_equal(one.masked_T, other.masked_T)
        assert one.weight_K == pytest.approx(8 * other.weight_K, rel=1e-6)


def test_every_slot_of_a_later_step_is_masked_and_of_an_earlier_one_clean():
    given, order = example(num_slots=4, num_answer=4), [2, 0, 3, 1]
    canvases = drawn(given, guide_of(given, order), num_canvases=None)
    # one slot a step: steps take slots 1, 3, 0, 2; each canvas masks its own slot and those after it
    assert [canvas.slot_K.tolist() for canvas in canvases] == [[1], [3], [0], [2]]
    assert [np.flatnonzero(canvas.masked_T).tolist() for canvas in canvases] == [[0, 1, 2, 3], [0, 2, 3], [0, 2], [2]]


def test_steps_are_merged_to_the_wanted_number_of_canvases():
    given = example(num_slots=10, num_answer=10)
    canvases = drawn(given, guide_of(given, np.arange(10)), num_canvases=4, rate_low=1.0, rate_high=1.0)
    # ten steps in four: step * 4 // 10 = 0 0 0 1 1 2 2 2 3 3
    assert [canvas.slot_K.tolist() for canvas in canvases] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
    assert sum(float(canvas.weight_K.sum()) for canvas in canvases) == pytest.approx(101.0)  # 1 + 100 * 1


def test_merged_steps_of_a_block_causal_family_stay_in_their_attention_block():
    """Prompt 3, 9 slots, blocks of 4: slots 0 | 1-4 | 5-8; four canvases are one a block."""
    given = example(num_slots=9, num_answer=9, num_prompt=3, block_length=4)
    for num_canvases, expected in ((4, [[0], [1, 2, 3, 4], [5, 6, 7, 8]]), (6, [[0], [1, 2], [3, 4], [5, 6], [7, 8]])):
        settings = {"num_canvases": num_canvases, "rate_low": 1.0, "rate_high": 1.0}
        canvases = drawn(given, guide_of(given, np.arange(9)), **settings)
        assert [canvas.slot_K.tolist() for canvas in canvases] == expected


def test_random_order_keeps_blocks_and_canvases_but_not_the_trace():
    given = example(num_slots=12, num_answer=12)
    trace = guide_of(given, np.arange(12))
    settings = {"block_length": 4, "num_canvases": None, "rate_low": 1.0, "rate_high": 1.0}
    drawn_order = [canvas.slot_K.item() for canvas in drawn(given, trace, order="random", **settings)]
    assert sorted(drawn_order) == list(range(12))
    assert drawn_order != list(range(12))
    assert [slot // 4 for slot in drawn_order] == [0] * 4 + [1] * 4 + [2] * 4


def test_shuffled_weights_are_the_same_weights_in_other_places():
    given = example(num_slots=12, num_answer=8)
    guide = guide_of(given, np.arange(12), influence_T=np.arange(12.0), post_num=0)
    plain, shuffled = (
        influence_weights(guide, AgdoMasking(weights=kind, gamma=2), np.random.default_rng(0))
        for kind in ("influence", "shuffled")
    )
    assert plain[:9].tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert sorted(shuffled) == sorted(plain)
    assert shuffled.tolist() != plain.tolist()
    assert shuffled[9:].tolist() == [1, 1, 1]  # the tail is not scored and keeps no influence


def test_control_arms_draw_the_masks_of_the_method():
    given = example(num_slots=12, num_answer=12)
    guide = guide_of(given, np.arange(12), influence_T=np.linspace(0, 1, 12))
    plain, shuffled = (drawn(given, guide, num_canvases=3, weights=kind) for kind in ("influence", "shuffled"))
    assert [one.masked_T.tolist() for one in plain] == [one.masked_T.tolist() for one in shuffled]


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_a_model_guides_its_own_examples_and_learns_from_them(family):
    """The loss of the guided canvases falls along its own gradient, in every kind of family."""
    denoiser = small_denoiser(family)
    block_length = denoiser.block_length if denoiser.family.block_causal else 0
    examples = [example(9, 3 + i, 1 + i, block_length) for i in range(3)]
    masking = AgdoMasking(num_canvases=6, post_num=2)
    found = guide_texts(denoiser, finished_texts(examples, masking), config=masking)
    masked = agdo_canvases(examples, found, masking, seed=0, step=0)
    plan = plan_masked(masked, family=denoiser.family)

    def loss():
        return sum(sft_loss(denoiser, plan, group) for group in micro_batches(plan, 64))

    before = loss()
    before.backward()
    with torch.no_grad():
        size = sum(parameter.grad.square().sum() for parameter in denoiser.parameters())
        for parameter in denoiser.parameters():
            parameter -= 0.01 * before.detach() / size * parameter.grad
        # one percent down along the gradient, up to curvature
        assert loss().item() == pytest.approx(0.99 * before.item(), rel=5e-3)
    statistics = mean_statistics(found)
    assert 0 < statistics["influence_q10"] <= statistics["influence_q90"] <= statistics["influence_max"]
