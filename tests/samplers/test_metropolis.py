"""Token-level Metropolis: acceptances worked out by hand, exact laws of models that can be counted out, and its costs.

The two-slot model: p_i = (.6, .4), p_j(.|a) = (.5, .5), p_j(.|b) = (.9, .1). At alpha 2 the proposal is
(.36, .16) / .52 = (.6923, .3077), e^L = (.25 + .25, .81 + .01) = (.50, .82), and b -> a is accepted with .50 / .82.
"""

import numpy as np
import pytest
import torch

import samplers
from samplers.metropolis import Metropolis
from samplers.position import Confidence, LeftToRight
from tests.samplers.enumerable import Joint, JointModel, chi_square, decoding_law, divergence
from tests.samplers.table_model import TableModel, fill, state_of

TWO = Joint(np.array([0.30, 0.30, 0.36, 0.04]), num_letters=2)
SIX = [Joint.random(seed) for seed in range(4)]


def first_step(sampler: Metropolis, joint: Joint, *, rows: int, **changes):
    masked_RL = torch.ones(rows, joint.L, dtype=torch.bool)
    model = JointModel(joint, torch.full((rows, joint.L), -1))
    state = state_of(masked_RL, **{"temperature": 1.0, "stop_ids": (), **changes})
    return sampler.step(state, model), model


def answers(sampler: Metropolis, joint: Joint, *, rows: int, **changes) -> tuple[np.ndarray, list]:
    """Numbers of the answers, and the commits."""
    token_RL, commits = fill(
        sampler,
        lambda token_RL, _: JointModel(joint, token_RL),
        rows=rows,
        length=joint.L,
        **{"temperature": 1.0, "stop_ids": (), **changes},
    )
    return joint.number(token_RL), commits


@pytest.mark.parametrize(("candidates", "share"), [(0, 0.6923), (1, 0.6092), (2, 0.5867), (3, 0.5807), (12, 0.5784)])
def test_share_of_the_first_letter_after_each_candidate(candidates, share) -> None:
    sampler = Metropolis("imh", LeftToRight(), alpha=2.0, candidates=candidates)
    commit, _ = first_step(sampler, TWO, rows=20_000)
    # four standard deviations of a share of 20 000: .014
    assert float((commit.token_K == 0).float().mean()) == pytest.approx(share, abs=0.014)


def test_acceptance_from_the_likelier_letter_to_the_better_one_is_certain_and_back_is_61_percent() -> None:
    commit, _ = first_step(Metropolis("imh", LeftToRight(), alpha=2.0, candidates=1), TWO, rows=20_000)
    notes = commit.notes_R
    look_RK = notes["lookahead"].exp()
    there, back = look_RK[:, 0] < look_RK[:, 1], look_RK[:, 0] > look_RK[:, 1]
    torch.testing.assert_close(look_RK[there][0], torch.tensor([0.50, 0.82]))
    assert bool((notes["proposed"] == (there | back)).all())
    assert bool((notes["accepted"][there] == 1).all())
    assert float(notes["accepted"][back].float().mean()) == pytest.approx(0.6098, abs=0.02)
    assert bool((notes["accepted"][~there & ~back] == 0).all())
    torch.testing.assert_close(notes["log_mass"], torch.full((20_000,), 0.52).log())


def test_recorded_logprob_is_that_of_the_proposal_and_the_entropy_that_of_the_model() -> None:
    commit, _ = first_step(Metropolis("imh", LeftToRight(), alpha=2.0, candidates=3), TWO, rows=50)
    proposal = torch.tensor([0.36, 0.16]) / 0.52
    torch.testing.assert_close(commit.logprob_K, proposal[commit.token_K].log())
    torch.testing.assert_close(commit.entropy_K, torch.full((50,), 0.67301))  # -.6 ln .6 - .4 ln .4


@pytest.mark.parametrize(("alpha", "candidates"), [(2.0, 2), (4.0, 1)])
def test_answers_follow_the_law_counted_out(alpha, candidates) -> None:
    joint = SIX[0]
    law_X, _ = decoding_law(joint, alpha=alpha, candidates=candidates)
    found, _ = answers(samplers.build("imh", alpha=alpha, candidates=candidates), joint, rows=6000)
    counts_X = np.bincount(found, minlength=len(law_X))
    statistic, freedom = chi_square(counts_X, law_X)
    # A chi-square of this many degrees of freedom is within four of its standard deviations.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    # The test tells this law from that of plain tempering, with the same numbers.
    other, freedom = chi_square(counts_X, decoding_law(joint, alpha=alpha)[0])
    assert other > freedom + 8 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("by_confidence", [True, False])
def test_look_ahead_brings_the_law_closer_to_the_tempered_one_than_tempering_each_token(by_confidence) -> None:
    def mean(alpha: float, **options) -> float:
        laws = (decoding_law(joint, alpha=alpha, by_confidence=by_confidence, **options)[0] for joint in SIX)
        return float(np.mean([divergence(law, joint.tempered(alpha)) for law, joint in zip(laws, SIX, strict=True)]))

    local = {alpha: mean(alpha) for alpha in (2.0, 4.0)}
    for candidates in (1, 2, 4):
        # The mean of four models: at alpha 4 the mean field can be so far off that a single one is worse for it.
        assert mean(2.0, candidates=candidates) < 0.4 * local[2.0]
        assert mean(4.0, candidates=candidates) < 0.75 * local[4.0]
    # Only the mean field stands between the chain and its target.
    assert mean(2.0, candidates=30, exact_lookahead=True) < 1e-4 < mean(2.0, candidates=30)


def test_alpha_1_accepts_everything_and_keeps_the_models_own_law() -> None:
    joint = SIX[1]
    found, commits = answers(samplers.build("imh", alpha=1.0, candidates=2), joint, rows=6000)
    statistic, freedom = chi_square(np.bincount(found, minlength=len(joint.p_X)), joint.p_X)
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    for commit in commits:
        assert torch.equal(commit.notes_R["accepted"], commit.notes_R["proposed"])
        assert bool((commit.notes_R["lookahead"].nan_to_num() == 0).all())


@pytest.mark.parametrize("position", ["confidence", "random"])
def test_without_candidates_it_is_its_position_rule_at_the_tempered_temperature(position) -> None:
    chain = samplers.build("imh", alpha=2.5, candidates=0, position=position)
    plain = samplers.build(position)
    for one, other in zip(
        answers(chain, SIX[2], rows=300)[1], answers(plain, SIX[2], rows=300, temperature=0.4)[1], strict=True
    ):
        assert torch.equal(one.column_K, other.column_K)
        assert torch.equal(one.token_K, other.token_K)
        torch.testing.assert_close(one.logprob_K, other.logprob_K)


def test_the_requests_own_law_is_what_alpha_sharpens() -> None:
    # Temperature 1/2 squares p and alpha 2 squares that: the proposal is p^4, cut to the two most likely letters.
    table = torch.tensor([[[0.5, 0.3, 0.2]]])
    state = state_of(torch.ones(20_000, 1, dtype=torch.bool), temperature=0.5, top_k_R=torch.full((20_000,), 2))
    commit = samplers.build("imh", alpha=2.0).step(state, TableModel(table.expand(20_000, 1, 3)))
    share = float((commit.token_K == 0).float().mean())
    assert share == pytest.approx(0.5**4 / (0.5**4 + 0.3**4), abs=0.014)
    assert int(commit.token_K.max()) == 1


def test_greedy_rows_take_the_most_likely_token_and_evaluate_nothing() -> None:
    joint = SIX[0]
    found, commits = answers(samplers.build("imh", candidates=4), joint, rows=2, temperature=0.0)
    expected, plain = answers(samplers.build("confidence"), joint, rows=2, temperature=0.0)
    assert found.tolist() == expected.tolist()
    for one, other in zip(commits, plain, strict=True):
        assert one.evaluated is None
        assert one.extra_forwards_R.tolist() == [0, 0]
        torch.testing.assert_close(one.logprob_K, other.logprob_K)


def test_candidates_are_evaluated_once_each_and_only_where_there_is_a_choice() -> None:
    commit, model = first_step(samplers.build("imh", alpha=2.0, candidates=4), SIX[0], rows=60)
    distinct_R = commit.notes_R["distinct"]
    asked_R = torch.where(distinct_R > 1, distinct_R, 0)
    assert set(distinct_R.tolist()) == {1, 2, 3}
    assert torch.equal(commit.extra_forwards_R, asked_R)
    assert model.num_candidates == int(asked_R.sum())
    _, place_R = commit.evaluated
    assert torch.equal(place_R >= 0, distinct_R > 1)
    assert bool(commit.notes_R["lookahead"].isnan().any(dim=1).eq(distinct_R == 1).all())


def test_last_slot_of_a_block_is_drawn_without_a_look() -> None:
    joint = SIX[0]
    token_RL = torch.tensor([[0, 1, 2, -1, 0, 1]]).expand(40, -1).clone()
    model = JointModel(joint, token_RL)
    commit = samplers.build("imh", candidates=4).step(state_of(token_RL == -1, temperature=1.0, stop_ids=()), model)
    assert int(commit.notes_R["distinct"].max()) > 1
    assert model.num_candidates == 0
    assert commit.evaluated is None


def test_kept_evaluation_is_that_of_the_canvas_committed() -> None:
    joint = SIX[3]
    commit, _ = first_step(samplers.build("imh", alpha=2.0, candidates=4), joint, rows=60)
    kept, place_R = commit.evaluated
    token_RL = torch.full((60, joint.L), -1)
    token_RL[commit.row_K, commit.column_K] = commit.token_K
    row_M, column_M = ((token_RL == -1) & (place_R >= 0)[:, None]).nonzero(as_tuple=True)
    logits_MV = kept.logits(kept.hidden(place_R[row_M], column_M))
    expected_MV = torch.from_numpy(joint.conditionals(token_RL.numpy())).float()[row_M, column_M].log()
    assert len(row_M) > 100
    torch.testing.assert_close(logits_MV, expected_MV)


def test_slots_where_a_candidate_predicts_an_end_do_not_count() -> None:
    # Letter 1 is the end. After b slot j ends nearly surely (.1 -> e^L .82), after a it does not know.
    mirrored = Joint(np.array([0.30, 0.30, 0.04, 0.36]), num_letters=2)
    counts = {}
    for skips in (True, False):
        sampler = Metropolis("imh", LeftToRight(), alpha=2.0, candidates=3, skip_ends=skips)
        commit, _ = first_step(sampler, mirrored, rows=20_000, stop_ids=(1,))
        counts[skips] = float((commit.token_K == 0).float().mean())
        assert bool((commit.notes_R["lookahead"].nan_to_num() == 0).all()) == skips
    assert counts[True] == pytest.approx(0.6923, abs=0.015)  # nothing left to weigh: plain tempering
    assert counts[False] == pytest.approx(0.5807, abs=0.015)


def test_look_ahead_over_the_response_counts_later_slots() -> None:
    # Two slots are the block, the others lie ahead; the first step is from an empty canvas.
    joint = SIX[0]
    model = JointModel(joint, torch.full((30, 6), -1))
    masked_RL = torch.ones(30, 2, dtype=torch.bool)
    ahead_RW = torch.ones(30, 6, dtype=torch.bool)
    looks = {}
    for reach, ahead in (("block", masked_RL), ("response", ahead_RW)):
        sampler = Metropolis("imh", Confidence(), alpha=2.0, candidates=3, lookahead=reach)
        commit = sampler.step(state_of(masked_RL, temperature=1.0, stop_ids=(), ahead_RW=ahead), model)
        looks[reach] = commit.notes_R["lookahead"]
    chosen = commit.column_K
    row = int((commit.notes_R["distinct"] > 1).nonzero()[0, 0])
    token_L = np.full((1, 6), -1)
    token_L[0, chosen[row]] = int(commit.token_K[row])
    mass_L = np.log((joint.conditionals(token_L)[0] ** 2).sum(axis=1))
    others = [slot for slot in range(6) if slot != int(chosen[row])]
    assert any(np.isclose(looks["response"][row], mass_L[others].sum(), atol=1e-4))
    assert any(np.isclose(looks["block"][row], mass_L[1 - int(chosen[row])], atol=1e-4))


def test_damp_0_is_plain_tempering_of_each_token() -> None:
    sampler = Metropolis("imh", LeftToRight(), alpha=2.0, candidates=3, damp=0.0)
    commit, _ = first_step(sampler, TWO, rows=20_000)
    assert torch.equal(commit.notes_R["accepted"], commit.notes_R["proposed"])
    assert float((commit.token_K == 0).float().mean()) == pytest.approx(0.6923, abs=0.014)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0}, "alpha is 0.0; it must be a number above 0"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"candidates": -1}, "candidates is -1; it must be 0"),
        ({"damp": 1.5}, r"damp is 1.5; it must lie in 0\.\.1"),
        ({"position": "lcr"}, "Input should be 'confidence' or 'random'"),
        ({"lookahead": "all"}, "Input should be 'block' or 'response'"),
        ({"tokens_per_step": 2}, "'imh' has no option 'tokens_per_step'"),
    ],
)
def test_options_out_of_range_are_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        samplers.build("imh", **options)
