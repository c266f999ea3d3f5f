"""The parser of Countdown answers against trees whose value is known, and against hostile text."""

import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.expression import MAX_CHARS, MAX_DEPTH, ExpressionError, evaluate

LEAVES = st.integers(0, 999)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.just("neg"), inner),
        st.tuples(st.sampled_from("+-*/"), inner, inner),
    ),
    max_leaves=7,
)
SPELLINGS = {
    "+": ["+"],
    "-": ["-", "\N{MINUS SIGN}"],
    "*": ["*", "\N{MULTIPLICATION SIGN}", "\N{MIDDLE DOT}", "\\times "],
    "/": ["/", "\N{DIVISION SIGN}", "\\div "],
}


def value_of(tree):
    """Exact value of a tree, None where it divides by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    operands = [value_of(branch) for branch in tree[1:]]
    if None in operands or (tree[0] == "/" and operands[1] == 0):
        return None
    if tree[0] == "neg":
        return -operands[0]
    left, right = operands
    return {"+": left + right, "-": left - right, "*": left * right}[tree[0]] if tree[0] != "/" else left / right


def leaves_of(tree):
    return [tree] if isinstance(tree, int) else [leaf for branch in tree[1:] for leaf in leaves_of(branch)]


def text_of(tree, rng):
    """The tree as text; only parentheses that no reading needs are left out."""
    space = " " * rng.randrange(2)
    if isinstance(tree, int):
        return f"{space}{tree}"
    if tree[0] == "neg":
        return f"-{space}({text_of(tree[1], rng)})"
    left, right = (text_of(branch, rng) for branch in tree[1:])
    return f"({left}){space}{rng.choice(SPELLINGS[tree[0]])}{space}({right})"


@settings(max_examples=150, deadline=None)
@given(TREES, st.integers(0, 2**32))
def test_fully_parenthesised_trees_have_the_tree_value(tree, seed):
    text = text_of(tree, random.Random(seed))
    if len(text) > MAX_CHARS:
        return
    evaluated = evaluate(text)
    assert evaluated.value == value_of(tree)
    assert list(evaluated.numbers) == leaves_of(tree)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("+-*/"), LEAVES), max_size=8), LEAVES)
def test_flat_chains_follow_precedence_from_left_to_right(chain, first):
    # The oracle: signed terms, each a chain of factors.
    terms, sign = [], 1
    term = Fraction(first)
    for operator, number in chain:
        if operator in "+-":
            terms.append((sign, term))
            sign, term = (1 if operator == "+" else -1), Fraction(number)
        elif term is not None:
            term = term * number if operator == "*" else term / number if number else None
    terms.append((sign, term))
    expected = None if any(t is None for _, t in terms) else sum(s * t for s, t in terms)
    assert evaluate(str(first) + "".join(f"{o}{n}" for o, n in chain)).value == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30+93-100", 23),
        ("2-3-4", -5),
        ("2-(3-4)", 3),
        ("12/4/3", 1),
        ("12/(4/3)", 9),
        ("1/3*3", 1),
        ("-2*3", -6),
        ("2*-3", -6),
        ("--5", 5),
        ("7 / 2", Fraction(7, 2)),
        ("007", 7),
    ],
)
def test_hand_made_expressions_have_their_exact_value(text, value):
    assert evaluate(text).value == value


@pytest.mark.parametrize("text", ["1/0", "5/(3-3)", "1+1/(2-2)*0", "-(1/0)", "0/0"])
def test_division_by_zero_has_no_value_but_parses(text):
    assert evaluate(text).value is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "1+",
        "(1",
        "1)",
        "()",
        "1 2",
        "2(3)",
        "(2)(3)",
        "2**3",
        "7//2",
        "2^3",
        "1e999",
        "0x10",
        "1_000",
        "1.5",
        "1,2",
        "+3",
        "x",
        "abs(3)",
        "__import__('os')",
        "٣+٤",
        "\N{FULLWIDTH DIGIT ONE}+1",
        "²",
        "5!",
        "3 mod 2",
        "\\timesx 3",
        "3\\frac 4",
        "1\x000",
        "1=1",
    ],
)
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ExpressionError):
        evaluate(text)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10,
        "1" * 100_000,
        "(" * 100_000 + "1",
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
        "-" * 150 + "1",
        "1" + "+1" * MAX_CHARS,
    ],
)
def test_text_beyond_the_bounds_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ExpressionError):
        evaluate(text)
    assert time.perf_counter() - start < 0.5


def test_text_at_the_bounds_is_read():
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1
    assert evaluate("999999999*" * 19 + "1").value == 999999999**19
