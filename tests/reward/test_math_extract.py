"""Which part of a completion is the answer, and when there is none."""

import time

import pytest

from reward.math.extract import MAX_TEXT_CHARS, final_answer, last_box


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{42}", "42"),
        ("So $x=\\boxed{ 42 }$.", "42"),
        ("\\fbox{42}", "42"),
        ("\\boxed {42}", "42"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1\\right.}", "\\left\\{1\\right."),
        ("\\boxed{\\boxed{42}}", "{42}"),
        ("\\boxed{3}, that is \\boxed{3.0}", "3.0"),
        ("\\boxed{1\\frac12} or \\boxed{\\frac{3}{2}}", "\\frac{3}{2}"),
        ("<answer>12</answer>", "12"),
        ("\\boxed{7} <answer>\\boxed{12}</answer> \\boxed{8}", "12"),
        ("<answer>it is \\boxed{12}</answer>", "12"),
        ("<answer>\\boxed{12}", "12"),
        ("\\boxed{42} It is 43 days or so.", "42"),
        ("\\boxed{42}.\n\nAlternatively, use symmetry.", "42"),
        ("\\boxed{42} or about fifty", "42"),
        ("<answer> **42** </answer>", "42"),
    ],
)
def test_the_last_box_or_tag_is_the_answer(completion, answer):
    assert final_answer(completion).text == answer


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{7} was the first step. The final answer is \\boxed{42}.",
        "\\boxed{7} ... final \\boxed{42}",
        "\\boxed{7} no, \\boxed{42}",
        "\\boxed{7}. Wait, I made a mistake: \\boxed{42}",
        "\\boxed{7}\n\n**Final Answer**\n\n\\boxed{42}",
        "x is 1 or 2, \\boxed{7} or so. Therefore \\boxed{42}",
        "<answer>7</answer> Correction: <answer>42</answer>",
    ],
)
def test_of_two_different_boxes_the_one_announced_as_final_counts(completion):
    assert final_answer(completion).text == "42"


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("", "no box"),
        ("The answer is 42.", "no box"),
        ("\\boxed{}", "empty"),
        ("\\boxed{ }", "empty"),
        ("\\boxed{42", "never closed"),
        ("\\boxed{7} final \\boxed{42", "never closed"),
        ("\\boxed{7}, \\boxed{42}", "several"),
        ("\\boxed{7}\\boxed{42}", "several"),
        ("\\boxed{7} and \\boxed{42}", "several"),
        ("\\boxed{7} or \\boxed{42}", "several"),
        ("\\boxed{7}, or finally the answer \\boxed{42}", "several"),
        ("\\boxed{7} then \\boxed{42}", "several"),
        ("\\boxed{7 + \\boxed{42}", "several"),
        ("\\boxed{42} or 43", "another answer"),
        ("$\\boxed{42}$, maybe 43", "another answer"),
        ("It is not \\boxed{42}", "denied"),
        ("7 rather than $\\boxed{42}$", "denied"),
        ("<answer>7</answer><answer>42</answer>", "several"),
        ("<answer>\\boxed{7} or \\boxed{42}</answer>", "several"),
        ("<answer> </answer>", "empty"),
        ("<answer>42", "no box"),
    ],
)
def test_hedges_open_boxes_and_unmarked_numbers_are_no_answer(completion, why):
    extracted = final_answer(completion)
    assert extracted.text is None
    assert why in extracted.why


def test_only_the_end_of_a_completion_is_read():
    assert final_answer("\\boxed{42}" + " " * MAX_TEXT_CHARS).text is None
    assert final_answer("\\boxed{7}" + " " * MAX_TEXT_CHARS + "\\boxed{42}").text == "42"


def test_the_last_box_of_a_published_solution_is_its_answer():
    assert last_box("First $\\boxed{1}$, then $\\boxed{-2}$.") == "-2"
    assert last_box("no box") is None
    assert last_box("\\boxed{1") is None


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "}", "<answer>", "</answer>", "\\boxed{1}", "or ", "not ", "$ ", "\\"]
)
def test_hostile_repetition_is_read_at_once(piece):
    start = time.perf_counter()
    final_answer(piece * 100_000 + "\\boxed{1}" + piece * 1000)
    assert time.perf_counter() - start < 0.5
