"""Capacity has one owner, and every drawn prompt is accounted for."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.buffer import GroupBuffer
from cluster.checkpointing import RunState, write_entry
from cluster.cursor import CursorState, Visit
from rollout.records import Group, Prompt, Scored
from tests.cluster.standins import trajectory


def visit(number):
    return Visit(number, 0, Prompt(id=f"p{number}#0", task="t", text="?"))


def group(number, version=0):
    answer = trajectory(f"p{number}#0", weights_version=(version, version))
    return Group(visit(number).prompt, [answer], [Scored(1.0)])


def test_synchronous_training_draws_exactly_one_step_per_version():
    buffer = GroupBuffer(groups_per_step=2, staleness=0, max_in_flight=100)
    assert buffer.free(version=0) == 2
    buffer.start([visit(0), visit(1)])
    assert buffer.free(version=0) == 0
    for number in (0, 1):
        buffer.put(visit(number), group(number))
    assert buffer.free(version=0) == 0
    assert buffer.reserve() is not None
    # two reserved at version 0: (0 + 0 + 1) * 2 - 2 = 0 until the next version is out
    assert buffer.free(version=0) == 0
    assert buffer.free(version=1) == 2


def test_staleness_one_lets_the_pool_run_one_step_ahead():
    buffer = GroupBuffer(groups_per_step=2, staleness=1, max_in_flight=100)
    assert buffer.free(version=0) == 4
    assert GroupBuffer(groups_per_step=2, staleness=1, max_in_flight=3).free(version=0) == 3


def test_dropped_and_failed_visits_give_their_place_back():
    buffer = GroupBuffer(groups_per_step=2, staleness=0, max_in_flight=100)
    buffer.start([visit(0), visit(1)])
    buffer.drop(visit(0))
    buffer.fail(visit(1))
    assert buffer.free(version=0) == 2
    assert buffer.counts == {"drawn": 2, "trained": 0, "dropped": 1, "failed": 1}


def test_groups_leave_in_the_order_of_their_visits_not_of_their_finish():
    buffer = GroupBuffer(groups_per_step=2, staleness=1, max_in_flight=100)
    buffer.start([visit(number) for number in range(4)])
    for number in (3, 2, 0):
        buffer.put(visit(number), group(number))
    assert [entry.visit.number for entry in buffer.reserve()] == [0, 2]
    assert buffer.reserve() is None
    assert len(buffer) == 1


def test_counters_continue_after_a_resume():
    ended = {"trained": 6, "dropped": 1, "failed": 0}
    buffer = GroupBuffer(groups_per_step=2, staleness=0, max_in_flight=100, ended=ended)
    assert buffer.free(version=3) == 2
    assert buffer.counts["drawn"] == 7
    buffer.check()


def test_settings_that_would_never_draw_are_refused():
    with pytest.raises(ValueError, match="max_in_flight 0 must be at least 1"):
        GroupBuffer(groups_per_step=2, staleness=0, max_in_flight=0)


@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.lists(st.sampled_from(["draw", "put", "drop", "fail", "train"]), max_size=80),
)
def test_no_group_is_ever_drawn_too_far_ahead_and_the_sum_holds(per_step, staleness, events):
    buffer = GroupBuffer(groups_per_step=per_step, staleness=staleness, max_in_flight=7)
    number, version, running, drawn_at = 0, 0, [], {}
    for event in events:
        if event == "draw":
            for _ in range(buffer.free(version)):
                buffer.start([visit(number)])
                running.append(number)
                drawn_at[number] = version
                number += 1
        elif event == "train":
            for entry in buffer.expire(version):
                assert version - drawn_at[entry.visit.number] > staleness
            if taken := buffer.reserve():
                assert all(version - drawn_at[entry.visit.number] <= staleness for entry in taken)
                buffer.commit(entry.visit.number for entry in taken)
                version += 1
        elif event in ("put", "drop", "fail") and running:
            index = running.pop(len(running) // 2)
            if event == "put":
                buffer.put(visit(index), group(index, drawn_at[index]))
            else:
                getattr(buffer, event)(visit(index))
        buffer.check()
        assert buffer.num_running <= 7


def test_a_group_is_too_old_when_its_oldest_answer_is():
    buffer = GroupBuffer(groups_per_step=1, staleness=1, max_in_flight=100)
    buffer.start([visit(0), visit(1)])
    buffer.put(visit(0), group(0, version=0))
    buffer.put(visit(1), group(1, version=1))
    assert buffer.expire(1) == []
    # version 2 may train what 1 and 2 drew
    assert [entry.visit.number for entry in buffer.expire(2)] == [0]
    assert len(buffer) == 1
    assert buffer.counts["drawn"] == 1
    buffer.check()


def test_what_no_update_has_taken_waits_again():
    buffer = GroupBuffer(groups_per_step=1, staleness=0, max_in_flight=100)
    buffer.start([visit(0)])
    buffer.put(visit(0), group(0))
    first = buffer.reserve()
    buffer.check()
    assert len(buffer) == buffer.counts["trained"] == 0
    buffer.release()
    assert buffer.reserve() == first
    buffer.commit([0])
    buffer.check()
    assert buffer.counts["trained"] == 1


def test_nothing_is_drawn_beyond_the_bytes_but_a_step_is_always_filled():
    buffer = GroupBuffer(groups_per_step=2, staleness=3, max_in_flight=100, max_bytes=1)
    buffer.start([visit(0), visit(1)])
    buffer.put(visit(0), group(0))
    assert buffer.num_bytes > 1
    assert buffer.free(version=0) == 6
    buffer.put(visit(1), group(1))
    assert buffer.free(version=0) == 0


def test_waiting_groups_and_their_visits_survive_a_checkpoint():
    buffer = GroupBuffer(groups_per_step=2, staleness=1, max_in_flight=100)
    buffer.start([visit(0), visit(1), visit(2)])
    buffer.put(visit(1), group(1))
    saved = json.loads(json.dumps([write_entry(entry) for entry in buffer.entries]))
    state = RunState(
        step=0, cursor=CursorState(), ended=buffer.ended, run_id=None, first_evaluation={}, fixed={}, buffered=saved
    )
    again = GroupBuffer(groups_per_step=2, staleness=1, max_in_flight=100)
    again.load(state.ended, state.entries)
    again.check()
    (entry,) = again.entries
    assert entry.visit == visit(1)
    (answer,), (expected,) = entry.group.trajectories, group(1).trajectories
    assert all(np.array_equal(getattr(answer, n), getattr(expected, n)) for n in ("tokens", "step_map", "logprobs"))
    assert (answer.logprobs.dtype, answer.weights_version) == (np.float32, (0, 0))
    assert entry.group.scores == [Scored(1.0)]
