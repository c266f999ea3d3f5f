"""What law the answers follow: position-first rules keep the model's, drawing first does not."""

import pytest
import torch

import samplers
from samplers.draw import Law
from samplers.sampler import Sampler
from tests.samplers.table_model import TableModel, columns, fill, one_step, state_of

# Two independent slots: the most likely token and the other one.
INDEPENDENT = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
# Joint law of two dependent slots: P(aa), P(ab), P(ba), P(bb).
JOINT = torch.tensor([[0.54, 0.06], [0.08, 0.32]])
NUMBER = 40_000  # four standard deviations of a share: at most .01


def conditionals(token_RL: torch.Tensor, masked_RL: torch.Tensor) -> TableModel:
    """The toy joint's true conditionals of each slot, given the other one where it is known."""
    marginals = torch.stack([JOINT.sum(1), JOINT.sum(0)])
    given_first, given_second = JOINT / JOINT.sum(1, keepdim=True), (JOINT / JOINT.sum(0, keepdim=True)).T
    known_RL, token_RL = ~masked_RL, token_RL.clamp(min=0)
    first_RV = torch.where(known_RL[:, 1:], given_second[token_RL[:, 1]], marginals[0])
    second_RV = torch.where(known_RL[:, :1], given_first[token_RL[:, 0]], marginals[1])
    model = TableModel(torch.stack([first_RV, second_RV], dim=1))
    model.attention_RL = torch.rand(len(token_RL), 2, generator=torch.Generator().manual_seed(len(token_RL)))
    return model


def shares(sampler, predict, *, number: int = NUMBER, temperature: float = 1.0) -> torch.Tensor:
    """Observed law (2, 2) of the two tokens."""
    token_RL, _ = fill(sampler, predict, rows=number, length=2, temperature=temperature)
    return torch.bincount(token_RL[:, 0] * 2 + token_RL[:, 1], minlength=4).view(2, 2) / number


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.build("ar"),
        samplers.build("random"),
        samplers.build("confidence"),
        samplers.build("margin"),
        samplers.build("entropy"),
        samplers.build("egi", first_temperature=None),
        samplers.build("attn", tokens_per_step=1),
        samplers.build("max_s"),
        samplers.build("confidence", position_temperature=0.5),
    ],
    ids=lambda sampler: sampler.name,
)
def test_position_first_rules_reproduce_the_joint_law(sampler) -> None:
    assert float((shares(sampler, conditionals) - JOINT).abs().max()) < 0.01


def test_drawing_first_has_the_law_worked_out_by_hand() -> None:
    found = shares(samplers.build("lcr"), conditionals)
    expected = torch.tensor([[0.7452, 0.0228], [0.1104, 0.1216]])
    assert float((found - expected).abs().max()) < 0.01
    entropies = torch.special.entr(torch.stack([found, JOINT])).sum((1, 2)).tolist()
    assert entropies == pytest.approx([0.805, 1.068], abs=0.02)


def test_drawing_first_hardly_ever_commits_an_unlikely_token() -> None:
    def others(name: str) -> list[float]:
        found = shares(samplers.build(name), lambda *_: TableModel(INDEPENDENT))
        return [float(found[1].sum()), float(found[:, 1].sum())]

    # P(a is other), P(b is other): four standard deviations of .01 are .002.
    assert others("lcr") == pytest.approx([0.01, 0.40], abs=0.01)
    assert others("lcr")[0] == pytest.approx(0.01, abs=0.002)
    for name in ("confidence", "ar", "random"):
        assert others(name) == pytest.approx([0.10, 0.40], abs=0.01)


def test_first_commit_of_drawing_first_is_split_as_worked_out_by_hand() -> None:
    sampler = samplers.build("lcr")
    state = state_of(torch.ones(NUMBER, 2, dtype=torch.bool), temperature=1.0)
    commit = sampler.step(state, TableModel(INDEPENDENT))
    kinds = torch.bincount(commit.column_K * 2 + commit.token_K, minlength=4) / NUMBER
    # (a, top), (a, other), (b, top), (b, other)
    assert float((kinds - torch.tensor([0.90, 0.0, 0.06, 0.04])).abs().max()) < 0.01
    assert kinds[1] == 0


def test_drawing_first_is_refused_as_exact_and_equals_confidence_when_greedy() -> None:
    table = (2 * torch.randn(12, 9, generator=torch.Generator().manual_seed(5))).softmax(-1)
    assert not samplers.build("lcr").exact_likelihood
    for options in ({}, {"tokens_per_step": 3}, {"tau": 0.5}, {"f": 1.5}, {"gamma": 1.0}):
        one, other = (one_step(samplers.build(name, **options), table) for name in ("lcr", "confidence"))
        for field in ("column_K", "token_K", "logprob_K", "entropy_K"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field))


def test_drawing_first_judges_drawn_tokens() -> None:
    # Whatever is drawn, only the likely token of slot 0 reaches .8.
    table = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).expand(NUMBER, 2, 2)
    commit = samplers.build("lcr", tau=0.8).step(
        state_of(torch.ones(NUMBER, 2, dtype=torch.bool), temperature=1.0), TableModel(table)
    )
    assert len(commit.row_K) == NUMBER
    assert set(commit.token_K[commit.column_K == 0].tolist()) == {0}


def test_drawing_first_can_score_on_the_sampling_law() -> None:
    # Cut to one token both draws are certain: the lower slot goes first; untempered, .6 goes before .5.
    table = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    cut = {"temperature": 1.0, "top_k_R": torch.tensor([1])}
    assert columns(one_step(samplers.build("lcr"), table, **cut)) == [1]
    assert columns(one_step(samplers.build("lcr", score_on="sampling"), table, **cut)) == [0]


def test_recorded_logprobs_of_a_mixed_batch_are_each_rows_own_law() -> None:
    table = (2 * torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(6))).softmax(-1)
    state = state_of(
        torch.ones(4, 3, dtype=torch.bool),
        temperature_R=torch.tensor([0.0, 0.7, 1.0, 1.3]),
        top_p_R=torch.tensor([1.0, 1.0, 0.8, 1.0]),
        top_k_R=torch.tensor([0, 0, 0, 5]),
    )
    for name in ("ar", "lcr"):
        commit = samplers.build(name, tokens_per_step=3).step(state, TableModel(table))
        law_KV = Law.of(state, commit.row_K).apply(table[commit.row_K, commit.column_K].log()).softmax(-1)
        expected_K = law_KV.gather(1, commit.token_K[:, None])[:, 0]
        torch.testing.assert_close(commit.logprob_K.exp(), expected_K)
        assert int((law_KV[commit.row_K == 3] > 0).sum(dim=1).max()) == 5


def test_every_likelihood_declared_exact_is_the_law_of_the_committed_token() -> None:
    table = (2 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(8))).softmax(-1)
    state_changes = {"temperature": 0.8}
    for name in samplers.names():
        sampler: Sampler = samplers.build(name)
        state = state_of(torch.ones(2, 5, dtype=torch.bool), sampler=sampler, **state_changes)
        commit = sampler.step(state, TableModel(table, torch.rand(2, 5)))
        law_KV = (table[commit.row_K, commit.column_K].log() / 0.8).softmax(-1)
        replayed_K = law_KV.gather(1, commit.token_K[:, None])[:, 0].log()
        if sampler.exact_likelihood:
            torch.testing.assert_close(commit.logprob_K, replayed_K)
        else:
            assert name in ("lcr", "credit", "egi", "imh", "imh_sequence")
