"""Replaying the step map gives what the rollout recorded, for every sampler that says so; the others are refused."""

import numpy as np
import pytest
import torch

import learner
import rollout
import samplers
from tests.learner.small_models import small_denoiser

FAMILIES = ["llada", "dream", "sdar", "fast_dllm_v2"]
# In float32 rounding alone is up to 1e-5 with these weights; here only a wrong canvas can differ.
DENOISERS = {family: small_denoiser(family, seed).double() for seed, family in enumerate(FAMILIES)}
MADE_EXACT = {"egi": {"first_temperature": None}, "credit": {"boost_draw": False, "tau": 0.3}}
SPREAD = {"threshold": {"tau": 0.4}, "factor": {"f": 2.0}, "eb": {"gamma": 1.0}, "attn": {"tau": 0.3}}
"""Options that commit several tokens a step here."""
NEVER_EXACT = ["imh", "imh_sequence", "lcr"]


def unbuildable(name: str) -> bool:
    """Whether the sampler needs something that its defaults do not have (a trained network)."""
    try:
        samplers.build(name)
    except ValueError:
        return True
    return False


EXACT = [
    (name, {**SPREAD.get(name, {}), **MADE_EXACT.get(name, {})})
    for name in samplers.names()
    if name not in NEVER_EXACT and not unbuildable(name)
] + [
    ("confidence", {"position_temperature": 0.3, "tokens_per_step": 2}),
    ("margin", {"tokens_per_step": 3}),
    ("attn", {"tokens_per_step": 1}),
    ("attn", {"local": True, "layers": "last"}),
    ("max_s", {"min_prob": 0.0, "tokens_per_step": 2}),
    ("random", {"gamma": 1.0}),
]


def answers_of(family, name, options, **decoding):
    engine = rollout.Engine(DENOISERS[family], samplers.build(name, **options), block_length=4)
    prompts = [[5], [6, 7, 8, 9, 10], [11, 4]]
    return prompts, engine.generate(prompts, num_samples=2, max_new_tokens=8, seed=3, **decoding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "options"), EXACT, ids=[f"{name}-{'-'.join(options)}" for name, options in EXACT])
def test_replay_gives_the_recorded_log_probabilities(family, name, options):
    for temperature in (0.7, 1.0):
        prompts, answers = answers_of(family, name, options, temperature=temperature)
        assert all(answer.exact_likelihood for answer in answers)
        with torch.no_grad():
            replayed = learner.sequence_logprobs(DENOISERS[family], prompts, answers, temperature=temperature)
        for answer, logprob_T in zip(answers, replayed, strict=True):
            np.testing.assert_allclose(logprob_T.numpy(), answer.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*NEVER_EXACT, *MADE_EXACT])
def test_samplers_without_an_exact_likelihood_are_refused_by_name(name):
    prompts, answers = answers_of("llada", name, {}, temperature=1.0)
    with pytest.raises(ValueError, match=f"'{name}'"):
        learner.sequence_logprobs(DENOISERS["llada"], prompts, answers, temperature=1.0)
