r"""Math-Verify for what the grammar here can not read, and what its yes is worth.

Math-Verify is generous: it drops what it does not understand (`11_2` is 11, `1-\frac{1}{\mathrm e}` is 1) and compares
with rounding. Its yes counts only if

- every token matters: for each numeral, letter, sign and command, the reading changes when that token is altered;
- the two SymPy objects agree to a relative 1e-9 at 50 digits, at several points if there are free symbols. Objects that
  have no numbers to compare (conditions, undefined functions) are not confirmed.

This runs only in the worker process. Its time limits, signals that a library call can swallow, are switched off: the
parent owns the deadline. Text goes to Math-Verify's LaTeX grammar alone; its reader of plain expressions, and SymPy's
`sympify` and `parse_expr`, evaluate Python and are never called.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reward.math.tokens import Token, UnreadableError, tokens

MAX_TOKENS = 60
NUM_POINTS = 6
DIGITS = 50
_STRUCTURE = frozenset(("\\frac", "\\sqrt", "\\binom", "\\circ", "\\and", "\\or", "\\pmod"))
_SIGNS = frozenset("+-*/^_!=<>|:%'")

Reading = Any
"""A SymPy object, or None."""


def is_mathematics(text: str) -> bool:
    """Whether a text has no words in it that a reader of formulas would have to make up a meaning for."""
    try:
        return not any(piece.kind in ("text", "word") for piece in tokens(text))
    except UnreadableError:
        return False


class MathVerify:
    """Math-Verify, imported when the first answer needs it (a second of time, 60 MB)."""

    def __init__(self) -> None:
        from math_verify import LatexExtractionConfig, parse, verify

        config = (LatexExtractionConfig(boxed_match_priority=-1),)
        self._parse: Callable[[str], list[Any]] = lambda text: parse(
            f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None
        )
        self._verify: Callable[[Any, Any], bool] = lambda gold, answer: verify(gold, answer, timeout_seconds=None)

    def confirmed(self, gold: str, answer: str) -> bool:
        """Whether Math-Verify says that two answers are equal, and the confirmation agrees."""
        pieces = tokens(gold), tokens(answer)
        if max(map(len, pieces)) > MAX_TOKENS:
            return False
        readings = [self._read(part) for part in pieces]
        if any(reading is None for reading in readings) or not self._verify(*readings):
            return False
        return all(map(self._every_token_matters, pieces, readings)) and _agree(*readings)

    def _read(self, pieces: Sequence[Token]) -> Reading:
        found = self._parse(" ".join(_latex(piece) for piece in pieces))
        return found[0] if found else None

    def _every_token_matters(self, pieces: Sequence[Token], reading: Reading) -> bool:
        return all(self._read(altered) != reading for altered in _alterations(pieces))


def _latex(piece: Token) -> str:
    if piece.kind == "text":
        return f"\\text{{{piece.text}}}"
    if piece.kind in ("begin", "end"):
        return f"\\{piece.kind}{{{piece.text}}}"
    return {"cur": "\\$", "%": "\\%"}.get(piece.kind if piece.kind == "cur" else piece.text, piece.text)


def _alterations(pieces: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens with one of them altered or left out, for each one that says something."""
    for index, piece in enumerate(pieces):
        before, after = list(pieces[:index]), list(pieces[index + 1 :])
        if piece.kind == "num":
            yield [*before, Token("num", f"{piece.text}7"), *after]
        elif piece.kind == "letter":
            yield [*before, Token("letter", "w" if piece.text != "w" else "v"), *after]
        elif piece.text in ("+", "-"):
            yield [*before, Token("sym", "-" if piece.text == "+" else "+"), *after]
        elif piece.kind in ("word", "text", "cur") or piece.text in _SIGNS or _is_statement(piece):
            yield [*before, *after]


def _is_statement(piece: Token) -> bool:
    """Whether a command says something itself, and does not only arrange what follows."""
    return piece.kind == "cmd" and piece.text not in _STRUCTURE


def _agree(gold: Reading, answer: Reading) -> bool:
    """Whether the values of two SymPy objects agree, part by part."""
    import sympy

    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _agree_in_value(gold, answer)
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return gold.shape == answer.shape and all(map(_agree, gold.flat(), answer.flat()))
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        sides = (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
        return bool(sides) and _agree(gold.start, answer.start) and _agree(gold.end, answer.end)
    if isinstance(gold, sympy.Tuple) and isinstance(answer, sympy.Tuple):
        return len(gold) == len(answer) and all(map(_agree, gold, answer))
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        unmatched = list(answer.args)
        for item in gold.args:
            partner = next((other for other in unmatched if _agree(item, other)), None)
            if partner is None:
                return False
            unmatched.remove(partner)
        return not unmatched
    return False


def _agree_in_value(gold: Reading, answer: Reading) -> bool:
    import sympy

    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if any(expression.atoms(sympy.core.function.AppliedUndef) for expression in (gold, answer)):
        return False
    source = random.Random(f"{gold}/{answer}")
    points = [
        {name: sympy.Rational(source.randint(-4999, 4999), 1009) for name in names}
        for _ in range(NUM_POINTS if names else 1)
    ]
    return all(_agree_at(gold, answer, point) for point in points)


def _agree_at(gold: Reading, answer: Reading, point: dict[Any, Any]) -> bool:
    import sympy

    a, b = (expression.subs(point).doit().evalf(DIGITS) for expression in (gold, answer))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    size = max(abs(a), abs(b))
    return bool(abs(a - b) <= size * sympy.Rational(1, 10**9))
