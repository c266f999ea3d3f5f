"""Units, currencies and nouns behind a number.

A unit may be missing in the answer or in the gold; two that differ are two answers. A percent sign may be missing in
the answer only: 50% is neither 50 nor 0.5. Words that change a number (`million`, `half`, `squared`) or leave it open
(`or`, `about`, `at least`) are no units.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reward.math.tokens import Token, UnreadableError

PERCENT = "%"
DEGREE = "degree"
MAX_WORDS = 4

_NAMES = {
    "degree": "degree deg degrees",
    "percent": "% percent pct percentage",
    "dollar": "dollar dollars usd bucks",
    "cent": "cent cents",
    "inch": "inch inches in",
    "foot": "foot feet ft",
    "yard": "yard yards yd",
    "mile": "mile miles mi",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "meter": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "gram": "g gm gram grams",
    "kg": "kg kilogram kilograms",
    "pound": "lb lbs pound pounds",
    "ounce": "oz ounce ounces",
    "liter": "l liter liters litre litres",
    "second": "s sec secs second seconds",
    "minute": "min mins minute minutes",
    "hour": "h hr hrs hour hours",
    "mph": "mph",
    "am": "am a.m a.m.",
    "pm": "pm p.m p.m.",
    "unit": "unit units",
}
_BASIC = {word: PERCENT if name == "percent" else name for name, words in _NAMES.items() for word in words.split()}
_FILLERS = frozenset(("of", "the", "a", "an", "each", "total", "distinct", "different", "possible"))
_DENIED = frozenset(
    (
        *(
            "and",
            "or",
            "not",
            "plus",
            "minus",
            "times",
            "over",
            "to",
            "by",
            "through",
            "from",
            "is",
            "if",
            "but",
            "else",
        ),
        *(
            "hundred",
            "thousand",
            "million",
            "billion",
            "trillion",
            "dozen",
            "score",
            "pair",
            "pairs",
            "double",
            "triple",
        ),
        *("half", "halves", "third", "thirds", "fourth", "fourths", "quarter", "quarters", "fifth", "fifths", "sixth"),
        *("sixths", "seventh", "sevenths", "eighth", "eighths", "ninth", "ninths", "tenth", "tenths", "hundredths"),
        *("squared", "cubed", "factorial", "root", "roots", "pi", "power", "base", "mod", "modulo", "remainder"),
        *("more", "less", "fewer", "greater", "than", "least", "most", "about", "approximately", "nearly", "roughly"),
        *("maybe", "perhaps", "possibly", "either", "neither", "except", "without", "no", "none", "negative"),
        *("infinity", "infinite", "thousandths", "hundreds", "thousands", "millions", "billions", "dozens", "per cent"),
        *("radian", "radians", "gross", "k", "x", "zero", "one", "two", "three", "four", "five", "six", "seven"),
        *("eight", "nine", "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "ninety"),
    )
)
_OF_NUMBERS = frozenset(("-", "/", "{", "}", "\\frac", "\\sqrt", "\\pi"))
_WORDS = re.compile(r"[A-Za-z][A-Za-z./ -]*")


def split_unit(tokens: Sequence[Token]) -> tuple[Sequence[Token], str | None]:
    """The tokens without a unit at either end, and the unit's name with its power, such as `cm^2`."""
    tokens, currency = _currency(tokens)
    rest, unit = _behind(tokens)
    if currency is not None and unit not in (None, currency):
        raise UnreadableError(f"two units, {currency} and {unit}")
    return rest, currency or unit


def unit_name(text: str, power: str = "") -> str:
    """One name for the spellings of a unit; UnreadableError for words that are not a unit."""
    words = text.lower().replace("-", " ").replace("/", " per ").split()
    words = [word.rstrip(".") if word not in _BASIC else word for word in words]
    words = [word for word in words if word and word not in _FILLERS]
    if not words or len(words) > MAX_WORDS or _DENIED & set(words):
        raise UnreadableError(f"{text!r} is no unit")
    for name, exponent in (("square", "2"), ("sq", "2"), ("cubic", "3"), ("cu", "3")):
        if words[0] == name and len(words) > 1:
            words, power = words[1:], exponent
    names = [_BASIC.get(word) or (word if word.endswith("ss") else word.removesuffix("s")) for word in words]
    return " ".join(names) + (f"^{power}" if power else "")


def is_basic(unit: str) -> bool:
    """Whether a unit's name is one of the table, with or without a power."""
    return unit.partition("^")[0] in {*_BASIC.values(), "euro", "pound sterling"}


def _currency(tokens: Sequence[Token]) -> tuple[Sequence[Token], str | None]:
    places = [index for index, token in enumerate(tokens) if token.kind == "cur"]
    if not places:
        return tokens, None
    signs = 1 if tokens[0].text in ("-", "+") else 0
    if len(places) > 1 or places[0] not in (signs, len(tokens) - 1):
        raise UnreadableError("a currency sign inside an expression")
    name = {"$": "dollar", "\\euro": "euro", "\\pounds": "pound sterling"}[tokens[places[0]].text]
    return [token for token in tokens if token.kind != "cur"], name


def _behind(tokens: Sequence[Token]) -> tuple[Sequence[Token], str | None]:
    if len(tokens) > 1 and tokens[-1].text == PERCENT:
        return tokens[:-1], PERCENT
    rest, power = _power(tokens)
    if len(rest) > 1 and rest[-1].kind == "text" and len(rest[-1].text) >= 1 and _WORDS.fullmatch(rest[-1].text):
        if not any(token.kind == "num" or token.text == "\\pi" for token in rest[:-1]):
            return tokens, None
        return rest[:-1], unit_name(rest[-1].text, power)
    degree = _degree(tokens)
    if degree is not None:
        return degree, DEGREE
    return _bare_words(tokens, rest, power)


def _power(tokens: Sequence[Token]) -> tuple[Sequence[Token], str]:
    """Tokens before a square or cube at the end, and that power."""
    texts = [token.text for token in tokens[-4:]]
    if texts[-2:] in (["^", "2"], ["^", "3"]):
        return tokens[:-2], texts[-1]
    if texts in (["^", "{", "2", "}"], ["^", "{", "3", "}"]):
        return tokens[:-4], texts[2]
    return tokens, ""


def _degree(tokens: Sequence[Token]) -> Sequence[Token] | None:
    """Tokens before a degree sign that belongs to the whole number; None where there is none."""
    texts = [token.text for token in tokens]
    length = 2 if texts[-2:] == ["^", "\\circ"] else 4 if texts[-4:] == ["^", "{", "\\circ", "}"] else 0
    before = tokens[: len(tokens) - length]
    is_number = all(token.kind == "num" or token.text in ("-", "/", "{", "}", "\\frac", "+", ".") for token in before)
    return before if length and before and is_number else None


def _bare_words(tokens: Sequence[Token], rest: Sequence[Token], power: str) -> tuple[Sequence[Token], str | None]:
    """`10 weeks`, `15 cm^2`, `15cm`: words straight behind a plain number."""
    start = len(rest)
    while start > 0 and rest[start - 1].kind == "word":
        start -= 1
    words = [token.text for token in rest[start:]]
    plain = all(token.kind == "num" or token.text in _OF_NUMBERS for token in rest[:start])
    if not words or not start or not plain:
        return tokens, None
    is_known = len(words) == 1 and words[0] in _BASIC
    if not is_known and not (rest[start].gap and all(len(word) >= 4 or word in _BASIC for word in words)):
        return tokens, None
    return rest[:start], unit_name(" ".join(words), power)
