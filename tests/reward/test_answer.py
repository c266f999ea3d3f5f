"""Where an answer stands in a completion, and what number it is."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.answer import MAX_COMPLETION_CHARS, last_box, last_line, marked_answer, read_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" 42 ", 42),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("+7", 7),
        ("18.00", 18),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("1/3", Fraction(1, 3)),
        ("-6/4", Fraction(-3, 2)),
        ("1,234,567", 1234567),
        ("-1,234.50", Fraction(-2469, 2)),
        ("$18", 18),
        ("\\$18", 18),
        ("-$5", -5),
        ("204.", 204),
        ("007", 7),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "-",
        "$",
        "1,23",
        "12,34",
        "1e3",
        "1e999",
        "50%",
        "5 kg",
        "x",
        "1/0",
        "1//2",
        "1.2.3",
        "٤٢",
        "\N{FULLWIDTH DIGIT FOUR}",
        "½",
        "0x1F",
        "1_000",
        "nan",
        "inf",
        "--1",
        "1 2",
        "1\n2",
        "9" * 61,
        "9" * 10_000_000,
    ],
)
def test_text_that_is_no_plain_number_is_none(text):
    assert read_number(text) is None


@given(st.fractions(max_denominator=10**6))
def test_any_fraction_in_words_of_digits_reads_back(value):
    assert read_number(f"{value.numerator}/{value.denominator}") == value


@given(st.integers(-(10**15), 10**15))
def test_thousands_commas_do_not_change_a_number(value):
    assert read_number(f"{value:,}") == read_number(str(value)) == value


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("no mark", None),
        ("<answer>5</answer>", "5"),
        ("<answer>5</answer> or <answer> 6\n</answer>", "6"),
        ("<answer>5</answer> then <answer>6", "5"),
        ("<answer>6", None),
        ("6</answer>", None),
        ("<answer>", None),
        ("\\boxed{5} then \\boxed{6}", "6"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{5} then \\boxed{6", ""),
        ("\\boxed{7} <answer>8</answer>", "8"),
        ("<answer>it is \\boxed{9}</answer> \\boxed{1}", "9"),
        ("<answer></answer>", ""),
    ],
)
def test_the_last_mark_counts(completion, answer):
    assert marked_answer(completion) == answer


def test_only_the_end_of_a_long_completion_is_read():
    assert marked_answer("<answer>5</answer>" + " " * MAX_COMPLETION_CHARS) is None


def test_last_line_skips_blank_lines():
    assert last_line("1+1\n 2+2 \n\n \n") == "2+2"
    assert last_line("") == last_line(" \n ") == ""


def test_a_box_with_deep_braces_is_balanced():
    assert last_box("\\boxed{" + "{" * 1000 + "1" + "}" * 1001) == "{" * 1000 + "1" + "}" * 1000


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "\\boxed{", "{", "}", "<answer>\\boxed{"])
def test_repeated_marks_cost_no_time(piece):
    start = time.perf_counter()
    marked_answer(piece * 200_000)
    assert time.perf_counter() - start < 0.5
