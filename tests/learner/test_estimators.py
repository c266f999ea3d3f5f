"""Which canvases each estimator makes, with what weights; and their values on a joint law that is known exactly."""

import itertools
import math

import numpy as np
import pytest
import torch

from learner.config import AgdoConfig, EstimatorConfig, ObjectiveConfig
from learner.estimators import canvases_of
from learner.likelihood import score
from learner.mask_estimators import by_block
from learner.objective import lower_bound, upper_bound
from learner.objective_config import LIKELIHOODS
from learner.plan import Canvas, micro_batches, plan_given
from learner.replay import ar_fast, trace_exact, trace_merged, trace_sampled
from tests.learner.small_models import EOS, Toy, small_denoiser, trajectory

FAMILY = small_denoiser("llada").family
BLOCK_FAMILY = small_denoiser("sdar").family


def canvases(answer, likelihood, *, draw=0, family=FAMILY, **estimator):
    objective = ObjectiveConfig(likelihood=likelihood, estimator=EstimatorConfig(**estimator))
    return canvases_of(answer, answer.scored, objective, family=family, draw=draw)


def shown(found):
    return [(c.masked_T.astype(int).tolist(), c.slot_K.tolist(), c.weight_K.tolist()) for c in found]


# ---- the toy joint, text (a, b): log P(ab) = ln .06 = -2.8134

ANSWER = trajectory([Toy.A, Toy.B], [0, 1], prompt=(2,))


def toy_values(found):
    """log p of each scored slot of each canvas."""
    plan = plan_given([ANSWER], [found], family=Toy().family)
    values = torch.zeros(plan.num_slots)
    for group in micro_batches(plan, 1000):
        scored = score(Toy(), plan, group, temperature=1.0)
        values[scored.index_M] = scored.logprob_M.detach()
    return plan, values


def toy_sum(found):
    """Weighted sum over slots: the estimate of the log-likelihood."""
    plan, values = toy_values(found)
    return float((torch.from_numpy(plan.weight_M) * values).sum())


def canvas(slots, weight=1.0):
    masked = np.isin([0, 1], slots)
    return Canvas(masked, np.array(slots), np.full(len(slots), weight, dtype=np.float32))


BOTH, FIRST, SECOND = [0, 1], [0], [1]


def test_exact_and_merged_values_on_the_toy_joint():
    assert toy_sum(canvases(ANSWER, "trace_exact")) == pytest.approx(math.log(0.06), abs=1e-5)
    assert toy_sum(canvases(ANSWER, "ar_exact")) == pytest.approx(math.log(0.06), abs=1e-5)
    # Both slots from the masked canvas: the marginals .6 and .38.
    for name, options in (("one_step", {"prompt_mask_rate": 0.0}), ("trace_merged", {"merged_steps": 2})):
        assert toy_sum(canvases(ANSWER, name, **options)) == pytest.approx(math.log(0.6 * 0.38), abs=1e-5)
    # Each slot given the other: P(a|b) = .06/.38, P(b|a) = .1.
    assert toy_sum([canvas(FIRST), canvas(SECOND)]) == pytest.approx(math.log(0.06 / 0.38) + math.log(0.1), abs=1e-5)


def test_coupled_value_on_the_toy_joint():
    # r = .5, M = {slot 0}: each slot is half of its marginal and, with weight .5 / .5, all of its conditional.
    plan, values = toy_values([canvas(BOTH, 0.5), canvas(FIRST, 1.0), canvas(SECOND, 1.0)])
    weighted = torch.from_numpy(plan.weight_M) * values
    of_slot = [float(weighted[torch.from_numpy(plan.slot_M == k)].sum()) for k in (0, 1)]
    assert of_slot == pytest.approx([-2.1012, -2.7864], abs=1e-4)
    assert sum(of_slot) == pytest.approx(-4.8876, abs=1e-4)


def test_enumerated_bounds_on_the_toy_joint():
    # elbo: size 1 (mask either slot, each with probability 1/4, weight 2), size 2 (probability 1/2, weight 1).
    single = [(canvas(FIRST, 2.0), 0.25), (canvas(SECOND, 2.0), 0.25)]
    assert sum(p * toy_sum([c]) for c, p in [*single, (canvas(BOTH, 1.0), 0.5)]) == pytest.approx(-2.8134, abs=1e-4)
    # elbo_pair: sizes 0, 1, 2 with 1/3 each; weight 3/2 / 1 on single slots, 3/2 / 2 where all are in one part.
    pairs = [([canvas(BOTH, 0.75)], 2 / 3), ([canvas(FIRST, 1.5), canvas(SECOND, 1.5)], 1 / 3)]
    assert sum(p * toy_sum(found) for found, p in pairs) == pytest.approx(-2.8134, abs=1e-4)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, -2.3975), (1.5, -2.2338), (2.0, -2.1046)])
def test_enumerated_upper_bound_on_the_toy_joint(beta, expected):
    # Weight times probability of each draw: 2 * 1/4 for one slot, 1 * 1/2 for both.
    plan, values = toy_values([canvas(FIRST, 0.5), canvas(SECOND, 0.5), canvas(BOTH, 0.5)])
    place_M, weight_M = torch.from_numpy(plan.slot_M), torch.from_numpy(plan.weight_M)
    sample_M = torch.zeros(plan.num_slots, dtype=torch.int64)
    upper = upper_bound(values, weight_M, place_M, torch.zeros(2, dtype=torch.int64), 1, beta=beta)
    assert float(upper) == pytest.approx(expected, abs=1e-4)
    assert float(lower_bound(values, weight_M, sample_M, 1)) <= math.log(0.06) + 1e-5 <= float(upper)


@pytest.mark.parametrize("name", ["elbo", "elbo_pair"])
def test_drawn_bounds_average_to_the_likelihood_of_a_consistent_law(name):
    estimates = [toy_sum(canvases(ANSWER, name, draw=draw, num_draws=2)) for draw in range(600)]
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(math.log(0.06), abs=max(5 * error, 1e-4))


# ---- canvases and weights

PLAIN = trajectory([7, 8, 9, 7, EOS, EOS], [2, 0, 1, 3, 4, 5], num_steps=5, prompt=(5, 6, 7), block_length=3)
"""Five scored slots; slot 5 was never committed."""


def test_merged_steps_share_the_canvas_of_the_first():
    found = canvases(PLAIN, "trace_merged", merged_steps=2)
    # Steps 0, 1 commit slots 1 and 2; steps 2, 3 slots 0 and 3; step 4 slot 4.
    assert shown(found) == [
        ([1, 1, 1, 1, 1, 1], [1, 2], [1.0, 1.0]),
        ([1, 0, 0, 1, 1, 1], [0, 3], [1.0, 1.0]),
        ([0, 0, 0, 0, 1, 1], [4], [1.0]),
    ]
    # Into two canvases, the first of one step more.
    assert [c.slot_K.tolist() for c in canvases(PLAIN, "trace_merged", num_canvases=2)] == [[0, 1, 2], [3, 4]]
    assert len(canvases(PLAIN, "trace_merged", num_canvases=9)) == 5


def test_one_merged_step_is_the_exact_trace_and_all_of_them_are_one_step():
    exact = shown(trace_exact(PLAIN, PLAIN.scored))
    assert shown(trace_merged(PLAIN, PLAIN.scored, EstimatorConfig(merged_steps=1))) == exact
    merged = shown(trace_merged(PLAIN, PLAIN.scored, EstimatorConfig(merged_steps=5)))
    assert merged == shown(canvases(PLAIN, "one_step", prompt_mask_rate=0.0))


def test_fast_keeps_the_slots_of_highest_entropy_and_rounds_up():
    entropies = np.array([0.1, 0.9, 0.5, 0.9, 0.2, 0.7], dtype=np.float32)
    answer = trajectory([7, 8, 9, 7, 8, EOS], range(6), entropies=entropies)
    # ceil(6 / 4) = 2: the two of .9; of equal ones the lower slot goes first.
    quarter = ar_fast(answer, answer.scored, EstimatorConfig())
    assert [c.slot_K.tolist() for c in quarter] == [[1], [3]]
    assert quarter[1].masked_T.tolist() == [False] * 3 + [True] * 3
    sixth = ar_fast(answer, answer.scored, EstimatorConfig(kept_share=0.1))
    assert [c.slot_K.tolist() for c in sixth] == [[1]]
    every = ar_fast(answer, answer.scored, EstimatorConfig(kept_share=1.0))
    assert [c.slot_K.tolist() for c in every] == [[k] for k in range(6)]


def test_sampled_steps_have_the_exact_trace_as_their_mean():
    entropies = np.array([1.0, 0.0, 3.0, 0.5, 0.5, 0.0], dtype=np.float32)
    answer = trajectory([7, 8, 9, 7, EOS, EOS], [2, 0, 1, 3, 4, 5], num_steps=5, entropies=entropies)
    for law in ("uniform", "entropy"):
        config, total = EstimatorConfig(num_draws=2, step_law=law), np.zeros(6)
        num_draws = 4000
        for draw in range(num_draws):
            for found in trace_sampled(answer, answer.scored, config, np.random.default_rng([draw])):
                total[found.slot_K] += found.weight_K
        # Weights up to 10: the standard error of a mean over 4000 is at most .1.
        assert total / num_draws == pytest.approx([1, 1, 1, 1, 1, 0], abs=0.35)


def test_as_many_even_draws_as_steps_are_the_exact_trace():
    found = trace_sampled(PLAIN, PLAIN.scored, EstimatorConfig(num_draws=5), np.random.default_rng(0))
    assert shown(found) == shown(trace_exact(PLAIN, PLAIN.scored))


def test_prompt_tokens_are_hidden_with_their_rate():
    hidden = [canvases(PLAIN, "one_step", draw=draw)[0].prompt_masked_P for draw in range(500)]
    share = np.mean([0.0 if mask is None else mask.mean() for mask in hidden])
    assert share == pytest.approx(0.15, abs=0.05)  # 1500 tokens: standard error .009
    assert all(c.prompt_masked_P is None for d in range(50) for c in canvases(PLAIN, "random_mask", draw=d))


@pytest.mark.parametrize("draw", range(20))
def test_pairs_score_every_slot_once_and_weigh_it_by_the_law_of_its_mask(draw):
    everything, *pair = canvases(PLAIN, "coupled", draw=draw)
    assert everything.slot_K.tolist() == [0, 1, 2, 3, 4]
    assert everything.weight_K.tolist() == [0.5] * 5
    assert sorted(np.concatenate([c.slot_K for c in pair]).tolist()) == [0, 1, 2, 3, 4]
    if len(pair) == 2:
        # .5 / r and .5 / (1 - r): their inverses add up to 2.
        assert 0.5 / pair[0].weight_K[0] + 0.5 / pair[1].weight_K[0] == pytest.approx(1.0)
        assert 0.2 <= 0.5 / pair[0].weight_K[0] <= 0.8
    parts = canvases(PLAIN, "elbo_pair", draw=draw, num_draws=3)
    assert sorted(np.concatenate([c.slot_K for c in parts]).tolist()) == sorted([0, 1, 2, 3, 4] * 3)
    for part in parts:
        assert part.weight_K.tolist() == pytest.approx([6 / (2 * 3 * len(part.slot_K))] * len(part.slot_K))


@pytest.mark.parametrize("name", ["random_mask", "elbo", "block_mask"])
def test_weights_of_drawn_masks_sum_to_the_number_of_scored_slots(name):
    for draw in range(50):
        found = canvases(PLAIN, name, draw=draw, num_draws=3)
        assert len(found) == 3
        assert sum(float(c.weight_K.sum()) for c in found) == pytest.approx(5.0, abs=1e-5)


def test_sizes_of_drawn_masks_are_even_and_their_sets_too():
    counts = {}
    for draw in range(3000):
        (found,) = canvases(trajectory([7, 8, 9], [0, 1, 2]), "elbo", draw=draw, num_draws=1)
        key = tuple(found.slot_K.tolist())
        counts[key] = counts.get(key, 0) + 1
    for size in (1, 2, 3):
        sets = list(itertools.combinations(range(3), size))
        for key in sets:  # 1000 of each size; the standard error of a third of them is 17
            assert counts[key] == pytest.approx(1000 / len(sets), abs=110)


def test_block_masks_hide_later_blocks_and_show_most_of_earlier_ones():
    # Blocks of 3: slots 0..2 and 3, 4 (5 is not scored).
    seen = set()
    for draw in range(300):
        for found in canvases(PLAIN, "block_mask", draw=draw, num_draws=1, prompt_mask_rate=0.0):
            slots = set(found.slot_K.tolist())
            seen.add(frozenset(slots))
            if slots & {0, 1, 2}:
                assert {3, 4} <= slots  # nothing before the block is hidden at rate 0, so this is the first block
            assert found.masked_T[5]
    assert frozenset({3}) in seen
    assert frozenset({4}) in seen


@pytest.mark.parametrize("name", [name for name, facts in LIKELIHOODS.items() if name != "agdo"])
def test_scored_slots_are_masked_and_the_tail_is_masked_and_never_scored(name):
    answer = PLAIN if name[:2] != "ar" else trajectory([7, 8, 9, 7, EOS, EOS], range(6), num_steps=5)
    for draw in range(10):
        for found in canvases(answer, name, draw=draw):
            assert found.masked_T[found.slot_K].all()
            assert found.masked_T[5]
            assert 5 not in found.slot_K
            assert (np.diff(found.slot_K) > 0).all()


def test_block_causal_families_get_a_canvas_a_block_with_clean_blocks_before_it():
    # Prompt 3, blocks of 3 from position 0: slots 0..2 and 3..5.
    whole = Canvas(np.array([1, 0, 1, 0, 1, 1], dtype=bool), np.array([0, 2, 4]), np.array([1.0, 2.0, 3.0], np.float32))
    assert shown(by_block(PLAIN, [whole])) == [
        ([1, 0, 1, 0, 1, 1], [0, 2], [1.0, 2.0]),
        ([0, 0, 0, 0, 1, 1], [4], [3.0]),
    ]
    found = canvases(PLAIN, "one_step", family=BLOCK_FAMILY, prompt_mask_rate=0.0)
    assert [c.slot_K.tolist() for c in found] == [[0, 1, 2], [3, 4]]


def test_answer_without_a_scored_slot_has_no_canvas():
    nothing = np.zeros(6, dtype=bool)
    for name in LIKELIHOODS:
        if name not in ("agdo", "ar_exact", "ar_fast"):
            objective = ObjectiveConfig(likelihood=name)
            assert canvases_of(PLAIN, nothing, objective, family=FAMILY) == []


def test_left_to_right_estimators_refuse_another_order_by_name():
    for name in ("ar_exact", "ar_fast"):
        with pytest.raises(ValueError, match=f"likelihood '{name}' needs answers drawn left to right"):
            canvases(PLAIN, name)


# ---- what does not go together


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"likelihood": "coupled", "importance": "token"}, "'coupled' estimates another quantity.*ar_exact, ar_fast"),
        ({"likelihood": "agdo", "ratio": "sequence"}, "'agdo' scores only a part.*trace_exact, ar_exact, trace_merged"),
        ({"likelihood": "ar_fast", "ratio": "sequence"}, "whole answers, and likelihood 'ar_fast'"),
        ({"likelihood": "trace_exact", "loss": "bounds"}, "'trace_exact' has none; use likelihood elbo, elbo_pair"),
        ({"likelihood": "elbo", "loss": "bounds", "kl_coef": 0.1}, "set kl_coef 0 and importance none"),
        ({"ratio": "sequence", "loss": "likelihood"}, "belongs to loss clip"),
        ({"ratio": "sequence", "importance": "step"}, "importance sequence or none, or ratio token"),
        ({"ratio": "sequence", "influence": 1.0}, "influence 1.0 weighs tokens"),
        ({"likelihood": "elbo", "normaliser": "canvas"}, "already weighs its canvases; use normaliser sequence"),
        ({"ratio": "sequence", "normaliser": "canvas"}, "use normaliser sequence"),
        ({"redraw_masks": True}, "nothing to draw with likelihood 'trace_exact'.*one_step"),
        ({"likelihood": "trace_exct"}, "trace_exact"),
        ({"agdo": {"rate_low": 0.9, "rate_high": 0.5}}, "rate_low 0.9 is above rate_high 0.5"),
    ],
)
def test_illegal_pairs_are_refused_by_name_with_the_alternatives(settings, said):
    with pytest.raises(ValueError, match=said):
        ObjectiveConfig(**settings)


def test_rates_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match=r"rate_low 0.9 is above rate_high 0.8"):
        canvases(PLAIN, "coupled", rate_low=0.9)
    assert AgdoConfig().rate_low == 0.1
