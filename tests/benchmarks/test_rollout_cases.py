"""Every case of the rollout benchmark runs, and its promises of equal tokens hold, on a model that takes no time."""

import pytest

from benchmarks.batching_cases import CAPPED, ENDED, SHARED, groups, ragged
from benchmarks.finding import Lengths, identity, number_differing
from benchmarks.law import law_distance
from benchmarks.rollout_cases import dual, exact, share

SHORT = Lengths(prompt=12, answer=16, block=8)


@pytest.mark.parametrize("greedy", [True, False])
def test_exact_case(small, stock, greedy):
    finding = exact(small, stock, batch=2, steps=16, lengths=SHORT, greedy=greedy, repetitions=1)
    assert finding.differences == ()
    assert ("identical to the plain decoder's" in finding.report) == greedy
    assert 0 < finding.ratios["fraction of the floor"] < 1


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_dual_case(small, stock, threshold):
    finding = dual(small, stock, batch=2, threshold=threshold, lengths=SHORT, repetitions=1)
    assert finding.differences == ()
    assert "2 of 2 answers identical to the slow reference's" in finding.report


def test_ragged_case(small, stock):
    lengths = Lengths(prompt=6, answer=16, block=4)
    finding = ragged(small, stock, sequences=9, slots=4, lengths=lengths, tokens_per_step=2, repetitions=1)
    assert finding.differences == ()
    assert "9 of 9 answers identical" in finding.report
    assert set(finding.ratios) == {f"against {CAPPED}", f"against {ENDED}"}


def test_groups_case(small_block_causal):
    lengths = Lengths(prompt=32, answer=8, block=4)
    finding = groups(small_block_causal, num_prompts=2, num_samples=3, lengths=lengths, repetitions=1)
    assert "6 of 6 answers the same on both sides" in finding.report
    assert finding.ratios[SHARED] > 0


def test_share_case(small):
    finding = share(small, batch=2, steps=16, lengths=SHORT, repetitions=1)
    assert finding.ratios["model time over the rest"] > 0
    assert finding.report.startswith("outside the model: ")


def test_an_answer_that_differs_is_counted_and_reported():
    differing = number_differing([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert differing == 1
    line, differences = identity("case", differing, 2, "the reference's")
    assert line == "tokens: 1 of 2 answers identical to the reference's"
    assert differences == ("case: 1 of 2 answers differ from the reference's",)


def test_the_law_is_compared_on_answers_that_can_be_counted():
    distance, chance = law_distance(number=50)
    assert 0 < distance <= 2
    assert 0 < chance <= 2
