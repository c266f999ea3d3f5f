"""What a caller may rely on: order, seeds, batch independence, ends, refusals, and bounded batches."""

import numpy as np
import pytest
import torch

import rollout
import samplers


def engine_of(denoiser, name="confidence", **options) -> rollout.Engine:
    keep = {key: options.pop(key) for key in ("block_length", "max_batch_tokens") if key in options}
    return rollout.Engine(denoiser, samplers.build(name, **options), **keep)


def same(a: rollout.Trajectory, b: rollout.Trajectory) -> None:
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.step_map.tolist() == b.step_map.tolist()
    assert a.seed == b.seed
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)


def test_answers_come_in_prompt_order_with_the_samples_of_a_prompt_together(denoisers, prompts) -> None:
    answers = engine_of(denoisers["llada"]).generate(prompts, num_samples=3, max_new_tokens=6, temperature=1.0)
    assert [answer.prompt_tokens.tolist() for answer in answers] == [tokens for tokens in prompts for _ in range(3)]
    assert [answer.sample_index for answer in answers] == [0, 1, 2] * len(prompts)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("name", ["random", "confidence", "lcr"])
def test_an_answer_does_not_depend_on_the_batch(denoisers, prompts, family, name) -> None:
    denoiser = denoisers[family]
    options = {"max_new_tokens": 9, "temperature": 1.0, "seed": 5}
    together = engine_of(denoiser, name, block_length=4).generate(prompts, num_samples=4, **options)
    narrow = engine_of(denoiser, name, block_length=4, max_batch_tokens=40)
    for index, tokens in enumerate(prompts):
        for alone, batched in zip(
            narrow.generate([tokens], num_samples=4, **options), together[4 * index :], strict=False
        ):
            same(alone, batched)


def test_rows_of_one_batch_keep_their_own_settings(denoisers) -> None:
    engine = engine_of(denoisers["llada"], "random")
    requests = [
        rollout.Request([1, 2, 3], 8, seed=1, temperature=0.0),
        rollout.Request([1, 2, 3], 8, seed=1, temperature=1.5),
        rollout.Request([1, 2, 3, 4, 5], 5, seed=2, temperature=1.0, top_p=0.5, steps=2),
        rollout.Request([9], 11, seed=3, temperature=0.7, steps=4),
    ]
    for request, answer in zip(requests, engine.run(requests), strict=True):
        same(engine.run([request])[0], answer)
    assert engine.run(requests)[2].num_steps <= 2


def test_samples_of_a_prompt_differ_and_repeated_prompts_do_not_repeat_answers(denoisers) -> None:
    answers = engine_of(denoisers["llada"]).generate(
        [[1, 2], [1, 2]], num_samples=4, max_new_tokens=12, temperature=1.0
    )
    assert len({tuple(answer.tokens.tolist()) for answer in answers}) == 8
    assert len({answer.seed for answer in answers}) == 8


def test_the_recorded_seed_gives_the_answer_again(denoisers) -> None:
    engine = engine_of(denoisers["dream"], "random")
    answer = engine.generate([[5, 6, 7]], num_samples=2, max_new_tokens=8, temperature=1.0, seed=9)[1]
    same(engine.run([rollout.Request([5, 6, 7], 8, seed=answer.seed, temperature=1.0)])[0], answer)


def test_the_global_generator_is_left_alone(denoisers) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    engine_of(denoisers["llada"], "random").generate([[1]], max_new_tokens=4, temperature=1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_is_computed_after_the_end(denoisers) -> None:
    answers = engine_of(denoisers["llada"], "ar").generate(
        [[row] for row in range(30)], max_new_tokens=40, temperature=2.0
    )
    ended = [answer for answer in answers if answer.finish_reason == "eos"]
    assert ended
    for answer in ended:
        end = answer.answer_length
        assert answer.num_forwards == end + 1
        assert answer.tokens[end] == 38
        assert set(answer.tokens[end:].tolist()) == {38}
        assert (answer.step_map[end + 1 :] == answer.num_steps).all()
        assert (answer.logprobs[end + 1 :] == 0).all()
        assert answer.scored.tolist() == [slot <= end for slot in range(40)]


def test_capped_answer_has_every_slot_committed(denoisers) -> None:
    answer = engine_of(denoisers["llada"], "confidence", block_length=4).generate([[1, 2, 3]], max_new_tokens=3)[0]
    assert answer.finish_reason == "length" or answer.answer_length < 3
    assert answer.committed.sum() == answer.num_steps


def test_forwards_stay_inside_the_token_budget_and_have_no_padding(denoisers) -> None:
    denoiser = denoisers["llada"]
    sizes, real = [], []
    original = denoiser.start

    def spy(token_M, packing, **options):
        sizes.append(len(token_M))
        real.append(sum(len(span) for span in packing.spans))
        return original(token_M, packing, **options)

    denoiser.start = spy
    try:
        prompts = [[1 + n % 30] * (1 + n % 40) for n in range(60)]
        engine_of(denoiser, "ar", tokens_per_step=4, max_batch_tokens=300).generate(prompts, max_new_tokens=20)
    finally:
        del denoiser.start
    assert max(sizes) <= 300
    assert sizes == real
    assert sum(sizes) / len(sizes) > 150


def test_a_canvas_longer_than_the_budget_runs_alone(denoisers) -> None:
    answers = engine_of(denoisers["llada"], max_batch_tokens=10).generate([[1] * 12, [2], [3]], max_new_tokens=4)
    assert [len(answer.tokens) for answer in answers] == [4, 4, 4]


def test_weights_version_is_recorded(denoisers) -> None:
    engine = engine_of(denoisers["llada"])
    engine.weights_version = 7
    assert engine.generate([[1]], max_new_tokens=2)[0].weights_version == (7, 7)


def test_draw_first_declares_that_it_has_no_likelihood(denoisers) -> None:
    engine = engine_of(denoisers["llada"], "lcr")
    assert not engine.generate([[1]], max_new_tokens=2, temperature=1.0)[0].exact_likelihood
    assert engine.generate([[1]], max_new_tokens=2, temperature=0.0)[0].exact_likelihood


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[]]}, "is empty"),
        ({"prompts": [[1, 40]]}, "outside 0..39"),
        ({"prompts": [[1] * 120]}, "together 130, but the model's window is 128"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_bad_requests_say_what_is_wrong_before_any_forward(denoisers, change, message) -> None:
    options = {"prompts": [[1]], "max_new_tokens": 10} | change
    with pytest.raises(ValueError, match=message):
        engine_of(denoisers["llada"]).generate(options.pop("prompts"), **options)


def test_bad_engine_settings_are_refused(denoisers) -> None:
    sampler = samplers.build("ar")
    for options, message in [
        ({"cache": "duel"}, "cache is 'duel'"),
        ({"max_batch_rows": 0}, "max_batch_rows is 0"),
        ({"block_length": 0}, "block_length is 0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0"),
        ({"block_length": 6, "sub_block_length": 4}, "must divide"),
    ]:
        with pytest.raises(ValueError, match=message):
            rollout.Engine(denoisers["llada"], sampler, **options)
