"""Position rules on four slots whose numbers are worked out by hand."""

import pytest
import torch

import samplers
from samplers.choice import guard_end
from samplers.count import Fixed
from samplers.position import Confidence, Entropy, EntropyThenConfidence, LeftToRight, Margin, PositionRule, Random
from samplers.prediction import Need, Predictor, summarise
from samplers.sampler import Sampler
from samplers.view import Slots, View
from tests.samplers.table_model import TableModel, columns, fill, one_step, state_of

# Slots a, b, c, d of the shared oracle: probabilities of three tokens.
P = torch.tensor([[0.60, 0.30, 0.10], [0.95, 0.04, 0.01], [0.50, 0.49, 0.01], [0.92, 0.05, 0.03]])
EVERYTHING = Need.TOP_PROB | Need.TOP_TOKEN | Need.SECOND_PROB | Need.ENTROPY


def order(position: PositionRule) -> str:
    """Order in which a rule commits the four slots, one a step."""
    _, commits = fill(Sampler("x", position, Fixed(1)), lambda *_: TableModel(P), rows=1, length=4, temperature=0.0)
    return "".join("abcd"[int(commit.column_K)] for commit in commits)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Confidence(), "bdac"),
        (Margin(), "bdac"),
        (Entropy(), "bdca"),
        (LeftToRight(), "abcd"),
        # Highest entropy .8979 at a, not least confidence .50 at c; then by confidence.
        (EntropyThenConfidence(), "abdc"),
    ],
)
def test_rule_commits_in_the_order_worked_out_by_hand(rule: PositionRule, expected: str) -> None:
    assert order(rule) == expected


def test_summary_holds_the_oracles_numbers() -> None:
    prediction = summarise(P.log(), EVERYTHING)
    torch.testing.assert_close(prediction.top_prob_M, torch.tensor([0.60, 0.95, 0.50, 0.92]))
    torch.testing.assert_close(prediction.top_prob_M - prediction.second_prob_M, torch.tensor([0.30, 0.91, 0.01, 0.87]))
    torch.testing.assert_close(prediction.entropy_M, torch.tensor([0.8979, 0.2235, 0.7422, 0.3317]), atol=1e-4, rtol=0)


def test_summary_of_ties_takes_the_lowest_token_and_no_gap() -> None:
    prediction = summarise(torch.tensor([[0.2, 0.4, 0.4]]).log(), EVERYTHING)
    assert prediction.top_token_M.tolist() == [1]
    torch.testing.assert_close(prediction.second_prob_M, prediction.top_prob_M)


def test_summary_of_a_certain_slot_has_entropy_zero_and_no_nan() -> None:
    prediction = summarise(torch.tensor([[0.0, -torch.inf, -torch.inf]]), EVERYTHING)
    assert prediction.entropy_M.tolist() == [0.0]
    assert prediction.second_prob_M.tolist() == [0.0]


def test_summary_equals_float64_on_large_uneven_logits() -> None:
    logits_MV = 6 * torch.randn(50, 3000, generator=torch.Generator().manual_seed(0)) + 40
    logits_MV[:, 7] = -torch.inf
    prediction = summarise(logits_MV, EVERYTHING, given_token_M=torch.arange(50))
    p_MV = logits_MV.double().softmax(-1)
    top_MV = p_MV.sort(descending=True).values
    given_M = p_MV[torch.arange(50), torch.arange(50)]
    for found, expected in (
        (prediction.top_prob_M, top_MV[:, 0]),
        (prediction.second_prob_M, top_MV[:, 1]),
        (prediction.entropy_M, torch.special.entr(p_MV).sum(-1)),
        (prediction.given_prob_M, given_M),
    ):
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


def test_equal_scores_go_to_the_lower_slot() -> None:
    commit = one_step(samplers.build("confidence", tokens_per_step=2), torch.full((4, 3), 1 / 3))
    assert columns(commit) == [0, 1]


def test_rules_that_ignore_the_prediction_look_at_the_slots_they_commit_only() -> None:
    for name in ("ar", "random"):
        model = TableModel(P)
        samplers.build(name).step(state_of(torch.ones(2, 4, dtype=torch.bool)), model)
        assert model.asked == [2]
        assert model.head_rows == 2


def test_hidden_states_are_asked_for_once_a_step() -> None:
    for name in set(samplers.names()) - {"attn", "max_s"}:
        model, sampler = TableModel(P), samplers.build(name)
        sampler.step(state_of(torch.ones(1, 4, dtype=torch.bool), sampler=sampler, temperature=1.0), model)
        assert len(model.asked) == 1


def test_random_order_depends_on_seed_and_step_and_not_on_the_batch() -> None:
    def scores(**changes) -> torch.Tensor:
        masked_RL = torch.ones(len(changes["seed_R"]), 8, dtype=torch.bool)
        state = state_of(masked_RL, **changes)
        return Random().score(View(Slots.grid(state), state.candidate_RL)).view(-1, 8)

    alone = scores(seed_R=torch.tensor([5]), step_R=torch.tensor([3]))
    among = scores(seed_R=torch.tensor([9, 5, 5]), step_R=torch.tensor([3, 3, 4]))
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(alone[0], among[0])
    assert not torch.equal(alone[0], among[2])


def test_egi_draws_the_first_token_of_an_answer_at_its_own_temperature() -> None:
    sampler = samplers.build("egi", tokens_per_step=2)
    rows = torch.ones(3, 4, dtype=torch.bool)
    # Rows: first step, a later step, greedy at the first step. Slot a has the highest entropy, slot b the highest p.
    state = state_of(rows, step_R=torch.tensor([0, 1, 0]), temperature_R=torch.tensor([0.6, 0.6, 0.0]))
    commit = sampler.step(state, TableModel(P))
    drawn = dict(
        zip(
            zip(commit.row_K.tolist(), commit.column_K.tolist(), strict=True),
            commit.temperature_K.tolist(),
            strict=True,
        )
    )
    expected = {(0, 0): 0.9, (0, 1): 0.6, (1, 1): 0.6, (1, 3): 0.6, (2, 0): 0.0, (2, 1): 0.0}
    assert drawn == pytest.approx(expected)
    at_first = (commit.row_K == 0) & (commit.column_K == 0)
    law_V = (P[0].log() / 0.9).softmax(0)
    torch.testing.assert_close(commit.logprob_K[at_first].exp(), law_V[commit.token_K[at_first]])


def test_egi_is_exact_only_at_the_requests_temperature() -> None:
    assert not samplers.build("egi").exact_likelihood
    sampler = samplers.build("egi", first_temperature=None)
    assert sampler.exact_likelihood
    assert one_step(sampler, P, temperature=0.6).temperature_K is None


def test_egi_takes_the_highest_entropy_that_the_end_guard_leaves() -> None:
    # The end token is 2. Slot 1 has the highest entropy but predicts the end.
    table = torch.tensor([[0.80, 0.15, 0.05], [0.30, 0.30, 0.40], [0.60, 0.30, 0.10]])
    assert columns(one_step(samplers.build("egi"), table)) == [1]
    assert columns(one_step(samplers.build("egi"), table, whole_response=True)) == [2]


def test_guard_leaves_only_content_and_the_leftmost_slot() -> None:
    candidate = torch.tensor([[True, True, True, True], [False, True, True, True], [True, True, False, False]])
    ends = torch.tensor([[True, False, True, True], [False, False, True, False], [True, True, False, False]])
    expected = torch.tensor([[True, True, False, False], [False, True, False, True], [True, False, False, False]])
    assert torch.equal(guard_end(candidate, ends_RL=ends), expected)


def test_guard_is_on_in_full_diffusion_only_unless_told() -> None:
    # The end token is 2; slot 1 predicts it with the highest confidence.
    table = torch.tensor([[0.6, 0.3, 0.1], [0.01, 0.01, 0.98]])
    sampler = samplers.build("confidence")
    assert columns(one_step(sampler, table, whole_response=True)) == [0]
    assert columns(one_step(sampler, table)) == [1]
    assert columns(one_step(samplers.build("confidence", eos_guard=False), table, whole_response=True)) == [1]


def test_guard_knows_every_end_token() -> None:
    table = torch.tensor([[0.4, 0.3, 0.3], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]])
    commit = one_step(samplers.build("confidence", tokens_per_step=3), table, whole_response=True, stop_ids=(1, 2))
    assert columns(commit) == [0]


def test_scores_on_the_sampling_law_follow_temperature_and_cuts() -> None:
    # Untempered: .50 < .52. At T = 0.5: .25 / .375 = .667 against .2704 / .5008 = .540.
    table = torch.tensor([[0.50, 0.25, 0.25], [0.52, 0.48, 0.0]])
    model, sampling = (samplers.build("confidence", score_on=law) for law in ("model", "sampling"))
    assert columns(one_step(model, table, temperature=0.5)) == [1]
    assert columns(one_step(sampling, table, temperature=0.5)) == [0]
    assert columns(one_step(sampling, table, temperature=0.0)) == [1]
    # Cut to one token both are certain, and the lower slot goes first.
    assert columns(one_step(sampling, table, temperature=1.0, top_k_R=torch.tensor([1]))) == [0]


def test_entropies_and_logprobs_are_those_of_the_committed_slots() -> None:
    commit = one_step(samplers.build("confidence", tokens_per_step=2), P, temperature=0.7)
    torch.testing.assert_close(commit.entropy_K, torch.tensor([0.2235, 0.3317]), atol=1e-4, rtol=0)
    law_KV = (P[[1, 3]].log() / 0.7).softmax(-1)
    torch.testing.assert_close(commit.logprob_K.exp(), law_KV.gather(1, commit.token_K[:, None])[:, 0])


def test_chunked_evaluation_equals_the_whole() -> None:
    table = torch.rand(13, 40, generator=torch.Generator().manual_seed(0)).softmax(-1)
    row_M, column_M = torch.zeros(13, dtype=torch.int64), torch.arange(13)
    whole = Predictor(TableModel(table), row_M, column_M, chunk_bytes=2**20)
    parts = Predictor(TableModel(table), row_M, column_M, chunk_bytes=3 * 40 * 4)
    one, other = whole.summary(EVERYTHING), parts.summary(EVERYTHING)
    for name in ("top_token_M", "top_prob_M", "second_prob_M", "entropy_M"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    index = torch.tensor([12, 3, 0, 7])
    (place, logits_KV), *rest = list(whole.lots(index))
    assert not rest
    assert place == slice(0, 4)
    assert torch.equal(logits_KV, torch.cat([logits_CV for _, logits_CV in parts.lots(index)]))


# `imh_sequence` chains whole runs of `imh`, which is here.
@pytest.mark.parametrize("name", sorted(set(samplers.names()) - {"imh_sequence"}))
def test_samplers_commit_the_same_in_small_chunks(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    table = (3 * torch.randn(3, 9, 50, generator=generator)).softmax(-1)
    attention_RL = torch.rand(3, 9, generator=generator)
    sampler = samplers.build(name)
    small = type(sampler)(**{key: getattr(sampler, key) for key in sampler.__dataclass_fields__} | {"chunk_bytes": 800})
    state = state_of(torch.rand(3, 9, generator=generator) < 0.8, sampler=sampler, temperature=1.0)
    one, other = (each.step(state, TableModel(table, attention_RL)) for each in (sampler, small))
    for field in ("row_K", "column_K", "token_K", "logprob_K", "entropy_K"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field))
