import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import learner
import rollout
import samplers
from learner.likelihood import score
from learner.plan import micro_batches, plan_canvases
from learner.replay import ar_exact, trace_exact
from tests.learner.small_models import EOS, VOCAB, Toy, obvious_logprob, small_denoiser, trajectory

FAMILIES = ["llada", "dream", "sdar", "fast_dllm_v2"]
DENOISERS = {family: small_denoiser(family, seed) for seed, family in enumerate(FAMILIES)}
# In float32 these weights make up to 1e-5 of the rounding of another batch; here only a wrong canvas can differ.
PRECISE = {family: small_denoiser(family, seed).double() for seed, family in enumerate(FAMILIES)}


# ---- the toy joint: log P(ab) = ln .06 = -2.8134


@pytest.mark.parametrize(("step_map", "expected"), [
    ([0, 1], [math.log(0.6), math.log(0.1)]),  # a, then b given a: .06 / .60
    ([1, 0], [math.log(0.06 / 0.38), math.log(0.38)]),  # b, then a given b
    ([0, 0], [math.log(0.6), math.log(0.38)]),  # both at once: -1.4784, the marginals
])  # fmt: skip
def test_replay_gives_the_law_of_each_order_on_the_toy_joint(step_map, expected):
    answer = trajectory([Toy.A, Toy.B], step_map, prompt=(2,))
    (logprob_T,) = learner.sequence_logprobs(Toy(), [[2]], [answer], temperature=1.0)
    assert logprob_T.tolist() == pytest.approx(expected, abs=1e-6)


def test_both_orders_have_the_joint_log_probability():
    answers = [trajectory([Toy.A, Toy.B], order, prompt=(2,)) for order in ([0, 1], [1, 0])]
    for logprob_T in learner.sequence_logprobs(Toy(), [[2], [2]], answers, temperature=1.0):
        assert float(logprob_T.detach().sum()) == pytest.approx(-2.8134, abs=1e-4)


def test_temperature_sharpens_the_law_and_zero_means_one():
    answer = trajectory([Toy.A, Toy.B], [0, 1], prompt=(2,))
    at = {t: learner.sequence_logprobs(Toy(), [[2]], [answer], temperature=t)[0].tolist() for t in (0.0, 0.5, 1.0)}
    assert at[0.0] == at[1.0]
    # Temperature 1/2 squares the odds: .6^2 / (.6^2 + .4^2) = .36 / .52
    assert at[0.5][0] == pytest.approx(math.log(0.36 / 0.52), abs=1e-6)


# ---- canvases


def test_trace_masks_what_its_step_had_not_committed_and_scores_what_the_step_committed():
    # Slot 3 was never committed (step 3 = S): masked everywhere, scored nowhere.
    answer = trajectory([7, 5, EOS, EOS], [1, 0, 1, 2], num_steps=2)
    first, second = trace_exact(answer, answer.committed)
    assert first.masked_T.tolist() == [True, True, True, True]
    assert first.slot_K.tolist() == [1]
    assert second.masked_T.tolist() == [True, False, True, True]
    assert second.slot_K.tolist() == [0, 2]


def test_slots_that_are_not_wanted_are_masked_at_their_step_but_not_scored():
    # End token at slot 1; slot 2 was committed after it: its step has no canvas, and it stays visible as it was.
    answer = trajectory([7, EOS, 8], [2, 1, 0])
    canvases = trace_exact(answer, answer.scored)
    assert [canvas.masked_T.tolist() for canvas in canvases] == [[True, True, False], [True, False, False]]
    assert [canvas.slot_K.tolist() for canvas in canvases] == [[1], [0]]


def test_left_to_right_canvases_show_the_clean_prefix_and_mask_the_rest():
    answer = trajectory([7, 8, EOS, EOS], [0, 1, 2, 3], num_steps=3)
    canvases = ar_exact(answer, answer.scored)
    assert [canvas.slot_K.tolist() for canvas in canvases] == [[0], [1], [2]]
    assert [canvas.masked_T.tolist() for canvas in canvases] == [
        [True] * 4,
        [False] + [True] * 3,
        [False] * 2 + [True] * 2,
    ]


def test_left_to_right_likelihood_refuses_answers_in_another_order():
    answer = trajectory([7, 8, 9], [1, 0, 2])
    with pytest.raises(
        ValueError, match=r"sampler 'random' committed its first slots at steps \[1, 0, 2\].*trace_exact"
    ):
        ar_exact(answer, answer.scored)


def plan_of(answers, *, family="llada"):
    family = DENOISERS[family].family
    return plan_canvases(answers, [a.committed for a in answers], estimator=trace_exact, family=family)


def test_block_causal_canvas_ends_with_the_block_of_its_scored_slots():
    # Prompt 2, blocks of 4 from position 0: slots 0..1 lie in block 0 (4 tokens), slots 2..4 in block 1 (cut at 2 + 5).
    answer = trajectory([7, 8, 9, 7, 8], [0, 1, 2, 3, 4], block_length=4)
    assert plan_of([answer], family="sdar").num_tokens_C.tolist() == [4, 4, 7, 7, 7]
    assert plan_of([answer]).num_tokens_C.tolist() == [7] * 5


def test_micro_batches_stay_within_the_token_budget_and_hold_each_canvas_once():
    answers = [trajectory([7] * t, list(range(t)), prompt=[5] * p) for p, t in ((1, 3), (4, 2), (9, 3))]
    plan = plan_of(answers)  # 3 canvases of 4 tokens, 2 of 6, 3 of 12
    groups = micro_batches(plan, 24)
    assert sorted(index for group in groups for index in group) == list(range(8))
    assert [[int(plan.num_tokens_C[i]) for i in group] for group in groups] == [[12, 12], [12, 6, 6], [4, 4, 4]]


def test_canvas_longer_than_the_budget_goes_alone():
    plan = plan_of([trajectory([7, 8], [0, 1], prompt=[5] * 10)])
    assert micro_batches(plan, 5) == [[0], [1]]
    with pytest.raises(ValueError, match="micro_batch_tokens must be at least 1, got 0"):
        micro_batches(plan, 0)


# ---- replay equals the rollout

PROMPTS = st.lists(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4)


def rollouts(denoiser, prompts, *, name="random", options=None, block_length=None, **decoding):
    engine = rollout.Engine(denoiser, samplers.build(name, **options or {}), block_length=block_length)
    return engine.generate(prompts, **decoding)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompts=PROMPTS,
    name=st.sampled_from(["random", "ar", "confidence", "margin", "entropy", "threshold"]),
    tokens_per_step=st.integers(1, 3),
    num_samples=st.integers(1, 2),
    max_new_tokens=st.integers(1, 10),
    block_length=st.one_of(st.none(), st.integers(1, 6)),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    micro_batch_tokens=st.sampled_from([1, 40, 16384]),
    seed=st.integers(0, 1000),
)
def test_replay_equals_the_log_probabilities_recorded_at_rollout(
    family,
    prompts,
    name,
    tokens_per_step,
    num_samples,
    max_new_tokens,
    block_length,
    temperature,
    micro_batch_tokens,
    seed,
):
    denoiser = PRECISE[family]
    options = {"tau": 0.4} if name == "threshold" else {"tokens_per_step": tokens_per_step}
    answers = rollouts(
        denoiser,
        prompts,
        name=name,
        options=options,
        block_length=block_length,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    with torch.no_grad():
        replayed = learner.sequence_logprobs(
            denoiser, prompts, answers, temperature=temperature, micro_batch_tokens=micro_batch_tokens
        )
    for answer, logprob_T in zip(answers, replayed, strict=True):
        np.testing.assert_allclose(logprob_T.numpy(), answer.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_equals_one_canvas_at_a_time(family):
    denoiser = DENOISERS[family]
    prompts = [[5], [6, 7, 8, 9, 10], [11, 4]]
    answers = rollouts(denoiser, prompts, options={"tokens_per_step": 2}, max_new_tokens=7, temperature=1.0, seed=3)
    with torch.no_grad():
        replayed = learner.sequence_logprobs(denoiser, prompts, answers, temperature=1.0)
        for answer, logprob_T in zip(answers, replayed, strict=True):
            for slot in range(7):
                expected = float(obvious_logprob(denoiser, answer, slot)) if answer.committed[slot] else 0.0
                assert float(logprob_T[slot]) == pytest.approx(expected, abs=1e-5)


def test_slots_committed_after_the_end_token_are_replayed_and_slots_never_committed_are_zero():
    denoiser = DENOISERS["llada"]
    seen_after_end = seen_never = 0
    prompts = [[5, 6]] * 40
    answers = rollouts(denoiser, prompts, options={"eos_guard": False}, max_new_tokens=6, temperature=1.5, seed=1)
    with torch.no_grad():
        replayed = learner.sequence_logprobs(denoiser, prompts, answers, temperature=1.5)
    for answer, logprob_T in zip(answers, replayed, strict=True):
        after_end = answer.committed & ~answer.scored
        seen_after_end += int(after_end.sum())
        seen_never += int((~answer.committed).sum())
        assert (logprob_T.numpy()[~answer.committed] == 0).all()
        assert (logprob_T.numpy()[after_end] < 0).all()
        np.testing.assert_allclose(logprob_T.numpy(), answer.logprobs, atol=1e-5, rtol=0)
    assert seen_after_end > 5
    assert seen_never > 5


def test_left_to_right_estimator_equals_the_replay_on_left_to_right_answers():
    denoiser = DENOISERS["dream"]
    answers = rollouts(denoiser, [[5, 6], [7, 8, 9]], name="ar", max_new_tokens=8, temperature=1.0)
    plan = plan_canvases(answers, [a.scored for a in answers], estimator=ar_exact, family=denoiser.family)
    with torch.no_grad():
        found = [score(denoiser, plan, group, temperature=1.0) for group in micro_batches(plan, 64)]
    for part in found:
        for index, logprob in zip(part.index_M.tolist(), part.logprob_M.tolist(), strict=True):
            answer = answers[plan.sample_M[index]]
            assert logprob == pytest.approx(float(answer.logprobs[plan.slot_M[index]]), abs=1e-5)


def test_entropies_equal_those_recorded_at_rollout():
    denoiser = DENOISERS["sdar"]
    answers = rollouts(denoiser, [[5, 6], [7, 8, 9]], max_new_tokens=8, temperature=0.7)
    plan = plan_of(answers, family="sdar")
    with torch.no_grad():
        (part,) = [score(denoiser, plan, group, temperature=0.7) for group in micro_batches(plan, 16384)]
    recorded = [answers[plan.sample_M[i]].entropies[plan.slot_M[i]] for i in part.index_M.tolist()]
    np.testing.assert_allclose(part.entropy_M.numpy(), np.array(recorded), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_the_replay_equals_that_of_one_canvas_at_a_time(family):
    denoiser = DENOISERS[family]
    prompts = [[5], [6, 7, 8]]
    answers = rollouts(denoiser, prompts, options={"tokens_per_step": 2}, max_new_tokens=5, temperature=1.0, seed=5)
    replayed = learner.sequence_logprobs(denoiser, prompts, answers, temperature=1.0, micro_batch_tokens=20)
    slow = [obvious_logprob(denoiser, a, k) for a in answers for k in np.flatnonzero(a.committed)]
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    fast_grads = torch.autograd.grad(sum(logprob_T.sum() for logprob_T in replayed), parameters)
    slow_grads = torch.autograd.grad(sum(slow), parameters)
    for fast_grad, slow_grad in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(fast_grad, slow_grad, atol=1e-5, rtol=1e-4)


# ---- what is refused


def test_draw_first_answers_are_refused_with_the_alternatives():
    answers = rollouts(DENOISERS["llada"], [[5, 6]], name="lcr", max_new_tokens=4, temperature=1.0)
    with pytest.raises(ValueError, match=r"'lcr' does not draw its tokens.*confidence, margin, entropy"):
        learner.sequence_logprobs(DENOISERS["llada"], [[5, 6]], answers, temperature=1.0)


def test_greedy_draw_first_answers_are_scored():
    answers = rollouts(DENOISERS["llada"], [[5, 6]], name="lcr", max_new_tokens=4, temperature=0.0)
    (logprob_T,) = learner.sequence_logprobs(DENOISERS["llada"], [[5, 6]], answers, temperature=0.0)
    np.testing.assert_allclose(logprob_T.detach().numpy(), answers[0].logprobs, atol=1e-5, rtol=0)


def test_draws_of_the_most_likely_tokens_only_are_refused():
    answer = trajectory([7, 8], [0, 1], top_k=5)
    with pytest.raises(ValueError, match=r"top_k is 5.*temperature alone \(top_p: 1, top_k: 0\)"):
        learner.sequence_logprobs(DENOISERS["llada"], [[5, 6]], [answer], temperature=1.0)


def test_truncated_draws_are_refused():
    answer = trajectory([7, 8], [0, 1], top_p=0.9)
    with pytest.raises(ValueError, match=r"top_p is 0.9.*temperature alone \(top_p: 1"):
        learner.sequence_logprobs(DENOISERS["llada"], [[5, 6]], [answer], temperature=1.0)


def test_prompts_in_another_order_than_the_trajectories_are_refused():
    answers = [trajectory([7, 8], [0, 1], prompt=prompt) for prompt in ([5, 6], [9])]
    with pytest.raises(ValueError, match=r"of prompt \[5, 6\]\.\.\. was given with prompt \[9\].*same order"):
        learner.sequence_logprobs(DENOISERS["llada"], [[9], [5, 6]], answers, temperature=1.0)
    with pytest.raises(ValueError, match="3 prompts for 2 trajectories"):
        learner.sequence_logprobs(DENOISERS["llada"], [[9], [5], [6]], answers, temperature=1.0)


def test_no_trajectories_give_no_log_probabilities():
    assert learner.sequence_logprobs(DENOISERS["llada"], [], [], temperature=1.0) == []
