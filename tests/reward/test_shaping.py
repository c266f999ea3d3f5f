"""Scores after penalties, by hand; failures and what is as graded stay as they are."""

import numpy as np
import pytest

from reward.config import ShapingConfig
from reward.shaping import shape_all, shaped
from rollout.records import Failed, Scored, Trajectory


def answer(length, *, slots=10, finish="eos"):
    zeros = np.zeros(slots, dtype=np.float32)
    return Trajectory(
        tokens=np.zeros(slots, dtype=np.int64),
        step_map=np.arange(slots, dtype=np.int32),
        logprobs=zeros,
        entropies=zeros,
        num_steps=slots,
        num_forwards=slots,
        finish_reason=finish,
        answer_length=length,
        seed=0,
        sampler="random",
        exact_likelihood=True,
        temperature=1.0,
        top_p=1.0,
        block_length=slots,
    )


RIGHT = Scored(1.0, {"correct": 1.0, "format": 0.5})


def value(length, **config):
    return shaped(RIGHT, answer(length), ShapingConfig(**config)).value


def test_defaults_change_nothing():
    assert shaped(RIGHT, answer(10), ShapingConfig()) is RIGHT


def test_length_penalty_is_in_proportion_to_the_slots_used():
    # .3 * 4 / 10
    assert value(4, length_penalty=0.3) == pytest.approx(0.88)
    assert value(0, length_penalty=0.3) == 1.0


def test_format_part_is_added_with_its_weight():
    assert value(4, format_weight=0.2) == pytest.approx(1.1)
    assert value(4, format_weight=-0.2) == pytest.approx(0.9)


def test_overlong_penalty_rises_over_the_last_slots():
    # The last 4 of 10: 0 up to 6, half at 8, all of it at 10.
    found = [value(length, overlong_slots=4, overlong_penalty=2.0) for length in (5, 6, 8, 10)]
    assert found == pytest.approx([1.0, 1.0, 0.0, -1.0])


def test_truncated_answers_leave_their_group_if_asked_for():
    config = ShapingConfig(truncated="drop")
    cut, whole = answer(10, finish="length"), answer(9)
    first, second, third = shape_all([RIGHT, RIGHT, Failed("grader", "died")], [cut, whole, cut], config)
    assert first == Failed("truncated", "the answer filled all 10 slots without an end token")
    assert second is RIGHT
    assert third == Failed("grader", "died")
    assert shaped(RIGHT, cut, ShapingConfig()) is RIGHT


def test_parts_stay_as_graded():
    assert shaped(RIGHT, answer(9), ShapingConfig(length_penalty=1.0)).parts == RIGHT.parts


def test_format_weight_needs_a_format_part():
    with pytest.raises(ValueError, match="no part named format, only correct"):
        shaped(Scored(1.0, {"correct": 1.0}), answer(1), ShapingConfig(format_weight=0.1))
