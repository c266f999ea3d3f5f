"""Token-level Metropolis in the engine: equal to a slow chain on whole canvases, its forwards, batches and caches."""

import numpy as np
import pytest
import torch

import rollout
import samplers
from samplers.draw import invert_cumulative
from samplers.randomness import CHAIN_STREAM, TOKEN_STREAM, uniform

ALPHA, CANDIDATES = 3.0, 3


def number(seed: int, step: int, slot: int, stream: int) -> torch.Tensor:
    return uniform(torch.tensor([seed]), torch.tensor([step]), torch.tensor([slot]), stream=stream)


def slow_chain(denoiser, prompt, *, max_new_tokens, block_length, seed, skip_ends=True, temperature=1.0):
    """One sequence, one canvas at a time, the whole vocabulary at every position.

    Gives tokens, step map, log-probabilities of the proposals, number of forwards, and a row of notes for each step.
    """
    mask, stops, shift = denoiser.mask_token_id, set(denoiser.stop_token_ids), denoiser.family.shift
    causal, start, end = denoiser.family.block_causal, len(prompt), len(prompt) + max_new_tokens
    canvas = list(prompt) + [mask] * max_new_tokens
    masked, step_map, logprobs, notes = set(range(start, end)), {}, {}, []
    forwards, step, known = 0, 0, None
    origin = 0 if causal else start

    def law(tokens: list[int], last: int) -> torch.Tensor:
        visible = tokens[:last] if causal else tokens
        raw = denoiser.logits(torch.tensor([visible]), block_length=block_length if causal else None)[0].float()
        raw[:, mask] = -torch.inf
        return (torch.cat([raw[:1], raw[:-1]]) if shift else raw).div(temperature).log_softmax(-1)

    while masked:
        first = origin + (min(masked) - origin) // block_length * block_length
        last = min(first + block_length, end)
        if known is None:
            known = law(canvas, last)
            forwards += 1
        open_slots = sorted(k for k in masked if first <= k < last)
        plain = {k: (known[k] * temperature).softmax(-1).max() for k in open_slots}
        slot = max(open_slots, key=lambda k: (float(plain[k]), -k))
        log_g = (ALPHA * known[slot]).log_softmax(-1)
        streams = [TOKEN_STREAM] + [CHAIN_STREAM + 2 * n for n in range(CANDIDATES)]
        drawn = [
            int(invert_cumulative(log_g.exp()[None], number(seed, step, slot - start, stream))) for stream in streams
        ]
        others, distinct = [k for k in open_slots if k != slot], list(dict.fromkeys(drawn))
        current, proposed, accepted, extra, next_known = 0, 0, 0, 0, None
        if len(distinct) > 1 and others:
            laws = {u: law([u if k == slot else token for k, token in enumerate(canvas)], last) for u in distinct}
            extra = len(distinct)
            if skip_ends:
                others = [k for k in others if all(int(laws[u][k].argmax()) not in stops for u in distinct)]
            look = {u: torch.stack([torch.zeros(())] + [(ALPHA * laws[u][k]).logsumexp(-1) for k in others]).double()
                    for u in distinct}  # fmt: skip
            for n in range(1, CANDIDATES + 1):
                u = number(seed, step, slot - start, CHAIN_STREAM + 2 * n - 1)
                accepts = bool(u < (look[drawn[n]] - look[drawn[current]]).sum().exp())
                proposed += drawn[n] != drawn[current]
                accepted += accepts and drawn[n] != drawn[current]
                current = n if accepts else current
            next_known = laws[drawn[current]]
        canvas[slot], step_map[slot] = drawn[current], step
        logprobs[slot] = float(log_g[drawn[current]])
        masked.discard(slot)
        notes.append((slot - start, len(distinct), proposed, accepted, extra))
        forwards += extra
        known, step = next_known, step + 1
        ends = [k for k in range(start, end) if k not in masked and canvas[k] in stops]
        if ends and not any(k < ends[0] for k in masked):
            break
    tokens = [denoiser.eos_token_id if k in masked else canvas[k] for k in range(start, end)]
    steps = [step_map.get(k, step) for k in range(start, end)]
    return tokens, steps, [logprobs.get(k, 0.0) for k in range(start, end)], forwards, notes


def run(denoiser, prompts, *, max_new_tokens=10, temperature=1.0, sampler=None, **engine):
    sampler = sampler or samplers.build("imh", alpha=ALPHA, candidates=CANDIDATES)
    requests = [
        rollout.Request(tokens, max_new_tokens - row % 3, seed=100 + row, temperature=temperature)
        for row, tokens in enumerate(prompts)
    ]
    return requests, rollout.Engine(denoiser, sampler, **{"block_length": 4, **engine}).run(requests)


def same(one: rollout.Trajectory, other: rollout.Trajectory) -> None:
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.step_map.tolist() == other.step_map.tolist()
    assert one.num_forwards == other.num_forwards
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
    for name, value in one.notes.items():
        np.testing.assert_allclose(value, other.notes[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("family", "cache", "temperature"),
    [
        ("llada", "none", 1.0),
        ("llada", "none", 0.7),
        ("dream", "none", 1.0),
        ("sdar", "none", 1.0),
        ("sdar", "block", 1.0),
    ],
)
def test_every_step_equals_the_slow_chain(denoisers, prompts, family, cache, temperature) -> None:
    denoiser = denoisers[family]
    requests, answers = run(denoiser, prompts, temperature=temperature, cache=cache, max_batch_tokens=50)
    moved, refused = 0, 0
    for request, answer in zip(requests, answers, strict=True):
        with torch.no_grad():
            tokens, step_map, logprobs, forwards, notes = slow_chain(
                denoiser,
                request.prompt_tokens,
                max_new_tokens=request.max_new_tokens,
                block_length=4,
                seed=request.seed,
                temperature=temperature,
            )
        assert answer.tokens.tolist() == tokens
        assert answer.step_map.tolist() == step_map
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=2e-5)
        assert answer.num_forwards == forwards
        names = ("slot", "distinct", "proposed", "accepted", "extra_forwards")
        assert [list(row) for row in zip(*(answer.notes[name] for name in names), strict=True)] == [
            list(row) for row in notes
        ]
        assert not answer.exact_likelihood
        moved += answer.notes["accepted"].sum()
        refused += (answer.notes["proposed"] - answer.notes["accepted"]).sum()
    assert moved > 3
    assert refused > 3


@pytest.mark.parametrize(
    ("family", "cache"),
    [("llada", "none"), ("llada", "dual"), ("llada", "prefix"), ("dream", "none"), ("sdar", "block")],
)
def test_forwards_are_one_a_block_and_one_a_distinct_candidate(denoisers, prompts, family, cache) -> None:
    denoiser = denoisers[family]
    counted = []
    start = denoiser.start

    def spy(token_M, packing, **options):
        counted.append(len(packing.spans))
        return start(token_M, packing, **options)

    denoiser.start = spy
    try:
        _, answers = run(denoiser, prompts, cache=cache, share_prompts=False)
    finally:
        del denoiser.start
    assert sum(counted) == sum(answer.num_forwards for answer in answers)
    for answer in answers:
        length, prompt = len(answer.tokens), len(answer.prompt_tokens)
        origin = prompt % 4 if denoiser.family.block_causal else 0
        last_of_block = [min(length, (slot + origin) // 4 * 4 + 4 - origin) for slot in range(length)]
        slots = answer.notes["slot"].tolist()
        blocks = {last_of_block[slot] for slot in slots}
        spent, ahead = len(blocks), set(range(length))
        for step, slot in enumerate(slots):
            ahead.discard(slot)
            left = any(last_of_block[other] == last_of_block[slot] for other in ahead)
            over = step == len(slots) - 1 and answer.notes["distinct"][step] == 1
            spent += int(answer.notes["distinct"][step]) if left and not over else 0
        assert answer.num_forwards == spent
        assert len(slots) == answer.num_steps == int(answer.committed.sum())


@pytest.mark.parametrize(
    ("family", "cache"), [("llada", "none"), ("llada", "dual"), ("dream", "none"), ("sdar", "block")]
)
def test_an_answer_does_not_depend_on_the_batch(denoisers, prompts, family, cache) -> None:
    _, together = run(denoisers[family], prompts * 2, cache=cache)
    _, narrow = run(denoisers[family], prompts * 2, cache=cache, max_batch_rows=1)
    for one, other in zip(together, narrow, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    ("family", "cache"), [("llada", "none"), ("llada", "dual"), ("dream", "dual"), ("sdar", "block")]
)
def test_candidates_in_one_batch_equal_candidates_one_at_a_time(denoisers, prompts, family, cache) -> None:
    class OneAtATime:
        def __init__(self, evaluate) -> None:
            self.inner, self.vocab_size = evaluate, evaluate.vocab_size
            self.hidden, self.logits = evaluate.hidden, evaluate.logits

        def with_tokens(self, row_K, column_K, token_K):
            return Stacked([self.inner.with_tokens(row_K[k : k + 1], column_K[k : k + 1], token_K[k : k + 1])
                            for k in range(len(row_K))])  # fmt: skip

    class Stacked:
        def __init__(self, parts) -> None:
            self.parts, self.vocab_size, self.logits = parts, parts[0].vocab_size, parts[0].logits

        def hidden(self, row_M, column_M):
            zero = torch.zeros(1, dtype=torch.int64)
            return torch.cat(
                [self.parts[row].hidden(zero, column_M[m : m + 1]) for m, row in enumerate(row_M.tolist())]
            )

    class Slow:
        inner = samplers.build("imh", alpha=ALPHA, candidates=CANDIDATES)
        name, exact_likelihood, probe, memory, lookahead = "imh", False, None, (), "block"

        def step(self, state, evaluate):
            return self.inner.step(state, OneAtATime(evaluate))

    for one, other in zip(
        run(denoisers[family], prompts, cache=cache)[1],
        run(denoisers[family], prompts, cache=cache, sampler=Slow())[1],
        strict=True,
    ):
        same(one, other)


def test_candidates_leave_the_cache_as_it_is(denoisers, prompts) -> None:
    """With nothing accepted, and without the kept forward, the answer is that of no chain at all."""

    class Ignores:
        inner = samplers.build("imh", alpha=ALPHA, candidates=CANDIDATES)
        plain = samplers.build("imh", alpha=ALPHA, candidates=0)
        name, exact_likelihood, probe, memory, lookahead = "imh", False, None, (), "block"

        def step(self, state, evaluate):
            commit = self.plain.step(state, evaluate)
            self.inner.step(state, evaluate)
            return commit

    for family, cache in (("llada", "dual"), ("llada", "prefix"), ("sdar", "block")):
        expected = run(denoisers[family], prompts, cache=cache, sampler=Ignores.plain)[1]
        for one, other in zip(
            expected, run(denoisers[family], prompts, cache=cache, sampler=Ignores())[1], strict=True
        ):
            same(one, other)


def test_look_ahead_over_the_response_sums_over_later_blocks_where_they_are_visible(denoisers, prompts) -> None:
    def looks(family: str, cache: str, lookahead: str) -> np.ndarray:
        sampler = samplers.build("imh", alpha=ALPHA, candidates=CANDIDATES, lookahead=lookahead, skip_ends=False)
        (answer, *_) = run(denoisers[family], prompts[:1], cache=cache, sampler=sampler, max_new_tokens=12)[1]
        return answer.notes["lookahead"][0]

    for family, cache in (("llada", "none"), ("llada", "prefix"), ("dream", "none")):
        block, response = looks(family, cache, "block"), looks(family, cache, "response")
        assert not np.isnan(block).any()
        assert (response < block - 1).all()  # eight more slots, each below 0
    for family, cache in (("llada", "dual"), ("sdar", "block"), ("sdar", "none")):
        np.testing.assert_array_equal(looks(family, cache, "block"), looks(family, cache, "response"))


def test_full_diffusion_looks_at_the_whole_response_either_way(denoisers, prompts) -> None:
    for block_length in (None, 10):
        found = [
            run(denoisers["llada"], prompts, block_length=block_length,
                sampler=samplers.build("imh", lookahead=reach, eos_guard=True))[1]
            for reach in ("block", "response")
        ]  # fmt: skip
        for one, other in zip(*found, strict=True):
            same(one, other)


def test_a_step_budget_changes_nothing(denoisers) -> None:
    engine = rollout.Engine(denoisers["llada"], samplers.build("imh"), block_length=4)
    options = {"max_new_tokens": 8, "temperature": 1.0, "num_samples": 3}
    for one, other in zip(
        engine.generate([[1, 2]], **options), engine.generate([[1, 2]], steps=2, **options), strict=True
    ):
        same(one, other)


def test_other_samplers_take_no_notes(denoisers) -> None:
    (answer,) = rollout.Engine(denoisers["llada"], samplers.build("ar")).generate([[1]], max_new_tokens=2)
    assert answer.notes == {}


def test_candidates_of_a_shifted_family_see_the_position_before_their_block(denoisers) -> None:
    """At the first step a dual cache holds what a forward of the whole canvas has just computed; the candidates' block
    is computed again, so their laws are those of whole canvases up to the stale keys outside."""

    class Looks:
        name, exact_likelihood, probe, memory = "looks", False, None, ()

        def __init__(self) -> None:
            self.inner, self.seen = samplers.build("ar"), []

        def step(self, state, evaluate):
            row = torch.tensor([0, 0])
            ahead = evaluate.with_tokens(row, torch.tensor([3, 2]), torch.tensor([5, 6]))
            self.seen.append(ahead.logits(ahead.hidden(torch.tensor([0, 1]), torch.tensor([0, 0]))))
            return self.inner.step(state, evaluate)

    denoiser, found = denoisers["dream"], {}
    for cache in ("none", "dual", "prefix"):
        sampler = Looks()
        rollout.Engine(denoiser, sampler, block_length=4, cache=cache).generate([[1, 2, 3, 4]], max_new_tokens=4)
        found[cache] = sampler.seen[0][:, :39]
    assert float((found["dual"] - found["none"]).abs().max()) < 1.0
    torch.testing.assert_close(found["dual"], found["prefix"])


@pytest.mark.parametrize(("family", "cache"), [("llada", "none"), ("dream", "prefix"), ("sdar", "block")])
@pytest.mark.parametrize("lookahead", ["block", "response"])
def test_last_layer_over_whole_blocks_gives_the_same_chains(
    denoisers, prompts, family, cache, lookahead, monkeypatch
) -> None:
    """What a GPU does."""
    from rollout import evaluation

    sampler = samplers.build("imh", alpha=ALPHA, candidates=CANDIDATES, lookahead=lookahead)
    expected = run(denoisers[family], prompts, cache=cache, sampler=sampler)[1]
    made = evaluation.Evaluation.__init__
    monkeypatch.setattr(
        evaluation.Evaluation, "__init__", lambda self, *a, **k: made(self, *a, **(k | {"whole_block": True}))
    )
    for one, other in zip(expected, run(denoisers[family], prompts, cache=cache, sampler=sampler)[1], strict=True):
        same(one, other)
