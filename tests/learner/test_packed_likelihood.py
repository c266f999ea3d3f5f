"""Packed and shared forwards give what the stock forward of each canvas gives, in values and in gradients.

The weights are float64, so that only a wrong token, position, mask or key makes a difference; the stock norms round to
float32 on their way, which is what the tolerance is for.
"""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
from learner.likelihood import score
from learner.plan import Canvas, micro_batches, plan_canvases
from learner.replay import trace_exact
from learner.sft import MaskedExample, SftExample, plan_masked, sft_loss
from models.config import LoraConfig
from tests.learner.small_models import MASK, VOCAB, obvious_logprob, small_denoiser, trajectory

LORA = LoraConfig(rank=2, alpha=4.0, target_modules=("q_proj", "v_proj", "down_proj"))
MODELS = ["llada", "dream", "sdar", "fast_dllm_v2", "llada lora", "sdar lora"]
PROMPTS = [[5], [6, 7, 8, 9, 10], [2, 3, 4, 5, 6, 7, 8, 9, 10]]
ANSWERS = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.integers(1, 7), st.integers(1, 3), st.integers(0, 999)),
    min_size=1,
    max_size=3,
)


@cache
def model(name):
    family, _, adapter = name.partition(" ")
    denoiser = small_denoiser(family, seed=1)
    if adapter:
        models.apply_lora(denoiser, LORA, seed=1)
        with torch.no_grad():
            for value in models.lora_state(denoiser).values():
                value.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(2))
    return denoiser.double()


def drawn(prompt, num_slots, tokens_per_step, seed, *, block_length):
    """An answer of random tokens, committed in random order block by block."""
    generator = np.random.default_rng(seed)
    steps, step = np.zeros(num_slots, dtype=np.int64), 0
    for block in range((len(prompt) + num_slots - 1) // block_length + 1):
        slots = [k for k in range(num_slots) if (len(prompt) + k) // block_length == block]
        generator.shuffle(slots)
        for start in range(0, len(slots), tokens_per_step):
            steps[slots[start : start + tokens_per_step]] = step
            step += 1
    tokens = generator.integers(2, VOCAB, num_slots)
    return trajectory(tokens, steps, prompt=prompt, block_length=block_length)


def assert_same(denoiser, found_M, expected_M, weight_M):
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    torch.testing.assert_close(found_M, expected_M, atol=1e-5, rtol=0)
    found = torch.autograd.grad((found_M * weight_M).sum(), parameters)
    expected = torch.autograd.grad((expected_M * weight_M).sum(), parameters)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    answers=ANSWERS,
    block_length=st.integers(1, 5),
    micro_batch_tokens=st.sampled_from([1, 40, 10_000]),
    temperature=st.sampled_from([1.0, 0.6]),
)
def test_scores_and_their_gradients_equal_one_stock_canvas_at_a_time(
    name, answers, block_length, micro_batch_tokens, temperature
):
    denoiser = model(name)
    replayed = [drawn(*spec, block_length=block_length) for spec in answers]
    plan = plan_canvases(replayed, [a.committed for a in replayed], estimator=trace_exact, family=denoiser.family)
    parts = [score(denoiser, plan, g, temperature=temperature) for g in micro_batches(plan, micro_batch_tokens)]
    index_M = torch.cat([part.index_M for part in parts])
    assert sorted(index_M.tolist()) == list(range(plan.num_slots))
    expected_M = torch.stack([
        obvious_logprob(denoiser, replayed[plan.sample_M[i]], int(plan.slot_M[i]), temperature)
        for i in index_M.tolist()
    ])  # fmt: skip
    weight_M = torch.linspace(-1, 1, plan.num_slots, dtype=torch.float64) + 0.1
    assert_same(denoiser, torch.cat([part.logprob_M for part in parts]), expected_M, weight_M)


@pytest.mark.parametrize("name", ["llada", "dream", "llada lora"])
@settings(max_examples=6, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(0, 99)), min_size=1, max_size=5))
def test_supervised_loss_and_its_gradient_equal_one_stock_canvas_at_a_time(name, shapes):
    denoiser = model(name)
    examples, expected = [], []
    for num_prompt, num_slots, seed in shapes:
        generator = np.random.default_rng(seed)
        masked = generator.random(num_slots) < 0.6
        masked[0] = True
        prompt, target = generator.integers(2, VOCAB, num_prompt), generator.integers(2, VOCAB, num_slots)
        slot_K = np.flatnonzero(masked)
        canvas = Canvas(masked, slot_K, np.full(len(slot_K), 1.0 + seed / 50, dtype=np.float32))
        examples.append(MaskedExample(SftExample(prompt, target, answer_length=num_slots), (canvas,)))
        shown = torch.tensor([[*prompt, *np.where(masked, MASK, target)]])
        logits_NV = denoiser.logits(shown)[0].index_fill(1, torch.tensor([MASK]), -torch.inf)
        position_K = num_prompt + np.flatnonzero(masked) - int(denoiser.family.shift)
        chosen_K = logits_NV[position_K].log_softmax(1).gather(1, torch.from_numpy(target[masked])[:, None])
        expected.append(-(1.0 + seed / 50) * chosen_K.sum())
    plan = plan_masked(examples, family=denoiser.family)
    found = sft_loss(denoiser, plan, range(len(examples)))
    assert_same(denoiser, found[None], torch.stack(expected).sum()[None], torch.ones(1, dtype=torch.float64))
