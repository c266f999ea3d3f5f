import numpy as np
import pytest

import samplers
from benchmarks.finding import prompts
from benchmarks.planned_ends import EndsAsPlanned, log_normal_ends, planned_seed
from rollout import Engine, Request


def test_answers_end_where_they_are_planned_to(small):
    sampler = EndsAsPlanned(samplers.build("confidence"), small.eos_token_id)
    engine = Engine(small, sampler, block_length=4)
    requests = [Request(prompts(1, 5)[0].tolist(), 8, planned_seed(index, end)) for index, end in enumerate((0, 5, 8))]
    answers = engine.run(requests)
    assert [answer.answer_length for answer in answers] == [0, 5, 8]
    assert [answer.finish_reason for answer in answers] == ["eos", "eos", "length"]


def test_a_planned_end_leaves_the_tokens_before_it_alone(small):
    prompt = prompts(1, 5)[0].tolist()
    plain = Engine(small, samplers.build("confidence"), block_length=4).run([Request(prompt, 8, 0)])[0]
    sampler = EndsAsPlanned(samplers.build("confidence"), small.eos_token_id)
    ended = Engine(small, sampler, block_length=4).run([Request(prompt, 8, planned_seed(3, 4))])[0]
    # Block 0 holds slots 0 to 3, which are done before slot 4 is looked at.
    assert ended.tokens[:4].tolist() == plain.tokens[:4].tolist()


def test_ends_have_the_mean_that_was_asked_for_and_stay_under_the_cap():
    ends = np.array(log_normal_ends(20000, mean=16, sigma=0.8, cap=10**6))
    # standard error of the mean: 16 x sqrt(exp(0.64) - 1) / sqrt(20000) = 0.11
    assert abs(ends.mean() - 16) < 0.5
    cut = log_normal_ends(1000, mean=16, sigma=0.8, cap=20)
    assert (min(cut), max(cut)) >= (1, 20)
    assert max(cut) == 20


def test_an_end_that_a_seed_cannot_carry_is_refused():
    with pytest.raises(ValueError, match="end is -1"):
        planned_seed(0, -1)
