r"""Arithmetic expressions as a model writes them: an own parser with exact rationals, never `eval`.

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = "-" factor | "(" sum ")" | digits

`×`, `÷`, `·`, `−`, `\times`, `\div`, `\cdot` are read as the plain operators. Length, depth and digits are bounded, so
that hostile text costs no more than a long answer; digits are ASCII.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 200
MAX_DEPTH = 20
MAX_DIGITS = 9

_SIGNS = {
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{MINUS SIGN}": "-",
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
}
_TOKEN = re.compile(
    r"\s*([0-9]+|[-+*/()\N{MULTIPLICATION SIGN}\N{MIDDLE DOT}\N{DIVISION SIGN}\N{MINUS SIGN}]"
    r"|\\(?:times|cdot|div)(?![a-z]))"
)


class ExpressionError(ValueError):
    """The text is no expression of this grammar, or beyond its bounds."""


class Evaluated(NamedTuple):
    """What an expression says."""

    value: Fraction | None
    """Exact value; None where it divides by zero."""
    numbers: tuple[int, ...]
    """The numbers it uses, in order of appearance."""


def evaluate(text: str) -> Evaluated:
    """Parse and evaluate; ExpressionError if the text is anything but one expression."""
    parser = _Parser(_tokens(text))
    value = parser.sum(depth=0)
    if parser.token is not None:
        raise ExpressionError(f"{parser.token!r} after the end of the expression")
    return Evaluated(value, tuple(parser.numbers))


def _tokens(text: str) -> list[str]:
    text = text.strip()
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"{len(text)} characters; at most {MAX_CHARS} are read")
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"{text[position:].strip()[:1]!r} is no number, operator or parenthesis")
        tokens.append(_SIGNS.get(match[1], match[1]))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over tokens; a method per rule of the grammar."""

    def __init__(self, tokens: list[str]) -> None:
        self._rest = tokens[::-1]
        self.numbers: list[int] = []

    @property
    def token(self) -> str | None:
        return self._rest[-1] if self._rest else None

    def sum(self, depth: int) -> Fraction | None:
        value = self.product(depth)
        while self.token in ("+", "-"):
            value = _apply(self._rest.pop(), value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction | None:
        value = self.factor(depth)
        while self.token in ("*", "/"):
            value = _apply(self._rest.pop(), value, self.factor(depth))
        return value

    def factor(self, depth: int) -> Fraction | None:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        if self.token is None:
            raise ExpressionError("the expression ends where a number is due")
        token = self._rest.pop()
        if token == "-":
            return _apply("-", Fraction(0), self.factor(depth + 1))
        if token == "(":
            value = self.sum(depth + 1)
            if self.token != ")":
                raise ExpressionError("a parenthesis is not closed")
            self._rest.pop()
            return value
        if not token.isdigit() or len(token) > MAX_DIGITS:
            raise ExpressionError(f"{token[:12]!r} where a number of at most {MAX_DIGITS} digits is due")
        self.numbers.append(int(token))
        return Fraction(int(token))


def _apply(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """None, the value of a division by zero, stays None."""
    if left is None or right is None:
        return None
    if operator == "/":
        return left / right if right else None
    return {"+": left + right, "-": left - right, "*": left * right}[operator]
