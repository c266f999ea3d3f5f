r"""Plain numbers as exact rationals, without SymPy: the fast path that settles most answers.

A plain number is an integer, a decimal, a fraction of integers (`3/4`, `\frac{3}{4}`, `\frac34`) or a mixed number
(`1\frac{3}{4}`, `1 3/4`, the fraction below one), with a sign, thousands separators and a full stop at its end.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 110

_DECIMAL = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+(?:,\\!\s?[0-9]{3}|\{,\}[0-9]{3})*)(?:\.[0-9]*)?|\.[0-9]+"
_PLAIN = re.compile(
    rf"""\s*\$?\s*(?P<sign>[-+\N{{MINUS SIGN}}]?)\s*(?:
        (?P<decimal>{_DECIMAL})
        |(?:(?P<whole>[0-9]+)\s*)?\\[dtc]?frac\s*(?:
            \{{\s*(?P<minus>-?)\s*(?P<top>[0-9]+)\s*\}}\s*\{{\s*(?P<bottom>[0-9]+)\s*\}}
            |\s*(?P<top1>[0-9])\s*(?P<bottom1>[0-9])|\s*(?P<top2>[0-9])\s*\{{(?P<bottom2>[0-9]+)\}}
            |\s*\{{(?P<top3>[0-9]+)\}}\s*(?P<bottom3>[0-9]))
        |(?:(?P<whole4>[0-9]+)\ +)?(?P<top4>[0-9]+)\s*/\s*(?P<bottom4>[0-9]+)
    )\s*\.?\s*\$?\s*\.?\s*""",
    re.VERBOSE,
)
_SEPARATORS = re.compile(r",\\!\s?|\{,\}|,")


class Number(NamedTuple):
    """A plain number; `decimals` counts the digits after its point and is None for a fraction."""

    value: Fraction
    decimals: int | None
    digits: int = 0
    """Significant digits of a decimal."""


def read_number(text: str) -> Number | None:
    """The plain number that a whole text is; None for anything else."""
    match = _PLAIN.fullmatch(text) if len(text) <= MAX_CHARS else None
    if match is None:
        return None
    negative = match["sign"] not in ("", "+")
    if match["decimal"] is not None:
        numeral = _SEPARATORS.sub("", match["decimal"])
        value = Fraction(numeral + "0" if numeral.endswith(".") else numeral)
        _, _, after = numeral.partition(".")
        digits = len(numeral.replace(".", "").lstrip("0"))
        return Number(-value if negative else value, len(after), digits)
    top, bottom = next(
        (int(match[f"top{n}"]), int(match[f"bottom{n}"])) for n in ("", 1, 2, 3, 4) if match[f"top{n}"] is not None
    )
    if bottom == 0:
        return None
    value = Fraction(-top if match["minus"] else top, bottom)
    whole = match["whole"] or match["whole4"]
    if whole is not None:
        if not 0 <= value < 1 or match["minus"]:
            return None
        value += int(whole)
    return Number(-value if negative else value, None)


def same_number(gold: Number, answer: Number) -> bool:
    """Equal as rationals, or as a decimal that stands for a number it can not write out.

    A decimal answer within 1e-9 of a fraction that has no finite decimal is that fraction. A gold decimal of six or
    more digits after the point is taken as rounded: a fraction or longer decimal that rounds to it equals it.
    """
    if gold.value == answer.value:
        return True
    if gold.decimals is None and answer.decimals:
        return not _is_finite_decimal(gold.value) and abs(answer.value - gold.value) <= abs(gold.value) / 10**9
    return rounds_to(gold, answer.value, answer.decimals)


def rounds_to(gold: Number, value: Fraction, decimals: int | None) -> bool:
    """Whether a gold decimal of six or more decimals and digits is the rounding of a value that is written longer."""
    if gold.decimals is None or gold.decimals < 6 or gold.digits < 6:
        return False
    if decimals is not None and decimals <= gold.decimals:
        return False
    return abs(value - gold.value) * 2 <= Fraction(1, 10**gold.decimals)


def _is_finite_decimal(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
