"""Chains over whole runs: weights, invariance and effective sizes worked out by hand and counted out."""

import math

import numpy as np
import pytest
import torch

from samplers.chain import effective_size, resample, walk
from samplers.metropolis import Metropolis
from samplers.position import Confidence, LeftToRight
from samplers.sequence_chain import SequenceChain
from tests.samplers.enumerable import Joint, JointModel, chi_square, decoding_law
from tests.samplers.table_model import fill

# Two slots left to right: p_i = (.6, .4), p_j(.|a) = (.5, .5), p_j(.|b) = (.9, .1).
TWO = Joint(np.array([0.30, 0.30, 0.36, 0.04]), num_letters=2)
SIX = Joint.random(0)


def runs(joint: Joint, *, alpha: float, rows: int, position) -> tuple[np.ndarray, torch.Tensor]:
    """Answers of tempered runs by number, and their log W (R,)."""
    sampler = Metropolis("run", position, alpha=alpha, candidates=0)
    token_RL, commits = fill(
        sampler,
        lambda token_RL, _: JointModel(joint, token_RL),
        rows=rows,
        length=joint.L,
        temperature=1.0,
        stop_ids=(),
    )
    log_w_R = torch.stack([commit.notes_R["log_mass"] for commit in commits]).double().sum(dim=0)
    return joint.number(token_RL), log_w_R


def test_weights_of_the_two_slot_model() -> None:
    # c_i = .36 + .16 = .52; after a c_j = .5, after b .82: W = .26 and .4264.
    number_R, log_w_R = runs(TWO, alpha=2.0, rows=400, position=LeftToRight())
    expected_R = torch.where(torch.from_numpy(number_R) < 2, 0.26, 0.4264).double()
    torch.testing.assert_close(log_w_R.exp(), expected_R, rtol=1e-5, atol=0)
    # From b to a with .26 / .4264 = .6098.
    chain = walk(torch.tensor([[0.4264, 0.26]] * 2).double().log(), torch.tensor([[0.6097], [0.6099]]).double())
    assert chain.current_R.tolist() == [1, 0]


def test_recorded_weights_are_those_of_the_path_counted_out() -> None:
    _, log_w_X = decoding_law(SIX, alpha=2.0)
    number_R, log_w_R = runs(SIX, alpha=2.0, rows=500, position=Confidence())
    np.testing.assert_allclose(log_w_R.numpy(), log_w_X[number_R], atol=1e-4)


@pytest.mark.parametrize(("joint", "alpha", "by_confidence"), [(TWO, 2.0, False), (SIX, 2.0, True), (SIX, 4.0, True)])
def test_kernel_leaves_the_tempered_law_as_it_is(joint, alpha, by_confidence) -> None:
    law_X, log_w_X = decoding_law(joint, alpha=alpha, by_confidence=by_confidence)
    kernel_XX = law_X[None, :] * np.minimum(1, np.exp(log_w_X[None, :] - log_w_X[:, None]))
    kernel_XX += np.diag(1 - kernel_XX.sum(axis=1))
    target_X = joint.tempered(alpha)
    np.testing.assert_allclose(target_X @ kernel_XX, target_X, atol=1e-12)
    if joint is TWO:
        np.testing.assert_allclose(target_X, [0.2892, 0.2892, 0.4165, 0.0051], atol=1e-4)


def test_chains_over_recorded_runs_keep_the_tempered_law_by_chi_square() -> None:
    """The first run of each chain is an exact draw from the target; after three proposals it still is one."""
    number, alpha = 8000, 2.0
    target_X, (law_X, log_w_X) = SIX.tempered(alpha), decoding_law(SIX, alpha=alpha)
    first_R = np.random.default_rng(5).choice(len(target_X), size=number, p=target_X)
    drawn_N, log_w_N = runs(SIX, alpha=alpha, rows=3 * number, position=Confidence())
    answer_RK = np.column_stack([first_R, drawn_N.reshape(number, 3)])
    log_w_RK = torch.cat([torch.from_numpy(log_w_X[first_R])[:, None], log_w_N.view(number, 3)], dim=1)
    chain = walk(log_w_RK, torch.rand(number, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    ended_R = answer_RK[np.arange(number), chain.current_R.numpy()]
    statistic, freedom = chi_square(np.bincount(ended_R, minlength=len(target_X)), target_X)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)
    # Most chains have moved, and what they moved to alone does not follow the target.
    assert float((chain.current_R > 0).double().mean()) > 0.8
    statistic, freedom = chi_square(np.bincount(drawn_N, minlength=len(target_X)), target_X)
    assert statistic > freedom + 50 * math.sqrt(2 * freedom)
    statistic, freedom = chi_square(np.bincount(drawn_N, minlength=len(target_X)), law_X)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_walk_takes_better_proposals_always_and_worse_ones_by_the_ratio() -> None:
    # W = 1, 2, .5: the second is better; the third is accepted below .5 / 2 = .25.
    log_weight_RK = torch.tensor([[1.0, 2.0, 0.5]] * 2).double().log()
    chain = walk(log_weight_RK, torch.tensor([[0.99, 0.24], [0.99, 0.26]]).double())
    assert chain.current_R.tolist() == [2, 1]
    assert chain.proposed_R.tolist() == [2, 2]
    assert chain.accepted_R.tolist() == [2, 1]


def test_a_proposal_that_is_the_same_is_no_move() -> None:
    log_weight_RK = torch.zeros(1, 4).double()
    chain = walk(log_weight_RK, torch.full((1, 3), 0.5).double(), same_RK=torch.tensor([[0, 0, 2, 2]]))
    assert (chain.proposed_R.tolist(), chain.accepted_R.tolist(), chain.current_R.tolist()) == ([1], [1], [3])


def test_effective_size_of_equal_and_of_lopsided_weights() -> None:
    # (1 + 2 + 3)^2 / (1 + 4 + 9) = 36 / 14
    log_weight_RK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1e-30, 1.0, 1e-30]]).double().log() - 700
    torch.testing.assert_close(effective_size(log_weight_RK), torch.tensor([3.0, 36 / 14, 1.0]).double())


def test_resampling_follows_the_weights() -> None:
    uniform_R = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weight_RK = torch.tensor([1.0, 2.0, 5.0]).double().log().expand(20_000, -1) - 500
    shares = torch.bincount(resample(log_weight_RK, uniform_R), minlength=3) / 20_000
    # four standard deviations: .014
    assert shares.tolist() == pytest.approx([0.125, 0.25, 0.625], abs=0.014)


def test_a_sequence_chooses_by_its_own_seed_whatever_is_beside_it() -> None:
    sampler = SequenceChain("imh_sequence", Metropolis("run", Confidence(), candidates=0), candidates=3)
    log_weight_RK = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seed_R = torch.arange(50) * 7919
    together = sampler.choose(log_weight_RK, seed_R, number=2)
    alone = [sampler.choose(log_weight_RK[row : row + 1], seed_R[row : row + 1], number=2) for row in range(50)]
    assert together.index_R.tolist() == [int(one.index_R) for one in alone]
    assert len(set(together.index_R.tolist())) == 4
    assert together.index_R.tolist() != sampler.choose(log_weight_RK, seed_R, number=3).index_R.tolist()


def test_fewer_than_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates is -1; it must be 0"):
        SequenceChain("imh_sequence", Metropolis("run", Confidence(), candidates=0), candidates=-1)
