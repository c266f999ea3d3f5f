"""Replaying a step map gives the log-probabilities of the rollout to 1e-5, on every published layout.

`tests/learner/test_likelihood.py` varies samplers and decoding on one small model a kind of family. Here the models are
the cut-down published checkpoints (grouped heads, partial rotary, experts, tied head), and what varies is how sequences
meet: requests of unequal length, budget and seed share forwards at rollout, leave early and are replaced, and come to
the learner in another order, beside other answers.

The search runs on float64 weights, where only a canvas that is rebuilt wrongly can make a difference; in float32 the
same is held on fixed sequences, because products beside other rows round by several 1e-6 on these weights.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import learner
import models
import rollout
import samplers
from learner.likelihood import score
from learner.plan import micro_batches, num_computed, plan_canvases
from learner.replay import trace_exact

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))
BLOCK_CAUSAL = [
    name
    for name in FAMILIES
    if models.family_of(json.loads((FIXTURES / name / "config.json").read_text())).block_causal
]
EOS = 30  # of every fixture; 31 is the mask

SAMPLERS = st.one_of(
    st.tuples(
        st.sampled_from(["ar", "random", "confidence", "margin", "entropy"]),
        st.fixed_dictionaries(
            {"tokens_per_step": st.integers(1, 4), "eos_guard": st.sampled_from([None, True, False])}
        ),
    ),
    st.tuples(
        st.sampled_from(["confidence", "margin", "entropy", "threshold"]),
        st.fixed_dictionaries({"tau": st.sampled_from([0.05, 0.2, 0.5, 0.9])}),
    ),
)
REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, EOS - 1), min_size=1, max_size=9),
        st.integers(1, 11),  # new tokens
        st.integers(0, 2**62),  # seed
        st.one_of(st.none(), st.integers(1, 8)),  # steps
    ),
    min_size=1,
    max_size=5,
)
BLOCKS = st.sampled_from([(None, None), (1, None), (3, None), (4, 2), (6, 3), (5, 1), (8, 8)])


@cache
def load(family, dtype):
    denoiser = models.load(FIXTURES / family, dtype=dtype)
    if dtype == torch.float64:
        denoiser.backbone.set_experts_implementation("eager")  # the grouped kernel knows no float64
    return denoiser


def assert_replayed(denoiser, answers, *, temperature, micro_batch_tokens=16384):
    prompts = [answer.prompt_tokens.tolist() for answer in answers]
    with torch.no_grad():
        replayed = learner.sequence_logprobs(
            denoiser, prompts, answers, temperature=temperature, micro_batch_tokens=micro_batch_tokens
        )
    for answer, logprob_T in zip(answers, replayed, strict=True):
        np.testing.assert_allclose(logprob_T.numpy(), answer.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=REQUESTS,
    sampler=SAMPLERS,
    blocks=BLOCKS,
    temperature=st.sampled_from([0.0, 0.6, 1.0, 1.7]),
    max_batch_tokens=st.sampled_from([1, 30, 16384]),
    micro_batch_tokens=st.sampled_from([1, 50, 16384]),
    order=st.randoms(use_true_random=False),
)
def test_replay_equals_the_rollout_however_sequences_were_batched(
    family, requests, sampler, blocks, temperature, max_batch_tokens, micro_batch_tokens, order
):
    name, options = sampler
    denoiser = load(family, torch.float64)
    engine = rollout.Engine(
        denoiser,
        samplers.build(name, **options),
        block_length=blocks[0],
        sub_block_length=blocks[1],
        max_batch_tokens=max_batch_tokens,
    )
    answers = engine.run(
        [
            rollout.Request(prompt, new_tokens, seed, temperature=temperature, steps=steps)
            for prompt, new_tokens, seed, steps in requests
        ]
    )
    order.shuffle(answers)
    assert_replayed(denoiser, answers, temperature=temperature, micro_batch_tokens=micro_batch_tokens)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["ar", "random", "entropy"])
def test_replay_equals_the_rollout_in_float32(family, name):
    denoiser = load(family, torch.float32)
    engine = rollout.Engine(denoiser, samplers.build(name), block_length=4, max_batch_tokens=60)
    prompts = [[3], [1, 4, 1, 5, 9], [2, 6]]
    answers = engine.generate(prompts, num_samples=2, max_new_tokens=9, temperature=1.0)
    assert_replayed(denoiser, answers, temperature=1.0)


@pytest.mark.parametrize("family", BLOCK_CAUSAL)
def test_blocks_over_shared_clean_tokens_equal_whole_canvases(family):
    denoiser = load(family, torch.float64)
    engine = rollout.Engine(denoiser, samplers.build("random"), block_length=4)
    answers = engine.generate([[3, 1, 4, 1, 5, 9], [2, 6]], num_samples=2, max_new_tokens=9, temperature=1.0)
    plan = plan_canvases(answers, [a.committed for a in answers], estimator=trace_exact, family=denoiser.family)
    whole = replace(plan, share_C=[None] * len(plan.canvases))
    parameters = list(denoiser.parameters())
    logprobs, gradients, tokens = [], [], []
    for layout in (plan, whole):
        (group,) = micro_batches(layout, 100_000)
        scored = score(denoiser, layout, group, temperature=0.8)
        logprobs.append(scored.logprob_M[scored.index_M.argsort()])
        gradients.append(torch.autograd.grad(scored.logprob_M.sum(), parameters, allow_unused=True))
        tokens.append(num_computed(layout, group))
    assert tokens[0] < 0.6 * tokens[1]
    torch.testing.assert_close(*logprobs, atol=1e-5, rtol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["dream", "llada", "sdar"])
def test_replay_notices_a_step_map_that_is_not_the_rollouts(family):
    denoiser = load(family, torch.float64)
    engine = rollout.Engine(denoiser, samplers.build("random"), block_length=4)
    answers = engine.generate([[3, 1, 4], [1, 5]], num_samples=4, max_new_tokens=8, temperature=1.0)
    assert_replayed(denoiser, answers, temperature=1.0)
    for answer in answers:
        answer.step_map[:] = answer.num_steps - 1 - answer.step_map
    with pytest.raises(AssertionError):
        assert_replayed(denoiser, answers, temperature=1.0)


def test_fixtures_have_the_special_tokens_assumed_here():
    for family in FAMILIES:
        config = json.loads((FIXTURES / family / "config.json").read_text())
        assert (config["eos_token_id"], config["mask_token_id"]) == (EOS, EOS + 1)
