"""Caches: exact ones change nothing, approximate ones are their rule and nothing else, sharing changes nothing."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import rollout
import samplers
from rollout.cache_policy import CachePolicy


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


decoder, kept = module("reference_decoder"), module("reference_cache")
POLICIES = {
    "dual": {},
    "prefix": {},
    "dual, generated": {"refresh": "generated"},
    "dual, window": {"refresh": "window", "window": 2},
    "dual, drift": {"refresh": "drift", "window": 3, "drift": 0.02},
    "prefix, drift": {"refresh": "drift", "window": 1, "drift": 0.2},
    "dual, period": {"refresh": "window", "window": 1, "period": 2},
}


def answers(denoiser, prompts, *, cache, name="confidence", options=None, temperature=1.0, **engine):
    engine = rollout.Engine(
        denoiser, samplers.build(name, **(options or {})), **{"block_length": 4, "cache": cache, **engine}
    )
    requests = [
        rollout.Request(tokens, 14 - row % 3, seed=100 + row, temperature=temperature)
        for row, tokens in enumerate(prompts)
    ]
    return requests, engine.run(requests)


def same(a: rollout.Trajectory, b: rollout.Trajectory) -> None:
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.step_map.tolist() == b.step_map.tolist()
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_approximate_cache_equals_the_slow_form_of_its_rule(denoisers, prompts, family, policy, temperature) -> None:
    denoiser, kind = denoisers[family], policy.split(",")[0]
    requests, found = answers(
        denoiser,
        prompts,
        cache=CachePolicy(kind=kind, **POLICIES[policy]),
        options={"tau": 0.5},
        temperature=temperature,
        max_batch_tokens=90,
    )
    for request, answer in zip(requests, found, strict=True):
        forward = kept.KeptForward(denoiser, len(request.prompt_tokens), kind=kind, **POLICIES[policy])
        with torch.no_grad():
            tokens, step_map, logprobs, num_steps = decoder.decode(
                denoiser,
                request.prompt_tokens,
                name="confidence",
                max_new_tokens=request.max_new_tokens,
                block_length=4,
                temperature=temperature,
                top_p=1.0,
                seed=request.seed,
                tau=0.5,
                predict=forward,
            )
        assert answer.tokens.tolist() == tokens
        assert answer.step_map.tolist() == step_map
        assert answer.num_steps == num_steps
        assert answer.computed.tolist() == forward.computed
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=2e-5)
        assert not answer.exact_cache
        assert answer.cache.startswith(kind)


def test_drift_rule_meets_both_outcomes(denoisers, prompts) -> None:
    """The cases above would not test the rule if it always, or never, asked for the whole canvas."""
    policy = CachePolicy(kind="dual", refresh="drift", window=3, drift=0.02)
    _, found = answers(denoisers["llada"], prompts * 4, cache=policy)
    whole = [
        answer.computed[1:, 1] - answer.computed[1:, 0] == len(answer.prompt_tokens) + len(answer.tokens)
        for answer in found
    ]
    counts = [int(flags.sum()) for flags in whole]
    assert 0 < sum(counts) < sum(len(flags) for flags in whole) / 2
    assert min(counts) == 0 or max(counts) > min(counts)


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("name", ["confidence", "random", "lcr"])
def test_block_cache_changes_nothing(denoisers, prompts, family, name) -> None:
    plain = answers(denoisers[family], prompts, cache="none", name=name)[1]
    cached = answers(denoisers[family], prompts, cache="block", name=name)[1]
    for a, b in zip(plain, cached, strict=True):
        same(a, b)
        assert b.exact_cache
        # Each step computes its own block, and the one before at a block's first step.
        assert (b.computed[1:, 1] - b.computed[1:, 0] <= 8).all()


@pytest.mark.parametrize(
    ("family", "cache"), [("llada", "none"), ("dream", "dual"), ("sdar", "block"), ("sdar", "none")]
)
def test_samples_that_share_their_prompt_equal_samples_that_do_not(denoisers, family, cache) -> None:
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9, 10]]
    options = {"num_samples": 5, "max_new_tokens": 9, "temperature": 1.0, "seed": 3}
    engine = {"block_length": 4, "cache": cache, "max_batch_rows": 3}
    sampler = samplers.build("confidence")
    shared = rollout.Engine(denoisers[family], sampler, **engine).generate(prompts, **options)
    alone = rollout.Engine(denoisers[family], sampler, **engine, share_prompts=False).generate(prompts, **options)
    for a, b in zip(shared, alone, strict=True):
        same(a, b)
    assert len({tuple(answer.tokens.tolist()) for answer in shared}) > 5


def test_sharing_computes_the_prompt_once(denoisers) -> None:
    denoiser, prompt = denoisers["sdar"], list(range(1, 21))
    tokens = {}
    for shares in (True, False):
        counted = []
        start = denoiser.start

        def spy(token_M, *arguments, counted=counted, start=start, **options):
            counted.append(len(token_M))
            return start(token_M, *arguments, **options)

        denoiser.start = spy
        try:
            engine = rollout.Engine(
                denoiser, samplers.build("ar"), cache="block", share_prompts=shares, max_batch_rows=2
            )
            engine.generate([prompt], num_samples=6, max_new_tokens=4, temperature=1.0)
        finally:
            del denoiser.start
        tokens[shares] = sum(counted)
    # Six samples, two at a time: prompts of 20 tokens are whole blocks and are computed once instead of six times.
    assert tokens[False] - tokens[True] >= 5 * 20


def test_an_answer_under_a_cache_does_not_depend_on_the_batch(denoisers, prompts) -> None:
    for family, cache in (("llada", "dual"), ("llada", "prefix"), ("sdar", "block")):
        together = answers(denoisers[family], prompts, cache=cache)[1]
        narrow = answers(denoisers[family], prompts, cache=cache, max_batch_rows=2)[1]
        for a, b in zip(together, narrow, strict=True):
            same(a, b)
            assert a.computed.tolist() == b.computed.tolist()


@pytest.mark.parametrize(
    ("family", "cache", "said"),
    [
        ("sdar", "dual", "use 'block'"),
        ("llada", "block", "use 'none'"),
        ("llada", "pefix", "did you mean 'prefix'"),
    ],
)
def test_caches_that_do_not_fit_are_refused(denoisers, family, cache, said) -> None:
    with pytest.raises(ValueError, match=said):
        rollout.Engine(denoisers[family], samplers.build("ar"), cache=cache)


def test_candidates_are_canvases_with_one_slot_filled(denoisers) -> None:
    """A sampler may look at what would follow a token before it commits it."""

    class Looks:
        name, exact_likelihood, probe, memory = "looks", False, None, ()

        def __init__(self) -> None:
            self.inner, self.seen = samplers.build("ar"), []

        def step(self, state, evaluate):
            row = torch.tensor([0, 0])
            ahead = evaluate.with_tokens(row, torch.tensor([0, 2]), torch.tensor([5, 6]))
            hidden = ahead.hidden(torch.tensor([0, 1]), torch.tensor([3, 3]))
            self.seen.append(ahead.logits(hidden))
            return self.inner.step(state, evaluate)

    for family, cache in (("llada", "none"), ("dream", "none"), ("llada", "dual"), ("sdar", "block")):
        denoiser, sampler = denoisers[family], Looks()
        engine = rollout.Engine(denoiser, sampler, block_length=4, cache=cache)
        engine.generate([[1, 2, 3, 4]], max_new_tokens=4)
        mask = denoiser.mask_token_id
        canvases = torch.tensor([[1, 2, 3, 4, 5, mask, mask, mask], [1, 2, 3, 4, mask, mask, 6, mask]])
        with torch.no_grad():
            raw = denoiser.logits(canvases)[:, 7 - denoiser.family.shift]
        raw[:, mask] = -torch.inf
        # At the first step everything outside the block has just been computed, but for a dual cache it is stale.
        if cache != "dual":
            torch.testing.assert_close(sampler.seen[0], raw, atol=2e-5, rtol=1e-4)
        else:
            assert (sampler.seen[0] - raw)[:, :mask].abs().max() < 1.0


@pytest.mark.parametrize(("family", "cache"), [("llada", "none"), ("dream", "dual"), ("fast_dllm_v2", "block")])
def test_last_layer_over_whole_blocks_gives_the_same_answers(denoisers, prompts, family, cache, monkeypatch) -> None:
    """What a GPU does, which would wait for the number of slots."""
    from rollout import evaluation

    expected = answers(denoisers[family], prompts * 2, cache=cache)[1]
    made = evaluation.Evaluation.__init__
    monkeypatch.setattr(
        evaluation.Evaluation, "__init__", lambda self, *a, **k: made(self, *a, **(k | {"whole_block": True}))
    )
    for a, b in zip(expected, answers(denoisers[family], prompts * 2, cache=cache)[1], strict=True):
        same(a, b)
