"""Capacity has one owner, and every drawn prompt is accounted for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.buffer import GroupBuffer
from cluster.cursor import Visit
from rollout.records import Group, Prompt


def visit(number):
    return Visit(number, 0, Prompt(id=f"p{number}#0", task="t", text="?"))


def group(number):
    return Group(visit(number).prompt, (), ())


def test_synchronous_training_draws_exactly_one_step_per_version():
    buffer = GroupBuffer(groups_per_step=2, staleness=0, max_in_flight=100)
    assert buffer.free(version=0) == 2
    buffer.start([visit(0), visit(1)])
    assert buffer.free(version=0) == 0
    for number in (0, 1):
        buffer.put(visit(number), group(number))
    assert buffer.free(version=0) == 0
    assert buffer.take() is not None
    # two trained at version 0: (0 + 0 + 1) * 2 - 2 = 0 until the next version is out
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
    assert [number for number, _ in buffer.take()] == [0, 2]
    assert buffer.take() is None
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
        elif event == "train" and (taken := buffer.take()):
            # taken in order of visits, nothing is older than the bound when it is trained
            assert all(version - drawn_at[index] <= staleness for index, _ in taken)
            version += 1
        elif event in ("put", "drop", "fail") and running:
            index = running.pop(0)
            if event == "put":
                buffer.put(visit(index), group(index))
            else:
                getattr(buffer, event)(visit(index))
        buffer.check()
        assert buffer.num_running <= 7
