"""Values of expressions: exact rationals as long as they last, then mpmath at the working precision.

A value is a `Fraction`, an mpmath real or complex number, or a matrix (rows of values). `UndefinedError` says that
there is no value at this point (a division by zero, a power of a negative number with two readings), `TooBigError`
that it would cost too much to compute; both come before the work is done. Roots of negative numbers are real where
their degree is odd, else on the principal branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from mpmath import mp, mpc, mpf

from reward.math.tree import Node

MAX_BITS = 1 << 16
"""Size of exact numbers; above it they are rounded."""
MAX_EXPONENT = 10**9
MAX_MAGNITUDE_BITS = 256
"""Bits before the point of what goes into exp, log, sin, .."""
MAX_FACTORIAL = 10**5
MAX_MATRIX_POWER = 8

Value = Any
"""`Fraction | mpf | mpc`, or a tuple of rows of them; mpmath has no types."""


class UndefinedError(ArithmeticError):
    """No value at this point."""


class TooBigError(ArithmeticError):
    """The value would cost too much to compute."""


class Evaluator:
    """Value of a tree at one point.

    `digits` grows to the decimal digits of the largest rational that was rounded on the way: a difference that small
    numbers make to a large one shows only at a precision beyond them. `rounded` says that an exact number was too long
    to be kept.
    """

    def __init__(self, point: Mapping[str, Fraction]) -> None:
        self.point = point
        self.digits = 0
        self.rounded = False

    def value(self, node: Node) -> Value:
        """Value of a node; UndefinedError or TooBigError if it has none."""
        operation: Callable[..., Value] | None = getattr(self, f"_{node.op}", None)
        if operation is None:
            raise UndefinedError(f"no value for {node.op}")
        if node.op in ("number", "symbol", "constant", "function", "matrix"):
            return _plain(operation(node))
        return _plain(operation(*(self.value(arg) for arg in node.args)))

    def product(self, a: Value, b: Value) -> Value:
        """Product of two values."""
        return _plain(self._mul(a, b))

    def _number(self, node: Node) -> Value:
        return node.value

    def _symbol(self, node: Node) -> Value:
        return self.point[node.name]

    def _constant(self, node: Node) -> Value:
        if node.name == "infinity":
            raise UndefinedError("infinity in an expression")
        return {"pi": +mp.pi, "e": +mp.e, "i": mpc(0, 1)}[node.name]

    def _add(self, a: Value, b: Value) -> Value:
        if isinstance(a, tuple) or isinstance(b, tuple):
            return _each_pair(self._add, a, b)
        return self._kept(a + b) if _exact(a, b) else self._mp(a) + self._mp(b)

    def _sub(self, a: Value, b: Value) -> Value:
        return self._add(a, self._neg(b))

    def _neg(self, a: Value) -> Value:
        return tuple(tuple(-cell for cell in row) for row in a) if isinstance(a, tuple) else -a

    def _mul(self, a: Value, b: Value) -> Value:
        if isinstance(a, tuple) and isinstance(b, tuple):
            return self._matrix_product(a, b)
        if isinstance(a, tuple) or isinstance(b, tuple):
            matrix, scalar = (a, b) if isinstance(a, tuple) else (b, a)
            return tuple(tuple(self._mul(cell, scalar) for cell in row) for row in matrix)
        return self._kept(a * b) if _exact(a, b) else self._mp(a) * self._mp(b)

    def _div(self, a: Value, b: Value) -> Value:
        if isinstance(b, tuple):
            raise UndefinedError("division by a matrix")
        if b == 0:
            raise UndefinedError("division by zero")
        return self._mul(a, 1 / b)

    def _pow(self, base: Value, exponent: Value) -> Value:
        if isinstance(exponent, tuple):
            raise UndefinedError("a matrix as an exponent")
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._integer_power(base, exponent.numerator)
        if isinstance(base, tuple) or base == 0:
            raise UndefinedError("this power has no value")
        if isinstance(base, Fraction | mpf) and base < 0:
            raise UndefinedError("a power of a negative number has two readings")
        if isinstance(exponent, Fraction) and exponent.denominator <= 64:
            return self._integer_power(self._root(base, Fraction(exponent.denominator)), exponent.numerator)
        x, y = self._mp(base), self._mp(exponent)
        if abs(y) * (abs(mp.log(x)) + 1) > MAX_EXPONENT:
            raise TooBigError("a power")
        return mp.power(x, y)

    def _integer_power(self, base: Value, exponent: int) -> Value:
        if isinstance(base, tuple):
            if not 1 <= exponent <= MAX_MATRIX_POWER:
                raise UndefinedError("this power of a matrix is not computed")
            power = base
            for _ in range(exponent - 1):
                power = self._matrix_product(power, base)
            return power
        if base == 0 and exponent <= 0:
            raise UndefinedError("zero to a power that is not positive")
        if isinstance(base, Fraction):
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size <= 1 or size * abs(exponent) <= MAX_BITS:
                return base ** (exponent if size > 1 else exponent % 2 + 2)
            self.rounded = True
        if abs(exponent) > MAX_EXPONENT:
            raise TooBigError("a power")
        return mp.power(self._sized(base), exponent)

    def _root(self, x: Value, degree: Value) -> Value:
        if isinstance(x, tuple) or not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= 64:
            raise UndefinedError("this root is not computed")
        n = degree.numerator
        if isinstance(x, Fraction):
            sign = -1 if x < 0 else 1
            top, bottom = _integer_root(abs(x.numerator), n), _integer_root(x.denominator, n)
            if top is not None and bottom is not None and (sign > 0 or n % 2):
                return Fraction(sign * top, bottom)
        y = self._mp(x)
        if isinstance(y, mpf) and y < 0 and n % 2:
            return -mp.root(-y, n)
        return mp.root(y, n)

    def _factorial(self, x: Value) -> Value:
        if isinstance(x, Fraction) and x.denominator == 1:
            if x < 0:
                raise UndefinedError("the factorial of a negative integer")
            if x > MAX_FACTORIAL:
                raise TooBigError("a factorial")
            if x.numerator * max(x.numerator.bit_length(), 1) <= MAX_BITS:
                return Fraction(math.factorial(x.numerator))
            self.rounded = True
        if isinstance(x, tuple) or abs(x) > MAX_FACTORIAL:
            raise TooBigError("a factorial")
        return mp.gamma(self._mp(x) + 1)

    def _binomial(self, n: Value, k: Value) -> Value:
        if isinstance(n, tuple) or isinstance(k, tuple) or abs(n) > MAX_FACTORIAL or abs(k) > MAX_FACTORIAL:
            raise TooBigError("a binomial coefficient")
        if _exact(n, k) and n.denominator == k.denominator == 1 and 0 <= n <= 4096 and k >= 0:
            return Fraction(math.comb(n.numerator, k.numerator))
        if _exact(n, k) and n.denominator == 1:
            raise UndefinedError("this binomial coefficient is not computed")
        return mp.binomial(self._mp(n), self._mp(k))

    def _abs(self, x: Value) -> Value:
        if isinstance(x, tuple):
            raise UndefinedError("bars around a matrix")
        return abs(x)

    def _floor(self, x: Value) -> Value:
        return Fraction(math.floor(self._off_integers(x)))

    def _ceil(self, x: Value) -> Value:
        return Fraction(math.ceil(self._off_integers(x)))

    def _degree(self, x: Value) -> Value:
        return self._mul(x, mp.pi / 180)

    def _det(self, matrix: Value) -> Value:
        if len(matrix) != len(matrix[0]) or len(matrix) > 4:
            raise UndefinedError("this determinant is not computed")
        if len(matrix) == 1:
            return matrix[0][0]
        total: Value = Fraction(0)
        for column, cell in enumerate(matrix[0]):
            minor = tuple(row[:column] + row[column + 1 :] for row in matrix[1:])
            term = self._mul(cell, self._det(minor))
            total = self._add(total, self._neg(term) if column % 2 else term)
        return total

    def _matrix(self, node: Node) -> Value:
        rows = tuple(tuple(self.value(cell) for cell in row.args) for row in node.args)
        if any(isinstance(cell, tuple) for row in rows for cell in row):
            raise UndefinedError("a matrix in a matrix")
        return rows

    def _matrix_product(self, a: Value, b: Value) -> Value:
        if len(a[0]) != len(b):
            raise UndefinedError("matrices that do not fit")
        columns = list(zip(*b, strict=True))
        return tuple(tuple(self._dot(row, column) for column in columns) for row in a)

    def _dot(self, row: Value, column: Value) -> Value:
        total: Value = Fraction(0)
        for a, b in zip(row, column, strict=True):
            total = self._add(total, self._mul(a, b))
        return total

    def _function(self, node: Node) -> Value:
        values = [self.value(arg) for arg in node.args]
        if any(isinstance(value, tuple) for value in values):
            raise UndefinedError("a function of a matrix")
        if node.name in ("gcd", "lcm", "max", "min"):
            return _of_several(node.name, values)
        if node.name == "log":
            base = self._mp(values[1]) if len(values) > 1 else mpf(10)
            below = self._log(base)
            if below == 0:
                raise UndefinedError("a logarithm to the base 1")
            return _exact_log(values, base) or self._log(self._sized(values[0])) / below
        x = self._sized(values[0])
        if node.name == "ln":
            return self._log(x)
        if node.name in ("exp", "sinh", "cosh", "tanh", "cis") and abs(x) > MAX_EXPONENT:
            raise TooBigError(node.name)
        if node.name == "cis":
            return mp.expj(x)
        if node.name not in _MPMATH_NAMES:
            raise UndefinedError(f"no function {node.name}")
        return getattr(mp, _MPMATH_NAMES[node.name])(x)

    def _log(self, x: Value) -> Value:
        if x == 0:
            raise UndefinedError("the logarithm of zero")
        return mp.log(x)

    def _mp(self, x: Value) -> Value:
        """The value as an mpmath number at the working precision."""
        if not isinstance(x, Fraction):
            return x
        bits = max(x.numerator.bit_length(), x.denominator.bit_length())
        self.digits = max(self.digits, bits * 3 // 10)
        return mpf(x.numerator) / x.denominator

    def _sized(self, x: Value) -> Value:
        """The same, bounded: the argument of exp, log, sin costs as much as it has bits before the point."""
        y = self._mp(x)
        if y != 0 and mp.mag(y) > MAX_MAGNITUDE_BITS:
            raise TooBigError("an argument")
        return y

    def _kept(self, x: Fraction) -> Value:
        """An exact result, rounded if it has grown too long."""
        if max(x.numerator.bit_length(), x.denominator.bit_length()) <= MAX_BITS:
            return x
        self.rounded = True
        return mpf(x.numerator) / x.denominator

    def _off_integers(self, x: Value) -> Value:
        """A real number that rounding can not have carried over an integer."""
        if isinstance(x, Fraction):
            return x
        if not isinstance(x, mpf) or abs(x - mp.nint(x)) < mpf(10) ** (20 - mp.dps) or mp.mag(x) > MAX_MAGNITUDE_BITS:
            raise UndefinedError("rounding of a number too close to an integer")
        return x


_MPMATH_NAMES = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")},
    **{"arcsin": "asin", "arccos": "acos", "arctan": "atan"},
}


def _exact(*values: Value) -> bool:
    return all(isinstance(value, Fraction) for value in values)


def _plain(value: Value) -> Value:
    """A real number where the imaginary part is exactly zero; UndefinedError for what is no number."""
    if isinstance(value, mpc) and value.imag == 0:
        value = value.real
    if isinstance(value, mpf | mpc) and not mp.isfinite(value):
        raise UndefinedError("no finite value")
    return value


def _each_pair(operation: Callable[[Value, Value], Value], a: Value, b: Value) -> Value:
    fits = isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and len(a[0]) == len(b[0])
    if not fits:
        raise UndefinedError("matrices that do not fit")
    return tuple(tuple(operation(x, y) for x, y in zip(*rows, strict=True)) for rows in zip(a, b, strict=True))


def _integer_root(x: int, n: int) -> int | None:
    """The integer whose n-th power is x, if there is one."""
    if x < 2:
        return x
    if n == 2:
        root = math.isqrt(x)
        return root if root * root == x else None
    low, high = 1, 1 << (x.bit_length() // n + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**n < x:
            low = middle + 1
        else:
            high = middle
    return low if low**n == x else None


def _exact_log(values: list[Value], base: Value) -> Fraction | None:
    """The logarithm where it is a whole number."""
    x, b = values[0], values[1] if len(values) > 1 else Fraction(10)
    if not _exact(x, b) or x <= 0 or b <= 1 or b.denominator != 1:
        return None
    exponent = round(mp.log(mpf(x.numerator) / x.denominator) / mp.log(base))
    return Fraction(exponent) if exponent and abs(exponent) < 10**4 and b**exponent == x else None


def _of_several(name: str, values: list[Value]) -> Value:
    if not _exact(*values):
        raise UndefinedError(f"{name} of numbers that are not rational")
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if any(value.denominator != 1 for value in values):
        raise UndefinedError(f"{name} of fractions")
    numbers = [value.numerator for value in values]
    return Fraction(math.gcd(*numbers) if name == "gcd" else math.lcm(*numbers))
