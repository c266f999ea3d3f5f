"""Which tokens a micro-batch computes: whole canvases, or blocks over shared clean tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from learner.layout import lay_out
from learner.plan import Share, micro_batches, num_computed, plan_canvases
from learner.replay import trace_exact
from tests.learner.small_models import MASK, small_denoiser, trajectory

SDAR = SimpleNamespace(shift=False, block_causal=True)
SHIFTED = SimpleNamespace(shift=True, block_causal=True)
FULL = SimpleNamespace(shift=False, block_causal=False)


def plan_of(*answers, family=SDAR):
    return plan_canvases(answers, [a.scored for a in answers], estimator=trace_exact, family=family)


def answer(num_slots, *, prompt=(5, 6), step_map=None, block_length=4):
    return trajectory([7] * num_slots, step_map or range(num_slots), prompt=prompt, block_length=block_length)


def test_canvas_needs_its_block_and_the_clean_tokens_before_it():
    # Prompt 2: block 0 holds slots 0 and 1, block 1 slots 2..5, block 2 only slot 6 (positions 8..8).
    shares = plan_of(answer(7)).share_C
    assert shares[:2] == [Share(((0, 4),), 0)] * 2
    assert shares[2:6] == [Share(((4, 8),), 4)] * 4
    assert shares[6] == Share(((8, 9),), 8)


def test_shifted_family_predicts_the_first_slot_of_a_block_from_the_clean_block_before_it():
    shares = plan_of(answer(7), family=SHIFTED).share_C
    # Slot 2 is at position 4, predicted at position 3 of block 0, which is clean by then: no copy at all.
    assert shares[2] == Share((), 4)
    assert shares[3] == Share(((4, 8),), 4)
    assert shares[6] == Share((), 8)


def test_step_that_commits_the_first_slot_and_another_needs_both_kinds():
    # Slots 2 and 4 (positions 4 and 6) at once: predicted at 3 (clean) and 5 (in a copy of block 1).
    share = plan_of(answer(6, step_map=[0, 1, 2, 3, 2, 4]), family=SHIFTED).share_C[2]
    assert share == Share(((4, 8),), 4)


def test_canvas_with_a_mask_in_an_earlier_block_is_computed_whole():
    # Slot 0 (block 0) is committed last: when slots 2 and 3 (block 1) are, block 0 still holds a mask.
    plan = plan_of(answer(4, step_map=[3, 0, 1, 2]))
    assert plan.share_C == [Share(((0, 4),), 0), None, None, Share(((0, 4),), 0)]
    assert [sorted(group) for group in micro_batches(plan, 1000)] == [[0, 3], [1, 2]]


def test_bidirectional_canvases_are_computed_whole():
    assert plan_of(answer(3), family=FULL).share_C == [None] * 3


def test_computed_tokens_count_prompt_and_answer_once_and_every_copy():
    # Prompts of 9: two whole blocks, 8 tokens, once for both answers. Slots 0..2 are in block 2 (positions 8..11),
    # slots 3..5 in block 3. Each answer: 4 clean tokens (block 2), six copies, of 4 tokens in block 2 and 3 in block 3.
    prompt = list(range(2, 11))
    plan = plan_of(answer(6, prompt=prompt), answer(6, prompt=prompt), answer(6, prompt=prompt[::-1]))
    copies = 3 * 4 + 3 * 3
    assert num_computed(plan, range(6)) == 8 + 4 + copies
    assert num_computed(plan, range(12)) == 8 + 2 * (4 + copies)
    assert num_computed(plan, range(18)) == 2 * 8 + 3 * (4 + copies)
    # The first three canvases need no clean block of the answer.
    assert num_computed(plan, range(3)) == 8 + 3 * 4
    # Whole: canvases of 12 and 15 tokens.
    assert num_computed(plan_of(answer(6, prompt=prompt), family=FULL), range(6)) == 6 * 15


def test_micro_batches_keep_answers_and_prompts_together_within_the_budget():
    first, second = [2] * 8, [3] * 8
    answers = [answer(8, prompt=p) for p in (first, second, first)]
    plan = plan_of(*answers)
    groups = micro_batches(plan, 70)
    assert sorted(index for group in groups for index in group) == list(range(24))
    assert all(num_computed(plan, group) <= 70 for group in groups)
    # One answer costs 8 + 4 + 8 * 4 = 44. Of a second one to the same prompt four canvases of its first block cost 16
    # more, the fifth 4 and the 4 clean tokens of that block: 68. The rest, 8 + 4 + 12, and a whole answer, 44, are 68.
    assert [plan.sample_C[group].tolist() for group in groups] == [[0] * 8 + [2] * 5, [2] * 3 + [1] * 8]


def test_groups_have_one_block_length():
    plan = plan_of(answer(4, block_length=4), answer(4, block_length=2))
    assert [set(plan.block_length_C[group]) for group in micro_batches(plan, 1000)] == [{2}, {4}]


def test_layout_holds_the_tokens_that_were_counted_and_asks_for_every_slot_once():
    denoiser = small_denoiser("sdar")
    prompt = [5, 6, 7, 8, 9]
    plan = plan_of(answer(6, prompt=prompt), answer(6, prompt=prompt))
    layout = lay_out(denoiser, plan, range(12))
    # Prompt block; per answer its block 1 (slots 0..2), then three copies of it, then three of block 2.
    assert layout.token_M[:4].tolist() == [5, 6, 7, 8]
    assert layout.token_M[4:12].tolist() == [9, 7, 7, 7] * 2
    assert layout.token_M[12:24].tolist() == [9, MASK, MASK, MASK, 9, 7, MASK, MASK, 9, 7, 7, MASK]
    assert len(layout.token_M) == num_computed(plan, range(12)) == 4 + 2 * (4 + 3 * 4 + 3 * 3)
    assert sorted(layout.index_W.tolist()) == list(range(12))
    assert sum(layout.counts) == len(layout.flat_W) == 12
    assert (layout.token_M[layout.flat_W] == MASK).all()


def test_no_canvases_make_no_micro_batches():
    plan = plan_of()
    assert micro_batches(plan, 10) == []
    assert num_computed(plan, []) == 0
    assert plan.weight_M.dtype == np.float32


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
def test_recomputation_of_layers_changes_no_gradient_over_shared_tokens(family):
    from learner.likelihood import score

    denoiser = small_denoiser(family).double()
    plan = plan_of(answer(7), answer(7), family=denoiser.family)
    found = []
    for recompute in (False, True):
        denoiser.stack.recompute = recompute
        scored = score(denoiser, plan, range(len(plan.canvases)), temperature=1.0)
        found.append(torch.autograd.grad(scored.logprob_M.sum(), list(denoiser.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
