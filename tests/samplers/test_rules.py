"""Position and how-many rules on four slots whose numbers are worked out by hand."""

import pytest
import torch

import samplers
from samplers.count import Fixed, Threshold
from samplers.position import Confidence, Entropy, LeftToRight, Margin, PositionRule, Random
from samplers.prediction import Predictor, summarise
from samplers.records import BlockState
from samplers.sampler import Sampler, guard_end

# Slots a, b, c, d of the shared oracle: probabilities of three tokens.
P = torch.tensor([[0.60, 0.30, 0.10], [0.95, 0.04, 0.01], [0.50, 0.49, 0.01], [0.92, 0.05, 0.03]])


class TableModel:
    """Answers every canvas with the same table of probabilities (columns, vocabulary)."""

    def __init__(self, probability_LV: torch.Tensor) -> None:
        self.logits_LV = probability_LV.log()
        self.vocab_size = probability_LV.shape[1]
        self.calls = 0

    def __call__(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.logits_LV[column_M]


def state_of(masked_RL: torch.Tensor, **changes) -> BlockState:
    rows, columns = masked_RL.shape
    values = {
        "candidate_RL": masked_RL,
        "masked_R": masked_RL.sum(1),
        "slot_RL": torch.arange(columns).expand(rows, -1),
        "seed_R": torch.arange(rows) + 11,
        "step_R": torch.zeros(rows, dtype=torch.int64),
        "block_step_R": torch.zeros(rows, dtype=torch.int64),
        "block_masked_R": masked_RL.sum(1),
        "block_steps_R": torch.zeros(rows, dtype=torch.int64),
        "temperature_R": torch.zeros(rows),
        "top_p_R": torch.ones(rows),
        "stop_ids": (2,),
        "whole_response": False,
    } | changes
    return BlockState(**values)


def committed(sampler, *, probability=P, **changes) -> list[int]:
    commit = sampler.step(
        state_of(torch.ones(1, len(probability), dtype=torch.bool), **changes), TableModel(probability)
    )
    return sorted(commit.column_K.tolist())


def order(position: PositionRule) -> str:
    """Order in which a rule commits the four slots, one a step."""
    masked_RL, letters = torch.ones(1, 4, dtype=torch.bool), ""
    for step in range(4):
        commit = Sampler("x", position, Fixed(1)).step(
            state_of(masked_RL.clone(), step_R=torch.tensor([step])), TableModel(P)
        )
        letters += "abcd"[int(commit.column_K)]
        masked_RL[0, commit.column_K] = False
    return letters


@pytest.mark.parametrize(
    ("rule", "expected"), [(Confidence(), "bdac"), (Margin(), "bdac"), (Entropy(), "bdca"), (LeftToRight(), "abcd")]
)
def test_rule_commits_in_the_order_worked_out_by_hand(rule: PositionRule, expected: str) -> None:
    assert order(rule) == expected


def test_summary_holds_the_oracles_numbers() -> None:
    prediction = summarise(P.log(), second=True, entropy=True)
    torch.testing.assert_close(prediction.top_prob_M, torch.tensor([0.60, 0.95, 0.50, 0.92]))
    torch.testing.assert_close(prediction.top_prob_M - prediction.second_prob_M, torch.tensor([0.30, 0.91, 0.01, 0.87]))
    torch.testing.assert_close(prediction.entropy_M, torch.tensor([0.8979, 0.2235, 0.7422, 0.3317]), atol=1e-4, rtol=0)


def test_entropy_of_a_certain_slot_is_zero_and_not_nan() -> None:
    logits_MV = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert summarise(logits_MV, entropy=True).entropy_M.tolist() == [0.0]


@pytest.mark.parametrize(("tau", "expected"), [(0.9, [1, 3]), (0.94, [1]), (0.99, [1]), (0.55, [0, 1, 3])])
def test_threshold_commits_every_slot_that_reaches_it_and_never_none(tau: float, expected: list[int]) -> None:
    assert committed(samplers.build("threshold", tau=tau)) == expected


@pytest.mark.parametrize(("tokens_per_step", "expected"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (9, [0, 1, 2, 3])])
def test_fixed_number_is_capped_by_the_masked_slots(tokens_per_step: int, expected: list[int]) -> None:
    assert committed(samplers.build("confidence", tokens_per_step=tokens_per_step)) == expected


def test_step_budget_spreads_ten_slots_over_four_steps_as_3_3_2_2() -> None:
    table = torch.full((10, 3), 1 / 3)
    masked_RL = torch.ones(1, 10, dtype=torch.bool)
    taken = []
    for step in range(4):
        state = state_of(
            masked_RL.clone(),
            block_step_R=torch.tensor([step]),
            block_masked_R=torch.tensor([10]),
            block_steps_R=torch.tensor([4]),
        )
        commit = samplers.build("ar").step(state, TableModel(table))
        masked_RL[0, commit.column_K] = False
        taken.append(len(commit.column_K))
    assert taken == [3, 3, 2, 2]


def test_equal_scores_go_to_the_lower_slot() -> None:
    assert committed(samplers.build("confidence", tokens_per_step=2), probability=torch.full((4, 3), 1 / 3)) == [0, 1]


def test_each_row_of_a_batch_is_chosen_by_its_own_slots() -> None:
    masked_RL = torch.tensor([[True, True, True, True], [True, False, True, False]])
    commit = samplers.build("threshold", tau=0.9).step(state_of(masked_RL), TableModel(P))
    assert sorted(zip(commit.row_K.tolist(), commit.column_K.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 0)]


def test_rules_that_ignore_the_prediction_run_the_head_only_where_they_commit() -> None:
    for name in ("ar", "random"):
        model = TableModel(P)
        samplers.build(name).step(state_of(torch.ones(1, 4, dtype=torch.bool)), model)
        assert model.calls == 1


def test_random_order_depends_on_seed_and_step_and_not_on_the_batch() -> None:
    rule = Random()
    seed_M, step_M, slot_M = torch.full((8,), 5), torch.full((8,), 3), torch.arange(8)
    alone = rule.score(None, seed_M, step_M, slot_M)
    twice = rule.score(None, seed_M.repeat(2), step_M.repeat(2), slot_M.repeat(2))
    assert torch.equal(alone, twice[:8])
    assert torch.equal(alone, twice[8:])
    assert not torch.equal(alone, rule.score(None, seed_M + 1, step_M, slot_M))
    assert not torch.equal(alone, rule.score(None, seed_M, step_M + 1, slot_M))


def test_guard_leaves_only_content_and_the_leftmost_slot() -> None:
    candidate = torch.tensor([[True, True, True, True], [False, True, True, True], [True, True, False, False]])
    ends = torch.tensor([[True, False, True, True], [False, False, True, False], [True, True, False, False]])
    expected = torch.tensor([[True, True, False, False], [False, True, False, True], [True, False, False, False]])
    assert torch.equal(guard_end(candidate, ends_RL=ends), expected)


def test_guard_is_on_in_full_diffusion_only_unless_told() -> None:
    # The end token is 2; slot 1 predicts it with the highest confidence.
    table = torch.tensor([[0.6, 0.3, 0.1], [0.01, 0.01, 0.98]])
    sampler = samplers.build("confidence")
    assert committed(sampler, probability=table, whole_response=True) == [0]
    assert committed(sampler, probability=table, whole_response=False) == [1]
    assert committed(samplers.build("confidence", eos_guard=False), probability=table, whole_response=True) == [1]


def test_chunked_evaluation_equals_the_whole() -> None:
    table = torch.rand(13, 40, generator=torch.Generator().manual_seed(0)).softmax(-1)
    row_M, column_M = torch.zeros(13, dtype=torch.int64), torch.arange(13)
    whole = Predictor(TableModel(table), row_M, column_M, chunk_bytes=2**20)
    parts = Predictor(TableModel(table), row_M, column_M, chunk_bytes=3 * 40 * 4)
    one, other = whole.summary(second=True, entropy=True), parts.summary(second=True, entropy=True)
    for name in ("top_token_M", "top_prob_M", "second_prob_M", "entropy_M"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    index = torch.tensor([12, 3])
    assert torch.equal(whole.logits(index), parts.logits(index))


def test_unknown_names_and_options_get_the_nearest_match() -> None:
    with pytest.raises(ValueError, match="did you mean 'confidence'"):
        samplers.build("confidense")
    with pytest.raises(ValueError, match="did you mean 'tokens_per_step'"):
        samplers.build("ar", token_per_step=2)
    with pytest.raises(ValueError, match="not both"):
        samplers.build("ar", tokens_per_step=2, tau=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Fixed(0)
    with pytest.raises(ValueError, match="above 0"):
        Threshold(0.0)
