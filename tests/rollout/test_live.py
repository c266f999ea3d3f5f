"""Requests that come and go: each gets the answer it would get alone, hears of its commits, and leaves when told."""

import pickle
import random

import numpy as np
import pytest

import rollout
import samplers
from rollout import forwards
from rollout.cache_policy import CachePolicy
from rollout.lane import Committed
from rollout.live import Decoding, Finished, LiveEngine
from rollout.request import FieldError

CACHES = {"llada": ["none", "none", "dual", "prefix"], "dream": ["none", "dual"], "sdar": ["none", "block"]}
NAMES = [name for name in samplers.names() if name != "policy"]


def mixed_cases(family: str, number: int) -> list[tuple[rollout.Request, Decoding]]:
    """Requests of every sampler, with other laws, lengths, blocks and caches; some prompts come several times."""
    draw = random.Random(7)
    cases = []
    for index in range(number):
        prompt = [draw.randrange(38) for _ in range(draw.choice([1, 3, 3, 9]))] if index % 4 else [5, 6, 7]
        request = rollout.Request(
            prompt,
            draw.randint(2, 14),
            seed=rollout.sequence_seed(3, index),
            temperature=draw.choice([0.0, 0.7, 1.3]),
            top_p=draw.choice([1.0, 0.9]),
            top_k=draw.choice([0, 0, 5]),
            steps=draw.choice([None, None, 3]),
        )
        cache = CachePolicy(draw.choice(CACHES[family]))
        cases.append((request, Decoding(NAMES[index % len(NAMES)], {}, draw.choice([None, 4, 8]), cache)))
    return cases


def alone(denoiser, request: rollout.Request, decoding: Decoding) -> rollout.Trajectory:
    sampler = samplers.build(decoding.sampler, **decoding.options)
    engine = rollout.Engine(denoiser, sampler, block_length=decoding.block_length, cache=decoding.cache)
    return engine.run([request])[0]


def drain(engine: LiveEngine) -> list:
    events = []
    while engine.is_busy:
        events += engine.step()
    return events


def same(a: rollout.Trajectory, b: rollout.Trajectory) -> None:
    for name in ("tokens", "step_map"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
    for name in ("num_forwards", "num_steps", "finish_reason", "answer_length", "seed", "sampler", "cache"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-4)
    np.testing.assert_allclose(a.entropies, b.entropies, atol=2e-4)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_an_answer_is_the_same_alone_and_among_others_that_come_at_any_step(denoisers, family) -> None:
    cases = mixed_cases(family, 65)
    engine = LiveEngine(denoisers[family], max_batch_rows=64, max_batch_tokens=1200, max_length=32)
    draw, waiting, number_of, found, told = random.Random(1), list(enumerate(cases)), {}, {}, {}
    most = 0
    while waiting or engine.is_busy:
        for _ in range(draw.randint(0, 16)):
            if waiting:
                index, (request, decoding) = waiting.pop()
                number_of[engine.submit(request, decoding, listens=True)] = index
        for event in engine.step():
            if isinstance(event, Finished):
                found[number_of[event.index]] = event.trajectory
            else:
                told.setdefault(number_of[event.index], []).append(event)
        most = max(most, engine.num_active)
    assert most > 30
    assert len(found) == 65
    for index, (request, decoding) in enumerate(cases):
        same(alone(denoisers[family], request, decoding), found[index])
        check_told(told[index], found[index])


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_forward_cut_up_for_a_processors_cache_changes_no_answer(denoisers, family, monkeypatch) -> None:
    cases = [(request, decoding) for request, decoding in mixed_cases(family, 64) if decoding.cache.kind == "none"]
    expected = [alone(denoisers[family], request, decoding) for request, decoding in cases]
    monkeypatch.setattr(forwards, "tokens_at_once", lambda *_: 40)
    engine = LiveEngine(denoisers[family], max_length=32)
    number_of = {engine.submit(*case): index for index, case in enumerate(cases)}
    lengths = []
    original = engine.denoiser.start
    engine.denoiser.start = lambda tokens, *a, **k: lengths.append(len(tokens)) or original(tokens, *a, **k)
    try:
        events = engine.step()
    finally:
        del engine.denoiser.start
    assert lengths[0] <= 40
    assert len(lengths) > 4
    finished = [event for event in events + drain(engine) if isinstance(event, Finished)]
    assert len(finished) == len(cases)
    for event in finished:
        same(expected[number_of[event.index]], event.trajectory)


def test_forwards_are_cut_for_models_of_which_many_tokens_fit_into_a_cache(denoisers, monkeypatch) -> None:
    small, config = denoisers["llada"], denoisers["llada"].backbone.config
    # 360 * 1024 elements: 11520 tokens of width 32, 480 of width 768, which are too few to be worth a cut.
    for width, expected in ((32, 11520), (768, None)):
        monkeypatch.setattr(config, "intermediate_size", width)
        assert forwards.tokens_at_once(small, CachePolicy()) == expected
        assert forwards.tokens_at_once(small, CachePolicy("dual")) is None


def check_told(told: list[Committed], answer: rollout.Trajectory) -> None:
    """The commits of the steps are exactly those of the trajectory, each at its step."""
    seen = {}
    for event in told:
        for slot, token, logprob in zip(event.slots, event.tokens, event.logprobs, strict=True):
            assert slot not in seen
            seen[slot] = (event.step, token, logprob)
    assert sorted(seen) == answer.committed.nonzero()[0].tolist()
    for slot, (step, token, logprob) in seen.items():
        assert (step, token) == (answer.step_map[slot], answer.tokens[slot])
        assert logprob == pytest.approx(answer.logprobs[slot], abs=1e-6)


def test_requests_of_several_samplers_share_one_forward(denoisers) -> None:
    engine = LiveEngine(denoisers["llada"])
    calls = []
    original = engine.denoiser.start
    engine.denoiser.start = lambda *a, **k: calls.append(1) or original(*a, **k)
    try:
        for name, length in (("confidence", None), ("random", 4), ("margin", 8), ("ar", 2)):
            engine.submit(rollout.Request([1, 2, 3], 8, seed=1), Decoding(name, {}, length))
        engine.step()
    finally:
        del engine.denoiser.start
    assert len(calls) == 1


def test_a_request_called_off_frees_its_place_for_the_next_step(denoisers) -> None:
    engine = LiveEngine(denoisers["llada"], max_batch_rows=1)
    first = engine.submit(rollout.Request([1, 2], 8, seed=1), Decoding("ar"))
    second = engine.submit(rollout.Request([3], 4, seed=2), Decoding("random"))
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (1, 1)
    assert engine.cancel(first)
    events = engine.step()
    assert (engine.num_active, engine.num_waiting) == (1, 0)
    events += drain(engine)
    assert [event.index for event in events if isinstance(event, Finished)] == [second]
    assert not engine.cancel(first)
    third = engine.submit(rollout.Request([3], 4, seed=2), Decoding("random"))
    assert engine.cancel(third)
    assert not engine.is_busy


def test_calling_off_a_chain_calls_off_its_runs(denoisers) -> None:
    engine = LiveEngine(denoisers["llada"])
    request = rollout.Request([1, 2], 8, seed=1, temperature=1.0)
    number = engine.submit(request, Decoding("imh_sequence", {"candidates": 3}))
    engine.step()
    assert engine.num_active == 4
    assert engine.cancel(number)
    assert not engine.is_busy


def test_long_request_at_the_head_of_the_queue_is_not_passed_by(denoisers) -> None:
    engine = LiveEngine(denoisers["llada"], max_batch_tokens=40)
    engine.submit(rollout.Request([1] * 4, 16, seed=1), Decoding("ar"))
    long = engine.submit(rollout.Request([1] * 10, 20, seed=2), Decoding("ar"))
    short = engine.submit(rollout.Request([1], 2, seed=3), Decoding("ar"))
    order = [event.index for event in drain(engine) if isinstance(event, Finished)]
    assert set(order) >= {long, short}
    engine = LiveEngine(denoisers["llada"], max_batch_tokens=40)
    engine.submit(rollout.Request([1] * 4, 16, seed=1), Decoding("ar"))
    engine.submit(rollout.Request([1] * 10, 20, seed=2), Decoding("ar"))
    engine.submit(rollout.Request([1], 2, seed=3), Decoding("ar"))
    engine.step()
    # 20 of 40 positions are taken: the long one (30) waits, and the short one (3) behind it too.
    assert (engine.num_active, engine.num_waiting) == (1, 2)


@pytest.mark.parametrize("name", ["confidence", "random", "imh", "eb"])
@pytest.mark.parametrize("block_length", [None, 3])
def test_holes_are_filled_around_text_that_stands(denoisers, name, block_length) -> None:
    # a b [3 holes] c d [2 holes] e: response slots 3, 4 and 7 are given.
    fixed = {3: 21, 4: 22, 7: 23}
    request = rollout.Request([1, 2], 8, seed=4, temperature=1.0, fixed=fixed, bars_end=True)
    engine = LiveEngine(denoisers["llada"])
    engine.submit(request, Decoding(name, {}, block_length), listens=True)
    events = drain(engine)
    (answer,) = [event.trajectory for event in events if isinstance(event, Finished)]
    assert len(answer.tokens) == 5 == answer.committed.sum()
    assert not set(answer.tokens.tolist()) & {38, 39}
    check_told([event for event in events if isinstance(event, Committed)], answer)


def test_text_after_a_hole_changes_what_is_put_into_it(denoisers) -> None:
    answers = set()
    for token in range(8):
        engine = LiveEngine(denoisers["llada"])
        engine.submit(rollout.Request([1, 2], 5, seed=4, fixed={4: token}, bars_end=True), Decoding("ar"))
        answers |= {tuple(event.trajectory.tokens.tolist()) for event in drain(engine)}
    assert len(answers) > 1


def test_one_hole_at_the_end_is_a_plain_answer(denoisers) -> None:
    # The second text is part of the prompt: the same canvas, so the same answer under the same seed.
    engine = LiveEngine(denoisers["llada"])
    whole = rollout.Request([1, 2, 3], 6, seed=4, temperature=1.0, bars_end=True)
    engine.submit(whole, Decoding("confidence"))
    (plain,) = drain(engine)
    assert not set(plain.trajectory.tokens.tolist()) & {38}
    engine.submit(rollout.Request([1, 2, 3], 7, seed=4, temperature=1.0, fixed={6: 9}, bars_end=True), Decoding("ar"))
    (filled,) = drain(engine)
    assert len(filled.trajectory.tokens) == 6


def test_requests_that_cannot_be_answered_are_refused_before_they_wait(denoisers) -> None:
    engine = LiveEngine(denoisers["sdar"])
    with pytest.raises(ValueError, match="needs a bidirectional family"):
        engine.submit(rollout.Request([1], 4, seed=1, fixed={3: 1}), Decoding())
    with pytest.raises(ValueError, match="did you mean 'confidence'"):
        engine.submit(rollout.Request([1], 4, seed=1), Decoding("confidense"))
    with pytest.raises(ValueError, match="cache 'dual' is for bidirectional"):
        engine.submit(rollout.Request([1], 4, seed=1), Decoding(cache=CachePolicy("dual")))
    with pytest.raises(ValueError, match="not all layers of this model"):
        engine.submit(rollout.Request([1], 4, seed=1), Decoding("attn", {"layers": [7]}))
    with pytest.raises(ValueError, match="leave at least one slot"):
        LiveEngine(denoisers["llada"]).submit(rollout.Request([1], 1, seed=1, fixed={0: 1}), Decoding())
    assert not engine.is_busy


@pytest.mark.parametrize(("family", "cache"), [("llada", "none"), ("llada", "dual"), ("sdar", "block")])
def test_new_weights_land_between_two_steps(family, cache) -> None:
    # From there on every forward is one of the new weights: nothing kept from the old ones is used.
    import torch

    from tests.rollout.conftest import sharpened

    denoiser = sharpened(family)
    engine = LiveEngine(denoiser)
    decoding = Decoding("ar", {}, 4, CachePolicy(cache))
    engine.submit(rollout.Request([1, 2, 3, 4, 5], 12, seed=1), decoding)
    engine.step()
    engine.step()

    def double(model) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)

    engine.update_weights(double, 3)
    first = []
    original = denoiser.start
    denoiser.start = lambda token_M, packing, **k: first.append(packing.spans) or original(token_M, packing, **k)
    events = drain(engine)
    (answer,) = [event.trajectory for event in events if isinstance(event, Finished)]
    assert answer.weights_version == (0, 3)
    assert first[0][0].start == 0


def test_an_error_about_a_field_survives_the_way_between_processes(denoisers) -> None:
    with pytest.raises(FieldError) as caught:
        LiveEngine(denoisers["llada"]).submit(rollout.Request([1], 4, seed=1), Decoding(block_length=0))
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (sent.field, str(sent)) == ("block_length", "block_length is 0; it must be at least 1, or None")
