"""Whether two expressions have the same value, found out by numbers.

Expressions without symbols are evaluated, others at `NUM_POINTS` rational points of both signs that depend on the two
texts, where the first one is real if it is real anywhere. Rational values compare exactly. Others are computed twice,
at 50 digits and at 110, and more where long numbers stand in the expression: a difference that shrinks with the
precision is zero, one that stays is not. So two numbers that agree to 49 digits differ, and a rounded sine of pi is 0.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from mpmath import mp, mpc, mpf

from reward.math.evaluate import Evaluator, Value
from reward.math.tree import Node, contains, number, symbols

NUM_POINTS = 10
MIN_POINTS = 3
DIGITS = 50
MORE_DIGITS = 110
MAX_DIGITS = 2500

Answer = Literal["equal", "different", "undecided"]
Point = dict[str, Fraction]
Computation = Callable[[Evaluator], Value]


def same_value(gold: Node, answer: Node) -> Answer:
    """Equal where both are defined, for every value of the symbols."""
    names = symbols(gold) | symbols(answer)
    if not names:
        return compare_at(gold, answer, {})
    points = usable_points(gold, names, salt=repr((gold, answer)))
    return _at_all_points(compare_at(gold, answer, point) for point in points)


def proportional(gold: Node, answer: Node, *, positive: bool) -> Answer:
    """Whether the quotient of two expressions is one number (a positive one), as it is for the same equation."""
    names = symbols(gold) | symbols(answer)
    points = usable_points(gold, names, salt=repr((gold, answer)))
    quotients = [(point, _quotient(answer, gold, point)) for point in points]
    usable = [(point, quotient) for point, quotient in quotients if quotient]
    if len(usable) < MIN_POINTS:
        return "undecided"
    first, quotient = usable[0]
    if positive and not (isinstance(quotient, mpf) and quotient > 0):
        return "different"
    # a(p) b(q) = a(q) b(p) for all points q
    return _at_all_points(
        _compare(_product(gold, first, answer, point), _product(gold, point, answer, first)) for point, _ in usable
    )


def same_zeros(gold: Node, answer: Node) -> Answer:
    """Whether two expressions vanish at the same places; each must be linear in one of its symbols."""
    forth, back = _vanishes_with(gold, answer), _vanishes_with(answer, gold)
    if "different" in (forth, back):
        return "different"
    return "equal" if forth == back == "equal" else "undecided"


def _vanishes_with(first: Node, second: Node) -> Answer:
    """Whether the second is zero at zeros of the first."""
    names = symbols(first) | symbols(second)
    for name in sorted(symbols(first)):
        points = usable_points(number(0), names, salt=repr((first, second, name)))
        zeros = [(point, _linear_zero(first, name, point)) for point in points]
        result = _at_all_points(
            compare_at(number(0), second, {**point, name: zero}) for point, zero in zeros if zero is not None
        )
        if result != "undecided":
            return result
    return "undecided"


def _linear_zero(node: Node, name: str, point: Point) -> Fraction | None:
    """Where a node that is exactly linear in one symbol vanishes, the others kept; None if it is not, or nowhere."""
    values = [_exactly(node, {**point, name: Fraction(at)}) for at in (1, 2, 3)]
    at_1, at_2, at_3 = values
    if at_1 is None or at_2 is None or at_3 is None:
        return None
    slope = at_2 - at_1
    return 1 - at_1 / slope if slope and at_3 - at_2 == slope else None


def compare_at(gold: Node, answer: Node, point: Point) -> Answer:
    """The same at one point."""
    return _compare(_evaluation(gold, point), _evaluation(answer, point))


def real_value(node: Node) -> mpf | None:
    """The value of an expression without symbols, at 50 digits; None if it is not real or not defined."""
    with mp.workdps(DIGITS):
        value = _approximately(node, {})
    return value if isinstance(value, mpf) else None


def exact_value(node: Node) -> Fraction | None:
    """The rational number that an expression without symbols is exactly; None otherwise."""
    return _exactly(node, {}) if not symbols(node) else None


def usable_points(gold: Node, names: frozenset[str], *, salt: str) -> list[Point]:
    """Points at which the gold expression is real; any points if it is real at fewer than `MIN_POINTS`."""
    source = random.Random(hashlib.sha256(salt.encode()).digest())
    points = [{name: _coordinate(source, index) for name in sorted(names)} for index in range(NUM_POINTS)]
    if contains(gold, lambda node: node.op == "constant" and node.name == "i"):
        return points
    real = [point for point in points if not isinstance(_approximately(gold, point), mpc | None)]
    return real if len(real) >= MIN_POINTS else points


def _coordinate(source: random.Random, index: int) -> Fraction:
    """Below 1 and up to 5 in turn, two of three positive."""
    size = Fraction(source.randint(101, 997), 1009) if index % 2 else Fraction(source.randint(1021, 4999), 997)
    return -size if index % 3 == 2 else size


def _at_all_points(results: Iterable[Answer]) -> Answer:
    """Different if so at one point, equal if so at `MIN_POINTS` of them."""
    found = list(results)
    if "different" in found:
        return "different"
    return "equal" if found.count("equal") >= MIN_POINTS else "undecided"


def _evaluation(node: Node, point: Point) -> Computation:
    def compute(evaluator: Evaluator) -> Value:
        evaluator.point = point
        return evaluator.value(node)

    return compute


def _product(a: Node, point_a: Point, b: Node, point_b: Point) -> Computation:
    left, right = _evaluation(a, point_a), _evaluation(b, point_b)
    return lambda evaluator: evaluator.product(left(evaluator), right(evaluator))


def _compare(gold: Computation, answer: Computation) -> Answer:
    """Two values, computed as often as it takes."""
    low = _pair(gold, answer, DIGITS)
    if low is None or (isinstance(low.a, Fraction) and isinstance(low.b, Fraction)):
        return "undecided" if low is None else "equal" if low.a == low.b else "different"
    more = min(2 * low.evaluator.digits, MAX_DIGITS)
    if more > 20:
        low = _pair(gold, answer, DIGITS + more)
    high = _pair(gold, answer, MORE_DIGITS + more)
    if low is None or high is None:
        return "undecided"
    certain = not high.evaluator.rounded and 2 * high.evaluator.digits <= MAX_DIGITS
    with mp.workdps(MORE_DIGITS + more):
        return _judge(low.a, low.b, high.a, high.b, certain=certain)


class _Pair(NamedTuple):
    """Two values, and what was seen while computing them."""

    a: Value
    b: Value
    evaluator: Evaluator


def _pair(gold: Computation, answer: Computation, digits: int) -> _Pair | None:
    evaluator = Evaluator({})
    with mp.workdps(digits):
        try:
            return _Pair(gold(evaluator), answer(evaluator), evaluator)
        except (ArithmeticError, ValueError):
            return None


def _judge(a1: Value, b1: Value, a2: Value, b2: Value, *, certain: bool) -> Answer:
    """Verdict on values at the lower (1) and the higher (2) precision, element by element for matrices."""
    if isinstance(a2, tuple) or isinstance(b2, tuple):
        if not (isinstance(a2, tuple) and isinstance(b2, tuple) and _shape(a2) == _shape(b2)):
            return "different"
        cells = zip(_cells(a1), _cells(b1), _cells(a2), _cells(b2), strict=True)
        verdicts = [_judge(*cell, certain=certain) for cell in cells]
        return "different" if "different" in verdicts else "undecided" if "undecided" in verdicts else "equal"
    a1, b1, a2, b2 = (_real(value) for value in (a1, b1, a2, b2))
    noise = abs(a1 - a2) + abs(b1 - b2)
    size = max(abs(a2), abs(b2))
    difference = abs(a2 - b2)
    if difference <= size * mpf(10) ** (15 - mp.dps) or difference <= noise * mpf(10) ** -40:
        return "equal" if certain else "undecided"
    is_stable = noise <= difference * mpf(10) ** -3
    return "different" if is_stable else "undecided"


def _shape(matrix: Value) -> tuple[int, int]:
    return len(matrix), len(matrix[0])


def _cells(matrix: Value) -> Sequence[Value]:
    return [cell for row in matrix for cell in row]


def _real(value: Value) -> Value:
    return mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _approximately(node: Node, point: Point) -> Value | None:
    """The value as an mpmath number; a real one where the imaginary part is rounding."""
    with mp.workdps(DIGITS):
        value = _attempt(node, point)
        if value is None or isinstance(value, tuple):
            return value
        value = _real(value)
        if isinstance(value, mpc) and abs(value.imag) <= abs(value.real) * mpf(10) ** (15 - DIGITS):
            return value.real
        return value


def _quotient(top: Node, bottom: Node, point: Point) -> Value | None:
    a, b = _approximately(top, point), _approximately(bottom, point)
    if a is None or b is None or isinstance(a, tuple) or isinstance(b, tuple) or b == 0:
        return None
    return a / b


def _exactly(node: Node, point: Point) -> Fraction | None:
    with mp.workdps(DIGITS):
        value = _attempt(node, point)
    return value if isinstance(value, Fraction) else None


def _attempt(node: Node, point: Point) -> Value | None:
    try:
        return Evaluator(point).value(node)
    except (ArithmeticError, ValueError):
        return None
