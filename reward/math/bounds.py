r"""What is refused before any reading: text that could cost much, or that states a task instead of its answer.

An answer has at most `MAX_ANSWER_CHARS` characters, brackets nest at most `MAX_NESTING` deep, a numeral has at most
`MAX_DIGITS` digits, powers stand at most `MAX_POWERS` on top of each other, exponents and arguments of factorials are
short, and no factorial is taken of a factorial. Integrals, sums, products and limits are tasks: a grader that evaluates
them would accept the question as its own answer. Dots leave out what they should say. Code is not an answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from reward.math.tokens import MAX_ANSWER_CHARS, Token, UnreadableError, tokens
from reward.math.vocabulary import RESTATING

MAX_NESTING = 30
MAX_DIGITS = 100
MAX_POWERS = 3
MAX_EXPONENT_DIGITS = 6
MAX_FACTORIAL_DIGITS = 4
MAX_POWERS_AND_FACTORIALS = 24

_OPEN = frozenset(("(", "[", "{", "\\{"))
_CLOSE = frozenset((")", "]", "}", "\\}"))
_CODE = re.compile(r"__|\\(?:input|include|write|def|csname|catcode|usepackage)(?![a-zA-Z])|\blambda\s*:|\bimport\b")


def refusal(text: str) -> str | None:
    """Why an answer is not even read; None if it may be."""
    if len(text) > MAX_ANSWER_CHARS:
        return f"{len(text)} characters; at most {MAX_ANSWER_CHARS} are read"
    if _CODE.search(text):
        return "code is not an answer"
    try:
        pieces = tokens(text)
    except UnreadableError as error:
        return str(error)
    return _refusal_of_tokens(pieces)


def _refusal_of_tokens(pieces: tuple[Token, ...]) -> str | None:
    for piece in pieces:
        if piece.kind == "num" and len(piece.text) > MAX_DIGITS:
            return f"a numeral of {len(piece.text)} digits; at most {MAX_DIGITS} are read"
        if piece.kind == "dots":
            return "dots leave a part of the answer out"
        if piece.text in RESTATING:
            return f"{piece.text} states a task, not its answer"
    if sum(piece.text in ("^", "!") for piece in pieces) > MAX_POWERS_AND_FACTORIALS:
        return f"more than {MAX_POWERS_AND_FACTORIALS} powers and factorials"
    return _nesting(pieces)


class _Group(NamedTuple):
    """An open bracket: exponents around it, and whether a factorial stands in it."""

    exponents: int
    factorial: bool


def _nesting(pieces: tuple[Token, ...]) -> str | None:
    """Brackets in brackets, powers in exponents, factorials of factorials."""
    groups = [_Group(0, factorial=False)]
    before, closed = Token("sym", ""), _Group(0, factorial=False)
    for piece in pieces:
        if piece.text in _OPEN:
            groups.append(_Group(groups[-1].exponents + (before.text == "^"), factorial=False))
        elif piece.text in _CLOSE and len(groups) > 1:
            closed = groups.pop()
            groups[-1] = groups[-1]._replace(factorial=groups[-1].factorial or closed.factorial)
        elif piece.text == "!":
            if before.text == "!" or (before.text in _CLOSE and closed.factorial):
                return "a factorial of a factorial"
            groups[-1] = groups[-1]._replace(factorial=True)
        why = _length(before, piece, groups[-1]) or _depth(groups)
        if why is not None:
            return why
        before = piece
    return None


def _length(before: Token, piece: Token, group: _Group) -> str | None:
    """Numerals in exponents and before a factorial sign."""
    if piece.text == "!" and before.kind == "num" and len(before.text) > MAX_FACTORIAL_DIGITS:
        return f"the factorial of a numeral of {len(before.text)} digits; at most {MAX_FACTORIAL_DIGITS} are read"
    in_exponent = before.text == "^" or group.exponents
    if in_exponent and piece.text.isdigit() and len(piece.text) > MAX_EXPONENT_DIGITS:
        return f"an exponent of {len(piece.text)} digits; at most {MAX_EXPONENT_DIGITS} are read"
    return None


def _depth(groups: list[_Group]) -> str | None:
    if len(groups) > MAX_NESTING + 1:
        return f"brackets nest deeper than {MAX_NESTING}"
    if groups[-1].exponents > MAX_POWERS:
        return f"more than {MAX_POWERS} powers on top of each other"
    return None
