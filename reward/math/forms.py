r"""The shape of a whole answer: a number or expression, text, list, tuple, interval, set, matrix, equation, ..

Read from the outside in: separators, relations, set operators, brackets, then units and expressions. Round brackets
around two things are a pair, which may be a point or an open interval. Items that only commas separate are a list,
whose order does not count; the words `and` and `or` separate like a comma.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from reward.math.parser import read_expression
from reward.math.tokens import Token, UnreadableError, tokens
from reward.math.tree import Node, infinite, plus_minus
from reward.math.units import split_unit

RELATIONS = ("=", "<", ">", "\\leq", "\\geq", "\\neq", "\\approx")
MAX_ITEMS = 40

_OPENING = frozenset(("(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil"))
_CLOSING = frozenset((")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil"))
_SEPARATORS = frozenset((",", ";", "\\and", "\\or"))
_SET_OPERATORS = frozenset(("\\cup", "\\cap", "\\setminus"))
_BASE = re.compile(r"(-?[0-9A-Z]+(?:\.[0-9]+)?)_\{?([0-9]{1,2})\}?")
_CHOICE = re.compile(r"\(?\s*([A-Z])\s*\)?\.?")
_LETTERS = re.compile(r"\s*[A-Z](?:\s*,\s*[A-Z])+\s*")


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression, with a unit or none."""

    node: Node
    unit: str | None = None
    literal: tuple[str, ...] = ()
    """Token texts of the expression."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words; a single letter in or out of brackets is a choice."""

    words: str


@dataclass(frozen=True, slots=True)
class Based:
    """A numeral with its base, compared digit by digit."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Items:
    """`kind` is `list`, `set`, `pair` (two in round brackets), `tuple` or `ratio` (`3:2`, `4:30`)."""

    kind: str
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """Ends and whether they belong to it."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True, slots=True)
class SetOperation:
    r"""`\\cup`, `\\cap` or `\\setminus` of two sets."""

    op: str
    left: Form
    right: Form


@dataclass(frozen=True, slots=True)
class Named:
    """`reals` or `empty`."""

    name: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain such as `1 < x \\leq 3`: one more side than operators."""

    sides: tuple[Form, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """`x \\in S`."""

    left: Form
    right: Form


@dataclass(frozen=True, slots=True)
class Residue:
    """`3 \\pmod 5`."""

    value: Form
    modulus: Form


Form = Quantity | Text | Based | Items | Interval | SetOperation | Named | Relation | Member | Residue


@lru_cache(maxsize=1024)
def read_form(text: str) -> Form:
    """The form of an answer; UnreadableError if it has none."""
    return _read(tokens(text))


def _read(pieces: Sequence[Token]) -> Form:
    if not pieces:
        raise UnreadableError("nothing to read")
    parts, separators = _split(pieces, _SEPARATORS)
    if len(parts) > 1:
        return _list(parts, separators)
    if any(piece.text in ("\\pmod", "\\mod", "\\bmod") for piece in pieces):
        return _residue(pieces)
    sides, operators = _split(pieces, frozenset(RELATIONS))
    if operators:
        return _relation(sides, operators)
    sides, operators = _split(pieces, frozenset(("\\in",)))
    if operators:
        if len(sides) != 2:
            raise UnreadableError("a chain of memberships")
        return Member(_read(sides[0]), _read(sides[1]))
    return _part(pieces)


def _part(pieces: Sequence[Token]) -> Form:
    """A form without separators and relations outside brackets."""
    text = _text(pieces)
    if text is not None:
        return text
    parts, operators = _split(pieces, _SET_OPERATORS)
    if operators:
        form = _part(parts[0])
        for op, part in zip(operators, parts[1:], strict=True):
            form = SetOperation(op, form, _part(part))
        return form
    based = _BASE.fullmatch("".join(piece.text for piece in pieces))
    if based:
        return Based(based[1], based[2])
    if len(pieces) == 1 and pieces[0].text in ("\\mathbb{R}", "\\emptyset"):
        return Named("reals" if pieces[0].text == "\\mathbb{R}" else "empty")
    ratio, colons = _split(pieces, frozenset((":",)))
    if colons:
        return Items("ratio", tuple(_part(part) for part in ratio))
    return _bracketed(pieces) or _quantity(pieces)


def _quantity(pieces: Sequence[Token]) -> Form:
    rest, unit = split_unit(pieces)
    nodes = plus_minus(read_expression(rest))
    literal = tuple(piece.text for piece in rest)
    if len(nodes) == 1:
        return Quantity(nodes[0], unit, literal)
    return Items("list", tuple(Quantity(node, unit) for node in nodes))


def _bracketed(pieces: Sequence[Token]) -> Form | None:
    """Tuple, interval, set or group if one pair of brackets holds everything; None otherwise."""
    opening, closing = pieces[0].text, pieces[-1].text
    if opening not in _OPENING or _matching(pieces) != len(pieces) - 1:
        return None
    inside = pieces[1:-1]
    parts, separators = _split(inside, frozenset((",", ";")))
    if opening == "{" and closing == "}":
        return _read(inside)
    if opening == "\\{" and closing == "\\}":
        return _set(inside, parts)
    if len(parts) == 1:
        return _part(inside) if (opening, closing) in (("(", ")"), ("[", "]")) and _has_no_node(inside) else None
    items = tuple(_read(part) for part in parts)
    if opening == "\\langle" and closing == "\\rangle":
        return Items("tuple", items)
    if opening not in ("(", "[") or closing not in (")", "]") or ";" in separators:
        raise UnreadableError("brackets of different kinds")
    return _two_ends(opening, closing, *items) if len(items) == 2 else Items("tuple", items)


def _two_ends(opening: str, closing: str, low: Form, high: Form) -> Form:
    """A pair or an interval."""
    is_open = (opening, closing) == ("(", ")")
    if not isinstance(low, Quantity) or not isinstance(high, Quantity):
        if is_open:
            return Items("pair", (low, high))
        raise UnreadableError("the ends of an interval are no numbers")
    if is_open and not infinite(low.node) and not infinite(high.node):
        return Items("pair", (low, high))
    return Interval(low.node, high.node, opening == "[", closing == "]")


def _has_no_node(inside: Sequence[Token]) -> bool:
    """Whether brackets hold something that is no expression: `(\\text{H})`, `((1,2))`."""
    return bool(inside) and (inside[0].text in _OPENING or inside[0].kind in ("text", "begin"))


def _set(inside: Sequence[Token], parts: list[Sequence[Token]]) -> Form:
    if not inside:
        return Named("empty")
    for bar in ("|", ":"):
        condition, bars = _split(inside, frozenset((bar,)))
        if len(bars) == 1:
            variable, condition_form = _read(condition[0]), _read(condition[1])
            if isinstance(variable, Quantity) and variable.node.op == "symbol" and isinstance(condition_form, Relation):
                return condition_form
        if bars:
            raise UnreadableError("a set given by a condition")
    return Items("set", _flat([_read(part) for part in parts]))


def _list(parts: list[Sequence[Token]], separators: list[str]) -> Form:
    """Items between separators; a comma before `and` is one separator with it. Inequalities make a set."""
    words = ("\\and", "\\or")
    doubled = [not part and after in words for part, after in zip(parts, [*separators, ","], strict=True)]
    parts = [part for part, is_doubled in zip(parts, doubled, strict=True) if not is_doubled]
    if len(parts) > MAX_ITEMS or not all(parts):
        raise UnreadableError("empty or too many items")
    forms = [_read(part) for part in parts]
    if set(separators) <= {"\\or"} and all(isinstance(form, Relation) and form.operators != ("=",) for form in forms):
        union = forms[0]
        for form in forms[1:]:
            union = SetOperation("\\cup", union, form)
        return union
    flat = _flat(forms)
    return flat[0] if len(flat) == 1 else Items("list", flat)


def _flat(forms: Sequence[Form]) -> tuple[Form, ...]:
    """The forms, lists among them (such as the two values of a plus-minus) replaced by their items."""
    return tuple(
        item for form in forms for item in (form.items if isinstance(form, Items) and form.kind == "list" else (form,))
    )


def _relation(sides: list[Sequence[Token]], operators: list[str]) -> Form:
    if not all(sides[1:]) or len(sides) > MAX_ITEMS:
        raise UnreadableError("a relation with an empty side")
    if operators[0] == "\\approx" and len(operators) == 1 and not sides[0]:
        return _read(sides[1])
    if not sides[0]:
        if operators == ["="]:
            return _read(sides[1])
        raise UnreadableError("a relation with an empty side")
    return Relation(tuple(_part(side) for side in sides), tuple(operators))


def _residue(pieces: Sequence[Token]) -> Form:
    place = next(index for index, piece in enumerate(pieces) if piece.text in ("\\pmod", "\\mod", "\\bmod"))
    before = list(pieces[:place])
    if before and before[-1].text == "(" and pieces[-1].text == ")":
        before, pieces = before[:-1], pieces[:-1]
    sides, operators = _split(before, frozenset(("\\equiv", "=")))
    if not before or len(operators) > 1:
        raise UnreadableError("no residue")
    return Residue(_part(sides[-1]), _part(pieces[place + 1 :]))


def _text(pieces: Sequence[Token]) -> Form | None:
    """Words, a choice of one letter, or mathematics written inside a text command; None for anything else."""
    inside = [piece for piece in pieces if piece.text not in ("(", ")", "{", "}")]
    if len(inside) != 1 or inside[0].kind not in ("text", "word"):
        return None
    words = inside[0].text
    if inside[0].kind == "word":
        is_word = len(words) > 4 or (len(words) > 2 and words.isupper())
        return Text(words) if is_word else None
    if choice := _CHOICE.fullmatch(words):
        return Text(choice[1])
    if _LETTERS.fullmatch(words):
        return Items("list", tuple(Text(letter.strip()) for letter in words.split(",")))
    if re.search("[0-9]", words):
        return _written_in_text(words)
    return Text(words)


def _written_in_text(words: str) -> Form:
    r"""`\text{5 apples}`, `\text{4:30 p.m.}`, `\text{October 30}`."""
    number, _, noun = words.partition(" ")
    if re.fullmatch(r"-?[0-9][0-9.,:/]*", number):
        noun_tokens = (Token("text", noun, gap=True),) if noun else ()
        return _part((*tokens(number), *noun_tokens))
    return Text(words)


def _split(pieces: Sequence[Token], at: frozenset[str]) -> tuple[list[Sequence[Token]], list[str]]:
    """Parts between the given tokens outside all brackets, and those tokens."""
    parts: list[Sequence[Token]] = []
    found: list[str] = []
    depth = start = 0
    for index, piece in enumerate(pieces):
        depth += _depth_change(piece)
        if depth == 0 and piece.text in at and piece.kind in ("sym", "cmd"):
            parts.append(pieces[start:index])
            found.append(piece.text)
            start = index + 1
    return [*parts, pieces[start:]], found


def _matching(pieces: Sequence[Token]) -> int:
    """Where the bracket that opens the tokens closes."""
    depth = 0
    for index, piece in enumerate(pieces):
        depth += _depth_change(piece)
        if depth == 0:
            return index
    return -1


def _depth_change(piece: Token) -> int:
    opens = piece.text in _OPENING or piece.kind == "begin"
    return opens - (piece.text in _CLOSING or piece.kind == "end")
