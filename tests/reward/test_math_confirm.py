"""Values by numbers: exact where possible, at two precisions where not."""

from fractions import Fraction

import pytest
from mpmath import mp, mpf

from reward.math.confirm import exact_value, proportional, real_value, same_value, same_zeros
from reward.math.evaluate import Evaluator, TooBigError, UndefinedError
from reward.math.parser import read_expression
from reward.math.tokens import UnreadableError, tokens


def tree(text):
    return read_expression(tokens(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/2+1/3", Fraction(5, 6)),
        ("2^{10}-24", 1000),
        ("2^{-3}", Fraction(1, 8)),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("6/2*3", 9),
        ("\\sqrt{\\frac{4}{9}}", Fraction(2, 3)),
        ("\\sqrt[3]{-8}", -2),
        ("8^{2/3}", 4),
        ("\\binom{5}{2}", 10),
        ("5!", 120),
        ("|-3|", 3),
        ("\\lfloor 7/2 \\rfloor + \\lceil 7/2 \\rceil", 7),
        ("\\log_2 8", 3),
        ("\\log 1000", 3),
        ("\\gcd(12, 18) + \\lcm(4, 6)", 18),
        ("\\max(1, 2/3)", 1),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("1.5*10^{3}", 1500),
        ("1e3", 1000),
        ("2\\frac{1}{2}", Fraction(5, 2)),
        ("\\frac34", Fraction(3, 4)),
        ("1/2004!*2004!", 1),
        ("\\begin{vmatrix} 1 & 2 \\\\ 3 & 4 \\end{vmatrix}", -2),
    ],
)
def test_rational_values_are_exact(text, value):
    assert exact_value(tree(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\sin 30^\\circ", "0.5"),
        ("\\sin^2 x^2", None),
        ("2\\cos\\frac{\\pi}{3}", "1"),
        ("\\sin^{-1} 1", "1.5707963267948966192313216916397514420985846996875529"),
        ("e^{i\\pi}", "-1"),
        ("\\ln e^2", "2"),
        ("\\sqrt{2}\\sqrt{3}", "2.4494897427831780981972840747058913919659474806566701"),
    ],
)
def test_other_values_have_fifty_digits(text, value):
    found = real_value(tree(text)) if value is not None else None
    with mp.workdps(60):
        assert (found is None) == (value is None)
        assert value is None or abs(found - mpf(value)) < mpf(10) ** -48


@pytest.mark.parametrize(
    "text",
    ["1/2x", "\\sin(x)^2", "x2", "2 3", "2\\frac{7}{3}", "\\sqrt13", "2^3^4", "x!!", "", "+", "1+", "(1", "11_2+1"],
)
def test_what_can_be_read_in_two_ways_is_not_read(text):
    with pytest.raises(UnreadableError):
        tree(text)


def test_a_space_tells_a_coefficient_from_a_denominator():
    assert same_value(tree("1/2 x"), tree("\\frac{x}{2}")) == "equal"
    assert same_value(tree("1/(2x)"), tree("\\frac{x}{2}")) == "different"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        # e^(pi sqrt 163) is an integer to 12 decimals, 30 digits in all.
        ("640320^3+744", "e^{\\pi\\sqrt{163}}"),
        ("10^{50}", "\\sqrt{10^{100}+1}"),
        ("2^{1000}", "2^{1000}+1"),
        ("1/2004!", "1/2006!"),
        ("e^{-1000}", "e^{-1001}"),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),
        ("x", "\\sqrt{x^2}"),
        ("x^2", "x^2+10^{-60}"),
        ("\\ln(x^2)", "2\\ln x"),
    ],
)
def test_numbers_that_almost_agree_are_different(gold, answer):
    assert same_value(tree(gold), tree(answer)) == "different"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0", "\\sin\\pi"),
        ("0", "\\sqrt{3+2\\sqrt2}-1-\\sqrt2"),
        ("1", "\\cos^2 5 + \\sin^2 5"),
        ("|x|", "\\sqrt{x^2}"),
        ("2\\ln x", "\\ln(x^2)"),
        ("\\tan^2 y+1", "\\sec^2 y"),
        ("(n+1)!/n!", "n+1"),
        ("\\begin{pmatrix}6&8\\\\10&12\\end{pmatrix}", "2\\begin{pmatrix}3&4\\\\5&6\\end{pmatrix}"),
        ("\\begin{pmatrix}7&10\\\\15&22\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^2"),
    ],
)
def test_equal_values_are_found_equal_however_they_are_written(gold, answer):
    assert same_value(tree(gold), tree(answer)) == "equal"


@pytest.mark.parametrize("text", ["1/0", "0^0", "\\ln 0", "(-8)^{1/3}", "\\infty - \\infty", "\\tan\\frac{\\pi}{2}"])
def test_what_has_no_value_is_never_equal_to_a_number(text):
    assert same_value(tree("1"), tree(text)) != "equal"


@pytest.mark.parametrize("text", ["9^{9^{99}}", "e^{e^{e^{9}}}", "(10^6)!", "\\binom{10^7}{3}", "\\sin(2^{9999})"])
def test_values_beyond_the_bounds_are_not_computed(text):
    with mp.workdps(50), pytest.raises((TooBigError, UndefinedError)):
        Evaluator({}).value(tree(text))


def test_exact_numbers_too_long_to_keep_are_not_called_equal():
    assert same_value(tree("2^{99999}"), tree("2^{99999}+1")) == "undecided"
    assert same_value(tree("2^{99999}"), tree("2^{99998}")) == "different"


def test_equations_that_differ_by_a_factor_are_proportional_with_its_sign():
    assert proportional(tree("2x+4y-3"), tree("y+x/2-3/4"), positive=True) == "equal"
    assert proportional(tree("x-1"), tree("1-x"), positive=False) == "equal"
    assert proportional(tree("x-1"), tree("1-x"), positive=True) == "different"
    assert proportional(tree("3x-y+13"), tree("3x+4y+14"), positive=False) == "different"


def test_zeros_are_compared_in_both_directions():
    assert same_zeros(tree("xy-1"), tree("y-1/x")) == "equal"
    assert same_zeros(tree("y-x"), tree("(y-x)(y-2x)")) != "equal"
    assert same_zeros(tree("y-x"), tree("y-x^2")) == "different"
    assert same_zeros(tree("x^2+y^2-1"), tree("x^4+y^4-1")) == "undecided"
