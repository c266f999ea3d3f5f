r"""Where in a completion the answer stands, and what number it is.

The rules are fixed, so that a model can not gain by writing several answers: the last `<answer>..</answer>` counts,
in it (or in the whole text) the last `\boxed{..}`; without either, the task says what counts. Only the last
`MAX_COMPLETION_CHARS` characters are read. Digits are ASCII.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_COMPLETION_CHARS = 4096
MAX_NUMBER_CHARS = 60

_NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\s*(?:\\?\$\s*)?
        (?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?
        (?P<decimals>\.[0-9]+)?
        (?:\s*/\s*(?P<denominator>[0-9]+))?\.?""",
    re.VERBOSE,
)


def marked_answer(completion: str) -> str | None:
    r"""Text of the last `<answer>` tag or, in it or without one, of the last `\boxed{}`; None without any mark.

    A box that is not closed is an answer that can not be read: the empty text.
    """
    text = completion[-MAX_COMPLETION_CHARS:]
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    tagged = text[start + len("<answer>") : end].strip() if start >= 0 else None
    boxed = last_box(text if tagged is None else tagged)
    return tagged if boxed is None else boxed


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{..}`, braces balanced; empty if it is never closed, None if there is no box."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return ""


def last_line(completion: str) -> str:
    """The last line that holds more than white space."""
    lines = completion[-MAX_COMPLETION_CHARS:].strip().splitlines()
    return lines[-1].strip() if lines else ""


def read_number(text: str) -> Fraction | None:
    r"""An integer, decimal or fraction, exactly; None for anything else.

    Thousands commas in groups of three, a `$` before the digits, a full stop at the end and the Unicode minus are
    accepted: `-1,234.50` is -2469/2. Exponents, percent signs, units and digits of other scripts are not.
    """
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_CHARS else None
    if match is None or (match["whole"] is None and match["decimals"] is None):
        return None
    if match["denominator"] is not None and int(match["denominator"]) == 0:
        return None
    value = Fraction((match["whole"] or "0").replace(",", "") + (match["decimals"] or ""))
    if match["denominator"] is not None:
        value /= int(match["denominator"])
    return -value if match["sign"] == "-" else value
