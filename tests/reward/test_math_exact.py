"""The fast path of exact rationals, and what is refused before any reading."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.math.bounds import refusal
from reward.math.exact import read_number, same_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("025", 25),
        ("204.", 204),
        (".5", Fraction(1, 2)),
        ("18.00", 18),
        ("1,234,567", 1234567),
        ("10,\\!080", 10080),
        ("11,\\! 111,\\! 111,\\! 100", 11111111100),
        ("14{,}916", 14916),
        ("$42$", 42),
        ("3/4", Fraction(3, 4)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("\\dfrac34", Fraction(3, 4)),
        ("\\frac9{19}", Fraction(9, 19)),
        ("\\frac{1}2", Fraction(1, 2)),
        ("-\\frac{35}{9}", Fraction(-35, 9)),
        ("\\frac{-33}{2}", Fraction(-33, 2)),
        ("1\\frac{4}{5}", Fraction(9, 5)),
        ("-1\\frac{4}{5}", Fraction(-9, 5)),
        ("137 \\frac{1}{2}", Fraction(275, 2)),
        ("1 1/2", Fraction(3, 2)),
    ],
)
def test_plain_numbers_are_read_exactly(text, value):
    assert read_number(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", ".", "1,23", "12,34,567", "1/0", "\\frac{1}{0}", "1e3", "50%", "\\$5", "5 cm", "x", "11_2", "1 2"),
        *("2\\frac{7}{3}", "1 3/2", "2\\frac{-1}{3}", "1.5\\frac{1}{2}", "٤٢", "0x1F", "1_000", "nan", "9" * 200),
        *("True", "\\frac{1}{\\frac{1}{2}}", "--1"),
    ],
)
def test_other_text_is_left_to_the_reader_of_expressions(text):
    assert read_number(text) is None


@given(st.fractions(max_denominator=10**6))
def test_any_fraction_reads_back_in_all_its_spellings(value):
    top, bottom = value.numerator, value.denominator
    assert read_number(f"{top}/{bottom}").value == value
    assert read_number(f"\\frac{{{top}}}{{{bottom}}}").value == value


@pytest.mark.parametrize(
    ("gold", "answer", "is_same"),
    [
        ("18", "18.00", True),
        ("1/2", "0.5", True),
        ("1/2", "2/4", True),
        ("0.0000001", "0.0000002", False),
        ("0.0000001", "0.00000012", False),
        ("5.4", "5.44", False),
        ("1000000000", "1000000001", False),
        ("1", "0.99999999999", False),
        # 1/3 has no finite decimal: ten digits of it are 3.3e-11 away, four are 1e-4 away.
        ("1/3", "0.3333333333", True),
        ("1/3", "0.3333", False),
        # A gold of six decimals and six digits is taken as rounded; a shorter one is not.
        ("0.333333", "1/3", True),
        ("0.333334", "1/3", False),
        ("0.33", "1/3", False),
        ("3.141593", "3.14159265", True),
        ("3.141593", "3.1415", False),
    ],
)
def test_decimals_stand_for_fractions_only_where_they_can_not_be_written_out(gold, answer, is_same):
    assert same_number(read_number(gold), read_number(answer)) is is_same


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1" * 301, "characters"),
        ("9" * 101, "a numeral of 101 digits"),
        ("(" * 31 + "1" + ")" * 31, "nest"),
        ("2^{2^{2^{2^{2}}}}", "powers on top"),
        ("2^{9999999}", "an exponent of 7 digits"),
        ("99999!", "the factorial of a numeral of 5 digits"),
        ("((9!)!)!", "a factorial of a factorial"),
        ("9!!", "a factorial of a factorial"),
        ("(9!+1)!", "a factorial of a factorial"),
        ("x!" * 13 + "x^2" * 13, "powers and factorials"),
        ("\\int_0^{12} 1 dx", "states a task"),
        ("\\sum_{k=1}^{100} k", "states a task"),
        ("\\prod_{k=1}^{3} k", "states a task"),
        ("\\lim_{x \\to 0} x", "states a task"),
        ("1, 2, \\ldots, n", "dots"),
        ("1, 2, ..., n", "dots"),
        ("0.333…", "dots"),
        ("__import__('os').system('id')", "code"),
        ("\\input{/etc/passwd}", "code"),
        ("42?", "'?' has no place"),
        ("٤٢", "has no place"),
        ("\\begin{tikzpicture}", "environment"),
        ("\\text{open", "never closed"),
    ],
)
def test_what_could_cost_much_or_restates_the_task_is_refused(text, why):
    assert why in refusal(text)


@pytest.mark.parametrize(
    "text",
    ["42", "2^{2^{10}}", "\\frac{1}{2004!}", "5! \\cdot 5!", "x^2+1", "\\text{Monday}", "9" * 100, "1 \\pm \\sqrt{19}"],
)
def test_answers_within_the_bounds_are_not_refused(text):
    assert refusal(text) is None
