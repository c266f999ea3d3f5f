from functools import partial

import pytest

from benchmarks.learner import fresh, left_to_right_samples, plain_gradient
from benchmarks.models import random_llada
from benchmarks.sink import learner_gradient


@pytest.mark.parametrize("whole_head", [False, True])
def test_both_sides_of_the_benchmark_compute_the_same_gradient(whole_head):
    denoiser, samples = random_llada(width=64, layers=1, vocabulary=8192), left_to_right_samples(2)
    ours = fresh(denoiser, partial(learner_gradient, denoiser, samples, micro_batch_tokens=512))
    plain = fresh(denoiser, partial(plain_gradient, denoiser, samples, whole_head=whole_head))
    assert max(float(gradient.abs().max()) for gradient in ours) > 1e-2
    assert max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)) < 1e-5
