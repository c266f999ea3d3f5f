"""The batched engine equals the slow, obvious decoder token by token."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import rollout
import samplers

_spec = importlib.util.spec_from_file_location("reference_decoder", Path(__file__).with_name("reference_decoder.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)


def compare(denoiser, prompts, *, name, options, block_length, temperature, top_p=1.0, steps=None, T=12) -> int:
    engine = rollout.Engine(denoiser, samplers.build(name, **options), block_length=block_length, max_batch_tokens=70)
    requests = [
        rollout.Request(tokens, T - row % 3, seed=100 + row, temperature=temperature, top_p=top_p, steps=steps)
        for row, tokens in enumerate(prompts)
    ]
    ended = 0
    for request, answer in zip(requests, engine.run(requests), strict=True):
        with torch.no_grad():
            tokens, step_map, logprobs, num_steps = reference.decode(
                denoiser,
                request.prompt_tokens,
                name=name,
                max_new_tokens=request.max_new_tokens,
                block_length=block_length or denoiser.block_length,
                temperature=temperature,
                top_p=top_p,
                seed=request.seed,
                tokens_per_step=options.get("tokens_per_step", 1),
                tau=options.get("tau"),
                steps=steps,
            )
        assert answer.tokens.tolist() == tokens
        assert answer.step_map.tolist() == step_map
        assert answer.num_steps == answer.num_forwards == num_steps
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=2e-5)
        ended += answer.finish_reason == "eos"
    return ended


NAMES = ["ar", "random", "confidence", "margin", "entropy", "lcr"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_sampler_on_every_kind_of_family(denoisers, prompts, family, name, temperature) -> None:
    compare(denoisers[family], prompts, name=name, options={}, block_length=4, temperature=temperature)


@pytest.mark.parametrize("name", ["confidence", "entropy", "random", "lcr"])
def test_full_diffusion_with_the_end_guard(denoisers, prompts, name) -> None:
    compare(denoisers["llada"], prompts, name=name, options={}, block_length=None, temperature=1.0)


@pytest.mark.parametrize("options", [{"tokens_per_step": 3}, {"tau": 0.5}])
def test_parallel_commits(denoisers, prompts, options) -> None:
    for family in ("llada", "sdar"):
        compare(denoisers[family], prompts, name="confidence", options=options, block_length=4, temperature=0.8)


def test_step_budget(denoisers, prompts) -> None:
    compare(denoisers["dream"], prompts, name="confidence", options={}, block_length=5, temperature=1.0, steps=6)


def test_nucleus(denoisers, prompts) -> None:
    compare(denoisers["llada"], prompts, name="random", options={}, block_length=None, temperature=1.2, top_p=0.6)


def test_first_slot_of_a_block_alone(denoisers, prompts) -> None:
    compare(
        denoisers["fast_dllm_v2"], prompts, name="confidence", options={"tau": 0.3}, block_length=4, temperature=1.0
    )


def test_the_cases_above_meet_early_ends(denoisers) -> None:
    prompts = [[row + 1, row + 2] for row in range(24)]
    ended = compare(denoisers["llada"], prompts, name="random", options={}, block_length=4, temperature=2.0)
    assert ended >= 2
