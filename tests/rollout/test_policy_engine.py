"""The policy in the engine equals one answer after the other through whole forwards; it can be driven from outside."""

import numpy as np
import pytest
import torch

import samplers
from learner import sequence_logprobs
from rollout import Engine
from rollout.request import Request, sequence_seed
from rollout.stepwise import StepwiseRun, is_finished
from samplers.policy.config import NetworkConfig
from samplers.policy.laws import Bernoulli, Dpls
from samplers.policy.network import PolicyNetwork
from samplers.policy.observation import Undecided
from samplers.policy.sampler import PolicySampler
from samplers.randomness import POSITION_STREAM, uniform

CASES = [("llada", None), ("llada", 5), ("dream", 4), ("sdar", None)]
SLOTS = 9


def policy(name: str = "bernoulli", **fields) -> PolicySampler:
    """A policy that looks at everything: random weights, modulation and head included."""
    torch.manual_seed(8)
    network = PolicyNetwork(NetworkConfig(width=16, ffn_width=16, output_bias=-0.5))
    with torch.no_grad():
        network.modulation.weight.normal_(std=0.5)
        network.output.weight.normal_(std=0.5)
    return PolicySampler("policy", network.eval(), {"bernoulli": Bernoulli, "dpls": Dpls}[name](), **fields)


@torch.no_grad()
def decode(denoiser, prompt, sampler, *, block_length, seed):
    """Tokens and step map of one answer, greedy tokens: Bernoulli choices from whole forwards and plain loops."""
    causal, shift = denoiser.family.block_causal, denoiser.family.shift
    start, end = len(prompt), len(prompt) + SLOTS
    origin, size = (0 if causal else start), block_length or (4 if causal else SLOTS)
    guards = block_length is None and not causal
    canvas, masked, step_map, step = list(prompt) + [denoiser.mask_token_id] * SLOTS, set(range(start, end)), {}, 0
    while masked:
        first = origin + (min(masked) - origin) // size * size
        block = [k for k in range(first, min(first + size, end)) if k in masked]
        visible = min((min(masked) // size + 1) * size, end) if causal else end
        raw = denoiser.logits(torch.tensor([canvas[:visible]]), block_length=size if causal else None)[0].float()
        raw[:, denoiser.mask_token_id] = -torch.inf
        law = {k: raw[max(k - 1, 0) if shift else k].softmax(0) for k in masked if k < visible}
        allowed = block
        if guards:
            ends = {k for k in block if int(law[k].argmax()) in denoiser.stop_token_ids}
            allowed = [k for k in block if k not in ends or k == block[0]]
        c = torch.tensor(
            [1.0 if k not in masked else float(law[k].max()) if k in law else 0.0 for k in range(start, end)]
        )
        m = torch.tensor([k in masked for k in range(start, end)])
        valid = torch.ones(1, SLOTS, dtype=torch.bool)
        logit = sampler.network(c[None, :, None], m[None], torch.tensor([step / SLOTS]), valid)[0]
        chosen = []
        for k in allowed:
            number = uniform(*(torch.tensor([value]) for value in (seed, step, k - start)), stream=POSITION_STREAM)
            if float(number) < float(logit[k - start].double().sigmoid()):
                chosen.append(k)
        for k in chosen or [max(allowed, key=lambda k: (float(logit[k - start]), -k))]:
            canvas[k], step_map[k] = int(law[k].argmax()), step
            masked.discard(k)
        step += 1
        stops = [k for k in range(start, end) if k not in masked and canvas[k] in denoiser.stop_token_ids]
        if stops and min(stops) < min(masked, default=end):
            break
    tokens = [denoiser.eos_token_id if k in masked else canvas[k] for k in range(start, end)]
    return tokens, [step_map.get(k, step) for k in range(start, end)]


@pytest.mark.parametrize(("family", "block_length"), CASES)
def test_engine_equals_one_sequence_at_a_time(denoisers, prompts, family, block_length) -> None:
    denoiser, sampler = denoisers[family], policy()
    engine = Engine(denoiser, sampler, block_length=block_length, max_batch_rows=3)
    for answer in engine.generate(prompts, num_samples=2, max_new_tokens=SLOTS):
        tokens, step_map = decode(
            denoiser, answer.prompt_tokens.tolist(), sampler, block_length=block_length, seed=answer.seed
        )
        assert answer.tokens.tolist() == tokens
        assert answer.step_map.tolist() == step_map
        assert len(answer.position_logprobs) == answer.num_steps


@pytest.mark.parametrize(("family", "block_length"), CASES)
@pytest.mark.parametrize("name", ["bernoulli", "dpls"])
def test_replayed_likelihood_of_tokens_equals_the_recorded_one(denoisers, prompts, family, block_length, name) -> None:
    denoiser = denoisers[family]
    engine = Engine(denoiser, policy(name), block_length=block_length)
    answers = engine.generate(prompts, max_new_tokens=SLOTS, temperature=1.0)
    replayed = sequence_logprobs(denoiser, prompts, answers, temperature=1.0)
    for answer, logprobs in zip(answers, replayed, strict=True):
        found = logprobs.detach().numpy()[answer.scored]
        np.testing.assert_allclose(found, answer.logprobs[answer.scored], atol=1e-5)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caches_that_hide_later_blocks_still_finish_every_answer(denoisers, prompts, cache) -> None:
    engine = Engine(denoisers["llada"], policy(), block_length=3, cache=cache)
    for answer in engine.generate(prompts, max_new_tokens=SLOTS):
        assert is_finished(answer)


@pytest.mark.parametrize(("length", "block_length"), [(3, 2), (24, 24), (17, 5)])
def test_policy_works_at_lengths_and_blocks_of_any_size(denoisers, prompts, length, block_length) -> None:
    engine = Engine(denoisers["llada"], policy(), block_length=block_length)
    for answer in engine.generate(prompts, max_new_tokens=length):
        assert is_finished(answer)
        assert answer.num_steps <= length


# ---- driven from outside


def requests(prompts, samples: int = 2) -> list[Request]:
    return [
        Request(prompt, SLOTS, sequence_seed(0, number, sample), prompt_id=str(number), sample_index=sample)
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


@pytest.mark.parametrize(("family", "block_length"), CASES)
def test_deciding_outside_as_the_sampler_decides_gives_the_same_answers(
    denoisers, prompts, family, block_length
) -> None:
    denoiser, sampler = denoisers[family], policy()
    inside = Engine(denoiser, sampler, block_length=block_length, max_batch_rows=4).run(requests(prompts))
    run = StepwiseRun(Engine(denoiser, Undecided(), block_length=block_length, max_batch_rows=4), requests(prompts))
    outside = {}
    while (found := run.observe()) is not None:
        rows, looked = found
        assert len(rows) == len(looked.observation.eligible_RT)
        outside |= dict(run.act(sampler.decide(looked)[0]))
    assert sorted(outside) == list(range(len(inside)))
    for index, answer in enumerate(inside):
        for field in ("tokens", "step_map", "logprobs"):
            np.testing.assert_array_equal(getattr(outside[index], field), getattr(answer, field))


def test_answer_that_never_commits_ends_after_as_many_steps_as_slots_and_is_not_finished(denoisers, prompts) -> None:
    run = StepwiseRun(Engine(denoisers["llada"], Undecided()), requests(prompts[:1], 1))
    ended, steps = [], 0
    while (found := run.observe()) is not None:
        ended += run.act(torch.zeros_like(found[1].candidate_RT))
        steps += 1
    ((_, answer),) = ended
    assert steps == answer.num_steps == SLOTS
    assert not is_finished(answer)
    assert not answer.committed.any()


def test_choice_outside_the_active_block_is_refused(denoisers, prompts) -> None:
    run = StepwiseRun(Engine(denoisers["llada"], Undecided(), block_length=4), requests(prompts[:1], 1))
    _, looked = run.observe()
    with pytest.raises(ValueError, match="outside the active block"):
        run.act(torch.ones_like(looked.candidate_RT))


def test_engine_that_decides_by_itself_cannot_be_driven(denoisers, prompts) -> None:
    with pytest.raises(ValueError, match="'confidence' decides by itself"):
        StepwiseRun(Engine(denoisers["llada"], samplers.build("confidence")), requests(prompts))


def test_observation_of_known_slots_is_one_and_of_unseen_ones_zero(denoisers, prompts) -> None:
    # sdar: blocks of 4 from position 0; the first prompt has 3 tokens, so block one holds slot 0 only.
    run = StepwiseRun(Engine(denoisers["sdar"], Undecided()), requests(prompts[:1], 1))
    _, looked = run.observe()
    assert looked.candidate_RT[0].tolist() == [True] + [False] * 8
    assert bool((looked.observation.prob_RTn[0, 1:] == 0).all())
    run.act(looked.candidate_RT)
    _, looked = run.observe()
    assert looked.observation.prob_RTn[0, 0].tolist() == [1.0]
    assert looked.candidate_RT[0].tolist() == [False] + [True] * 4 + [False] * 4
