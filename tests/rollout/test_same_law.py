"""The engine and the plain decoder it is timed against draw answers from the same law.

125 answers can be counted: three slots, five tokens, a model whose law is far from even. Total variation of two equal
laws is that of chance; 1500 answers each put it near 0.14, and another order of slots gives an answer law 0.33 away.
"""

import pytest

from benchmarks.rollout import law_distance


def test_engine_and_plain_decoder_draw_from_the_same_law():
    distance, chance = law_distance(number=1500)
    assert distance < 1.3 * chance


@pytest.mark.parametrize("sampler", ["confidence", "random"])
def test_the_comparison_sees_a_sampler_with_another_law(sampler):
    # Position-first rules keep the law of the slot they choose; low-confidence remasking favours likely tokens.
    distance, chance = law_distance(number=1500, sampler=sampler)
    assert distance > 1.8 * chance
