"""The prompt order is fixed by the seed, and no visit is lost or done twice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cursor import Cursor, CursorState
from tests.cluster.standins import LetterTask


def cursor(seed=0, sizes=(3, 2), weights=(2.0, 1.0)):
    return Cursor([LetterTask(name, size) for name, size in zip("ab", sizes, strict=True)], weights, seed=seed)


def test_tasks_take_turns_by_weight():
    # next turns are due at a: 1/2, 1, 3/2, 2, ...  b: 1, 2, ...; a tie goes to the task named first
    assert [visit.prompt.task for visit in cursor().draw(9)] == ["a", "a", "b", "a", "a", "b", "a", "a", "b"]


def test_every_epoch_visits_every_row_once_in_another_order():
    visits = [visit for visit in cursor(sizes=(16, 1)).draw(48) if visit.prompt.task == "a"]
    epochs = [[visit.prompt.gold["id"] for visit in visits[start : start + 16]] for start in (0, 16)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"a/{index}" for index in range(16))
    assert epochs[0] != epochs[1]
    assert [visit.epoch for visit in visits[:32]] == [0] * 16 + [1] * 16


def test_same_row_in_another_epoch_is_another_group():
    ids = [visit.prompt.id for visit in cursor().draw(30)]
    assert len(set(ids)) == 30
    assert {"b/0#0", "b/0#1", "b/1#0"} <= set(ids)


def test_seed_decides_the_order_and_nothing_else():
    first, again, other = ([v.prompt.id for v in cursor(seed, (50, 50)).draw(60)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_drawing_in_small_or_large_portions_gives_the_same_visits():
    small, large = cursor(), cursor()
    assert [visit for _ in range(10) for visit in small.draw(1)] == large.draw(10)


def test_state_is_the_frontier_and_the_done_visits_above_it():
    drawn = cursor()
    drawn.draw(6)
    drawn.finish([0, 1, 4])
    assert drawn.state() == CursorState(frontier=2, done_above=(4,))
    drawn.finish([3, 2])
    assert drawn.state() == CursorState(frontier=5)


def test_unfinished_visits_are_drawn_again_after_a_resume():
    before = cursor()
    drawn = before.draw(6)
    before.finish([0, 1, 4])
    after = cursor()
    after.load(CursorState.model_validate_json(before.state().model_dump_json()))
    assert [visit.number for visit in after.draw(4)] == [2, 3, 5, 6]
    assert after.state() == before.state()
    after.load(before.state())
    assert after.draw(2) == [drawn[2], drawn[3]]


def test_a_visit_cannot_be_done_twice_nor_before_it_is_drawn():
    drawn = cursor()
    drawn.draw(2)
    drawn.finish([1])
    for number in (1, 2):
        with pytest.raises(ValueError, match=f"visit {number} was not drawn or is done already"):
            drawn.finish([number])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_any_sequence_of_crashes_finishes_each_visit_exactly_once(portions, random):
    finished: Counter[int] = Counter()
    state = CursorState()
    for portion in portions:
        attempt = cursor()
        attempt.load(state)
        numbers = [visit.number for visit in attempt.draw(portion)]
        done = random.sample(numbers, random.randint(0, portion))
        attempt.finish(done)
        finished.update(done)
        state = attempt.state()
    last = cursor()
    last.load(state)
    rest = [visit.number for visit in last.draw(10)]
    finished.update(rest)
    assert set(finished.values()) == {1}
    assert set(range(min(rest))) <= set(finished)
