"""Text grows where nothing is masked to its left, whole characters at a time, and ends before a stop text."""

import itertools

import pytest

from rollout.lane import Committed
from rollout.service.assembly import Assembly

# Tokens 1..26 are letters; 30 and 31 are the two bytes of one character; 0 ends.
HALVES = {30: b"\xc3", 31: b"\xa9"}


def decode(tokens) -> str:
    return b"".join(HALVES.get(token) or bytes([96 + token]) for token in tokens).decode("utf-8", "replace")


def told(order, tokens, stop=()) -> tuple[list[str], Assembly]:
    part = Assembly(len(tokens), stop=stop, stop_ids=(0,), decode=decode)
    return [
        part.add(Committed(0, step, step + 1, [slot], [tokens[slot]], [-0.5], [0.1])) for step, slot in enumerate(order)
    ], part


def test_text_waits_for_what_stands_left_of_it() -> None:
    # Slots c, a, b in this order: nothing, then "a", then "bc".
    assert told([2, 0, 1], [1, 2, 3])[0] == ["", "a", "bc"]


def test_half_a_character_waits_for_its_other_half() -> None:
    assert told([0, 1, 2], [1, 30, 31])[0] == ["a", "", "\u00e9"]


def test_nothing_comes_after_an_end_token() -> None:
    deltas, part = told([0, 1, 2], [1, 0, 3])
    assert deltas == ["a", "", ""]
    assert part.finish("a") == ""


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_stop_text_ends_the_answer_in_any_order(order) -> None:
    # a b c d with the stop text "bc": the answer is "a", and no piece of the stop text was told before.
    deltas, part = told(order, [1, 2, 3, 4], stop=("bc",))
    assert "".join(deltas) + part.finish("abcd") == "a"
    assert (part.text, part.length) == ("a", 1)


def test_what_only_looked_like_a_stop_text_is_told_in_the_end() -> None:
    deltas, part = told([0, 1, 2], [1, 2, 4], stop=("bc",))
    assert deltas == ["a", "", "bd"]
    deltas, part = told([0, 1], [1, 2], stop=("bc",))
    assert "".join(deltas) + part.finish("ab") == "ab"
    assert part.text is None
