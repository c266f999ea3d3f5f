from functools import partial

import pytest

from benchmarks.learner import fresh, left_to_right_samples, plain_gradient
from benchmarks.learner_floor import canvas_forwards, ended_samples, print_floor
from benchmarks.learner_shared import SHARED, WHOLE, both_plans, gradient, group_of_answers, largest_gap
from benchmarks.models import random_llada, tiny_block_causal
from benchmarks.sink import learner_gradient
from learner.replay import ar_exact


@pytest.mark.parametrize("whole_head", [False, True])
def test_both_sides_of_the_benchmark_compute_the_same_gradient(whole_head):
    denoiser, samples = random_llada(width=64, layers=1, vocabulary=8192), left_to_right_samples(2)
    ours = fresh(denoiser, partial(learner_gradient, denoiser, samples, micro_batch_tokens=512))
    plain = fresh(denoiser, partial(plain_gradient, denoiser, samples, whole_head=whole_head))
    assert max(float(gradient.abs().max()) for gradient in ours) > 1e-2
    assert max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)) < 1e-5


def test_both_layouts_of_the_block_causal_benchmark_give_the_same_gradient():
    denoiser = tiny_block_causal().requires_grad_(True)
    plans = both_plans(denoiser, group_of_answers(2, prompt=6, slots=5))
    # In blocks of 4 the prompt fills one and half of the next: slots 0 and 1 lie there, 2 to 4 in the block after it.
    assert [answer.step_map[:2].max() for answer in plans[WHOLE].trajectories] == [1, 1]
    shared, whole = (gradient(denoiser, plans[name], budget=64) for name in (SHARED, WHOLE))
    assert max(float(x.abs().max()) for x in whole) > 1.0
    assert largest_gap(shared, whole) < 1e-4


def test_needed_work_counts_a_canvas_for_each_scored_slot():
    samples = ended_samples(2, vocabulary=50, eos_token_id=48)
    assert len(canvas_forwards(samples)) == 2 * 16
    assert {tuple(ar_exact(s.trajectory, s.trajectory.scored)[15].slot_K) for s in samples} == {(15,)}
    assert all(s.trajectory.tokens[15] == 48 and s.trajectory.finish_reason == "eos" for s in samples)


def test_fraction_of_the_floor_is_of_work_that_was_done(capsys):
    denoiser = random_llada(width=64, layers=2, vocabulary=64)
    fraction = print_floor(answers=1, budget=1024, repetitions=1, denoiser=denoiser)
    assert 0 < fraction < 1.5
    assert "| forward and backward |" in capsys.readouterr().out
