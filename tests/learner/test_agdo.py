"""Order and influence of AGDO against a matrix worked out by hand, and against a loop that recomputes every sum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from learner.agdo import guide_statistics, guided_masks, guides, merged, random_subset
from learner.config import AgdoConfig
from learner.guide import FinishedText, guide_batches, guide_texts
from tests.learner.small_models import small_denoiser

# Position 0 is the prompt, 1..3 are slots 0..2.
MATRIX = torch.tensor(
    [[0.55, 0.05, 0.10, 0.30], [0.50, 0.20, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10], [0.20, 0.10, 0.60, 0.10]]
)
ALL = np.ones(3, dtype=bool)
PLAIN = AgdoConfig(num_canvases=None)


def guide_of(matrix=MATRIX, ranked=ALL, *, attention_block_length=None, **options):
    config = AgdoConfig(**{"num_canvases": None} | options)
    (found,) = guides([matrix], [ranked], config=config, attention_block_length=attention_block_length)
    return found


# ---- by hand


def test_slots_are_chosen_by_what_they_see_of_the_known_ones():
    # S = (.5, .1, .2) -> slot 0; (-, .1 + .6, .2 + .1) -> slot 1; (-, -, .3 + .6) -> slot 2. By the first S alone it
    # would be 0, 2, 1; by columns (influence) 1, 0, 2; by the transposed matrix slot 2 first.
    found = guide_of()
    assert found.step_T.tolist() == [0, 1, 2]
    assert found.row_mass_T.tolist() == pytest.approx([0.5, 0.7, 0.9])
    assert found.num_steps == 3


def test_several_slots_of_a_rank_are_chosen_by_the_same_sums():
    two = guide_of(slots_per_rank=2)
    assert two.step_T.tolist() == [0, 1, 0]
    assert two.row_mass_T.tolist() == pytest.approx([0.5, 0.1 + 0.6 + 0.1, 0.2])
    assert guide_of(slots_per_rank=3).step_T.tolist() == [0, 0, 0]


def test_blocks_come_from_left_to_right_and_count_from_the_response():
    # m = 2: slots 0, 1 | 2. Two slots a rank: ranks 1, 2, 1 and blocks 1, 1, 2 -> 1 + 4, 2 + 4, 1 + 8: in this order.
    for slots_per_rank in (1, 2):
        assert guide_of(block_length=2, slots_per_rank=slots_per_rank).step_T.tolist() == [0, 1, 2]
    # Counted from position 0, as in block-causal families, slot 0 is in the block of the prompt: 0 | 1, 2. Slots 1 and
    # 2 have ranks 2 and 1: slot 2 comes before slot 1.
    assert guide_of(attention_block_length=2, slots_per_rank=2).step_T.tolist() == [0, 2, 1]


def test_order_within_blocks_knows_the_prompt_and_earlier_blocks_only():
    # Slots 0..3 in blocks of 2; slot 3 sees the prompt best, but comes in block 1. S of the prompt: (.1, .2, .3, .9).
    matrix = torch.zeros(5, 5)
    matrix[1:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.9])
    matrix[1, 4] = 0.8  # slot 0 looks at slot 3
    # One order of all: 3, then slot 0 with .1 + .8 before slot 1: (0, 1 | 3, 2). Block by block slot 1 goes first.
    ranked = np.ones(4, dtype=bool)
    assert guide_of(matrix, ranked, block_length=2).step_T.tolist() == [0, 1, 3, 2]
    within = guide_of(matrix, ranked, block_length=2, within_block=True)
    assert within.step_T.tolist() == [1, 0, 3, 2]
    assert within.row_mass_T.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.9])


def test_influence_is_the_column_sum_over_queries_of_real_tokens():
    assert guide_of().influence_T.tolist() == pytest.approx([0.95, 1.10, 0.60])
    # Slot 2 lies after the end of the answer: no query, no influence, and not ranked.
    short = guide_of(ranked=np.array([True, True, False]))
    assert short.influence_T.tolist() == pytest.approx([0.85, 0.50, 0.0])
    assert short.step_T.tolist() == [0, 1, 2]
    assert short.num_steps == 2


def test_influence_of_even_attention_is_one():
    assert guide_of(torch.full((4, 4), 0.25)).influence_T.tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_cap_and_normalisation_of_influence():
    assert guide_of(influence_cap=1.0).influence_T.tolist() == pytest.approx([0.95, 1.0, 0.60])
    # Mean of (.95, 1.10, .60) is .88333.
    expected = [0.95 / 0.883333, 1.10 / 0.883333, 0.60 / 0.883333]
    assert guide_of(normalise_influence=True).influence_T.tolist() == pytest.approx(expected, abs=1e-5)


def test_statistics_show_a_sink():
    sink = torch.tensor([[0.0, 0.97, 0.01, 0.02]]).repeat(4, 1)
    found = guide_statistics(guide_of(sink))
    # Columns 3.88, .04, .08: the first has 3.88 / 4 of the sum.
    assert found["influence_top_share"] == pytest.approx(0.97)
    assert found["influence_max"] == pytest.approx(3.88)
    assert found["influence_q50"] == pytest.approx(0.08)
    assert found["influence_mean"] == pytest.approx(4.0 / 3)
    assert found["row_mass_max"] > found["row_mass_q50"] > found["row_mass_q10"]
    assert found["steps"] == 3.0
    assert guide_statistics(guide_of(ranked=np.zeros(3, dtype=bool))) == {}


# ---- against a loop that recomputes every sum


def slow_order(matrix, ranked, *, slots_per_rank, block_length):
    """Algorithm 1 as it is printed, S recomputed from scratch; ties to the lower slot."""
    start = len(matrix) - len(ranked)
    known, left = list(range(start)), [k for k in range(len(ranked)) if ranked[k]]
    key, rank = {}, 1
    while left:
        mass = {k: float(matrix[start + k, known].sum()) for k in left}
        chosen = sorted(left, key=lambda k: (-mass[k], k))[:slots_per_rank]
        for k in chosen:
            key[k] = rank + (k // block_length + 1) * len(matrix)
            known.append(start + k)
            left.remove(k)
        rank += 1
    values = sorted(set(key.values()))
    return [values.index(key[k]) if ranked[k] else len(values) for k in range(len(ranked))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batched_incremental_order_equals_the_loop(data):
    # Multiples of 1/64 add up exactly in any order, so that ties are ties in both.
    config = AgdoConfig(
        slots_per_rank=data.draw(st.integers(1, 4)), block_length=data.draw(st.integers(1, 9)), num_canvases=None
    )
    matrices, ranked = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        num_prompt, num_slots = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
        size = num_prompt + num_slots
        entries = data.draw(st.lists(st.integers(0, 6), min_size=size * size, max_size=size * size))
        matrices.append(torch.tensor(entries, dtype=torch.float32).view(size, size) / 64)
        ranked.append(np.array(data.draw(st.lists(st.booleans(), min_size=num_slots, max_size=num_slots))))
    for found, matrix, chosen in zip(guides(matrices, ranked, config=config), matrices, ranked, strict=True):
        expected = slow_order(matrix, chosen, slots_per_rank=config.slots_per_rank, block_length=config.block_length)
        assert found.step_T.tolist() == expected
        assert sorted(set(found.step_T[chosen].tolist())) == list(range(found.num_steps))


# ---- masks


def test_canvas_of_a_step_hides_later_steps_and_scores_a_subset_of_its_own():
    step_T, random = np.array([0, 2, 1, 1, 3]), np.random.default_rng(0)  # slot 4 is not ranked
    seen = set()
    for _ in range(200):
        for masked_T, scored_K in guided_masks(step_T, 3, random, config=PLAIN):
            (step,) = set(step_T[scored_K].tolist())
            assert masked_T.tolist() == [k in scored_K or step_T[k] > step for k in range(5)]
            seen.add(tuple(scored_K.tolist()))
    assert seen == {(0,), (1,), (2,), (3,), (2, 3)}


def test_rate_one_scores_every_ranked_slot_once():
    config = AgdoConfig(rate_low=1.0, rate_high=1.0, num_canvases=None)
    canvases = guided_masks(np.array([0, 2, 1, 1, 3]), 3, np.random.default_rng(0), config=config)
    assert [scored.tolist() for _, scored in canvases] == [[0], [2, 3], [1]]


def test_rates_are_drawn_slot_by_slot_and_average_to_their_middle():
    # 4000 slots, each kept with p ~ U(.1, .5): mean .3, standard error .0072.
    config = AgdoConfig(rate_low=0.1, rate_high=0.5)
    kept = random_subset(np.arange(4000), np.random.default_rng(1), config=config)
    assert len(kept) / 4000 == pytest.approx(0.3, abs=0.04)


def test_empty_subsets_are_drawn_again_or_skipped():
    one = np.zeros(400, dtype=np.int64)
    for step in range(400):
        one[step] = step
    redrawn = guided_masks(one, 400, np.random.default_rng(0), config=PLAIN)
    assert len(redrawn) == 400
    skipped = guided_masks(one, 400, np.random.default_rng(0), config=AgdoConfig(empty="skip", num_canvases=None))
    assert 120 < len(skipped) < 280  # half of them, standard error 10


def test_merged_steps_are_consecutive_and_of_even_size():
    step_T = np.array([4, 3, 2, 1, 0, 5])  # the last slot is not ranked
    merged_T, num_steps = merged(step_T, 5, most=2)
    # floor(step * 2 / 5) = 0, 0, 0, 1, 1
    assert merged_T.tolist() == [1, 1, 0, 0, 0, 2]
    assert num_steps == 2
    assert merged(step_T, 5, most=5) == (step_T, 5)
    assert merged(step_T, 5, most=None) == (step_T, 5)


def test_rates_the_wrong_way_round_are_refused():
    with pytest.raises(ValidationError, match=r"rate_low 0.9 is above rate_high 0.1: swap them"):
        AgdoConfig(rate_low=0.9, rate_high=0.1)


# ---- through the model


def text(num_prompt, num_slots, *, ranked=None, seed=0, block_length=4):
    random = np.random.default_rng(seed)
    ranked_T = np.ones(num_slots, dtype=bool) if ranked is None else np.array(ranked)
    return FinishedText(random.integers(2, 12, num_prompt), random.integers(2, 12, num_slots), ranked_T, block_length)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_guides_of_a_model_equal_those_of_its_own_attention_sums(family, layers):
    denoiser = small_denoiser(family).double()
    texts = [text(2, 6), text(5, 4, seed=1, ranked=[True, True, True, False]), text(2, 6, seed=2)]
    config = AgdoConfig(layers=layers, block_length=3, num_canvases=None)
    found = guide_texts(denoiser, texts, config=config)
    for one, guide in zip(texts, found, strict=True):
        size = one.num_tokens
        tokens_1N = torch.from_numpy(np.concatenate([one.prompt_tokens, one.answer_tokens]))[None]
        columns = []  # of the attention matrix, one probe each
        for column in range(size):
            cols_1N = torch.arange(size)[None] == column
            sums = denoiser.attention_sums(tokens_1N, rows=None, cols=cols_1N, layers=layers, block_length=4)
            columns.append(sums.row_sum_BT[0])
        (expected,) = guides(
            [torch.stack(columns, dim=1)],
            [one.ranked_T],
            config=config,
            attention_block_length=4 if denoiser.family.block_causal else None,
        )
        assert guide.step_T.tolist() == expected.step_T.tolist()
        np.testing.assert_allclose(guide.influence_T, expected.influence_T, atol=1e-5)
        np.testing.assert_allclose(guide.row_mass_T, expected.row_mass_T, atol=1e-5)


def test_batches_of_texts_keep_to_the_budget_and_to_one_block_length():
    texts = [text(2, 6), text(5, 5), text(2, 2), text(2, 6, block_length=2)]
    assert guide_batches(texts, micro_batch_tokens=12) == [[3], [1], [0, 2]]
    assert guide_batches(texts, micro_batch_tokens=1) == [[3], [1], [0], [2]]
    assert guide_batches([], micro_batch_tokens=1) == []


def test_text_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="text 0 has 3 tokens, 3 of them slots: it needs a prompt"):
        guides([MATRIX[1:, 1:]], [ALL], config=PLAIN)
