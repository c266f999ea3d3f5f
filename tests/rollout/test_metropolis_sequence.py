"""Chains over runs in the engine: which run is kept, what it costs, and how blocks are put together."""

import numpy as np
import pytest
import torch

import rollout
import samplers
from rollout import chains
from rollout.batch import Batch
from rollout.request import sequence_seed
from samplers.metropolis import Metropolis
from samplers.position import Confidence
from samplers.sequence_chain import SequenceChain

RUN = Metropolis("imh_sequence", Confidence(), alpha=4.0, candidates=0)


def answers(denoiser, requests, *, sampler, **options):
    engine = rollout.Engine(denoiser, sampler, **{"block_length": 4, **options})
    found = dict(chains.stream(engine, sampler, requests))
    return engine, [found[index] for index in range(len(requests))]


def requests_of(prompts, *, max_new_tokens=10, temperature=1.0):
    return [
        rollout.Request(tokens, max_new_tokens, seed=40 + row, temperature=temperature, prompt_id=f"p{row}")
        for row, tokens in enumerate(prompts)
    ]


def test_the_run_kept_is_the_one_that_the_chain_ends_at(denoisers, prompts) -> None:
    sampler = SequenceChain("imh_sequence", RUN, candidates=3)
    _, found = answers(denoisers["llada"], requests_of(prompts), sampler=sampler)
    engine = rollout.Engine(denoisers["llada"], RUN, block_length=4)
    for request, answer in zip(requests_of(prompts), found, strict=True):
        runs = engine.run(
            [
                rollout.Request(
                    request.prompt_tokens, 10, seed=sequence_seed(request.seed, "run", 0, n), temperature=1.0
                )
                for n in range(4)
            ]
        )
        log_weight_1K = torch.tensor([[run.notes["log_mass"].sum(dtype=np.float64) for run in runs]])
        picked = sampler.choose(log_weight_1K, torch.tensor([request.seed]))
        kept = runs[int(picked.index_R)]
        assert answer.tokens.tolist() == kept.tokens.tolist()
        assert answer.step_map.tolist() == kept.step_map.tolist()
        assert answer.notes["chain_index"].tolist() == picked.index_R.tolist()
        np.testing.assert_allclose(answer.notes["chain_log_weight"], log_weight_1K.numpy(), atol=1e-4)
        np.testing.assert_allclose(answer.notes["chain_effective_size"], picked.effective_size_R.numpy(), rtol=1e-3)
        assert answer.num_forwards == sum(run.num_forwards for run in runs)
        assert answer.answer_length == kept.answer_length
        assert answer.finish_reason == kept.finish_reason
        assert (answer.seed, answer.prompt_id) == (request.seed, request.prompt_id)
        assert not answer.exact_likelihood
    assert len({int(answer.notes["chain_index"][0]) for answer in found}) > 1


@pytest.mark.parametrize(("family", "cache"), [("llada", "none"), ("llada", "dual"), ("sdar", "block")])
def test_blocks_are_put_together_from_one_chain_each(denoisers, prompts, family, cache) -> None:
    sampler = SequenceChain("imh_sequence", RUN, candidates=2, level="block")
    requests = requests_of(prompts, max_new_tokens=11)
    engine, found = answers(denoisers[family], requests, sampler=sampler, cache=cache)
    for request, answer in zip(requests, found, strict=True):
        offset = len(request.prompt_tokens) % 4 if denoisers[family].family.block_causal else 0
        committed = int(answer.committed.sum())
        starts = [0, *(slot for slot in range(1, committed) if (slot + offset) % 4 == 0)]
        assert answer.notes["chain_log_weight"].shape == (len(starts), 3)
        assert len(answer.tokens) == len(answer.step_map) == len(answer.logprobs) == 11
        assert sorted(answer.step_map[answer.committed].tolist()) == list(range(answer.num_steps))
        assert answer.num_steps == committed == len(answer.notes["log_mass"])
        # The second block is the chosen one of three runs from the first.
        if len(starts) > 1:
            number_of_run = int(answer.notes["chain_index"][1])
            settled = [*request.prompt_tokens, *answer.tokens[: starts[1]].tolist()]
            own = rollout.Request(
                settled, 11 - starts[1], seed=sequence_seed(request.seed, "run", 1, number_of_run), temperature=1.0
            )
            batch, runs = Batch(engine, [own], one_block=True), {}
            while batch.admit():
                runs |= batch.step()
            number = int(runs[0].committed.sum())
            assert runs[0].tokens[:number].tolist() == answer.tokens[starts[1] : starts[1] + number].tolist()
    assert max(len(answer.notes["chain_index"]) for answer in found) > 1
    assert len({int(index) for answer in found for index in answer.notes["chain_index"]}) > 1


def test_one_block_has_the_same_chain_at_either_level(denoisers, prompts) -> None:
    for block_length in (10, None):
        one, other = (
            answers(
                denoisers["llada"],
                requests_of(prompts),
                sampler=SequenceChain("imh_sequence", RUN, level=level),
                block_length=block_length,
            )[1]
            for level in ("block", "response")
        )
        for a, b in zip(one, other, strict=True):
            assert a.tokens.tolist() == b.tokens.tolist()
            assert a.num_forwards == b.num_forwards


def test_a_greedy_request_has_one_run(denoisers, prompts) -> None:
    requests = requests_of(prompts, temperature=0.0)
    _, found = answers(denoisers["llada"], requests, sampler=SequenceChain("imh_sequence", RUN, level="block"))
    plain = rollout.Engine(denoisers["llada"], RUN, block_length=4).run(requests)
    for one, other in zip(found, plain, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.step_map.tolist() == other.step_map.tolist()
        assert one.num_forwards == other.num_forwards


def test_an_answer_does_not_depend_on_the_others(denoisers, prompts) -> None:
    sampler = SequenceChain("imh_sequence", RUN, level="block", pick="weight")
    _, together = answers(denoisers["llada"], requests_of(prompts), sampler=sampler)
    for index, request in enumerate(requests_of(prompts)):
        _, (alone,) = answers(denoisers["llada"], [request], sampler=sampler)
        assert alone.tokens.tolist() == together[index].tokens.tolist()
        assert alone.notes["chain_index"].tolist() == together[index].notes["chain_index"].tolist()


def test_the_engine_answers_with_chains_when_its_sampler_is_one(denoisers, prompts) -> None:
    sampler = samplers.build("imh_sequence", alpha=4.0, candidates=3, level="block")
    _, expected = answers(denoisers["llada"], requests_of(prompts), sampler=sampler)
    engine = rollout.Engine(denoisers["llada"], sampler, block_length=4)
    for one, other in zip(engine.run(requests_of(prompts)), expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.num_forwards == other.num_forwards
        assert one.sampler == "imh_sequence"
