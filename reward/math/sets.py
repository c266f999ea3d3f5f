r"""Sets of real numbers: intervals, unions, complements and inequalities in one unknown, as ordered disjoint pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mpmath import mpf

from reward.math.confirm import Answer, real_value, same_value
from reward.math.forms import Form, Interval, Items, Member, Named, Quantity, Relation, SetOperation
from reward.math.tokens import UnreadableError
from reward.math.tree import Node, infinite, symbols

INFINITY = Node("constant", name="infinity")
_FLIPPED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}


class End(NamedTuple):
    """An end of a piece: where it is, and on which side of that place (-1 just below, 0 there, 1 just above)."""

    place: mpf
    side: int
    node: Node


class Piece(NamedTuple):
    """All numbers from `low` to `high`; `low.side` is 0 or 1, `high.side` 0 or -1."""

    low: End
    high: End


def pieces(form: Form) -> list[Piece]:
    """The set in order, overlapping pieces joined; UnreadableError if it is no set of real numbers."""
    return _joined(_pieces(form))


def is_set(form: Form) -> bool:
    """Whether a form can only be a set of real numbers (a pair may be one)."""
    if isinstance(form, Relation):
        return any(operator in _FLIPPED or operator == "\\neq" for operator in form.operators)
    return isinstance(form, Interval | SetOperation | Named | Member)


def unknowns(form: Form) -> frozenset[str]:
    r"""Names of the unknown in `x > 1` and `x \\in S`."""
    match form:
        case Relation(sides):
            return frozenset().union(*(symbols(side.node) for side in sides if isinstance(side, Quantity)))
        case Member(Quantity(node), right):
            return symbols(node) | unknowns(right)
        case SetOperation(_, left, right):
            return unknowns(left) | unknowns(right)
    return frozenset()


def same_set(gold: Form, answer: Form) -> Answer:
    """Piece by piece."""
    ours, theirs = pieces(gold), pieces(answer)
    if len(ours) != len(theirs):
        return "different"
    results: list[Answer] = []
    for a, b in zip(ours, theirs, strict=True):
        for left, right in zip(a, b, strict=True):
            results.append(_same_end(left, right))
    return "different" if "different" in results else "undecided" if "undecided" in results else "equal"


def _same_end(a: End, b: End) -> Answer:
    if a.side != b.side or infinite(a.node) != infinite(b.node):
        return "different"
    return "equal" if infinite(a.node) else same_value(a.node, b.node)


def _pieces(form: Form) -> list[Piece]:
    match form:
        case Interval(low, high, low_closed, high_closed):
            return _piece(low, 0 if low_closed else 1, high, 0 if high_closed else -1)
        case Items("pair", (Quantity(low), Quantity(high))):
            return _piece(low, 1, high, -1)
        case Items("set", items):
            return _points(items)
        case Named(name):
            return _piece(Node("neg", (INFINITY,)), 1, INFINITY, -1) if name == "reals" else []
        case SetOperation(op, left, right):
            return _operation(op, _pieces(left), _pieces(right))
        case Member(Quantity(Node("symbol")), right):
            return _pieces(right)
        case Relation():
            return _inequality(form)
    raise UnreadableError("no set of real numbers")


def _operation(op: str, left: list[Piece], right: list[Piece]) -> list[Piece]:
    if op == "\\cup":
        return [*left, *right]
    return _intersection(left, right if op == "\\cap" else _complement(_joined(right)))


def _points(items: Sequence[Form]) -> list[Piece]:
    if not all(isinstance(item, Quantity) for item in items):
        raise UnreadableError("a set of other things than numbers")
    nodes = [item.node for item in items if isinstance(item, Quantity)]
    return [piece for node in nodes for piece in _piece(node, 0, node, 0)]


def _piece(low: Node, low_side: int, high: Node, high_side: int) -> list[Piece]:
    piece = Piece(_end(low, low_side), _end(high, high_side))
    return [piece] if piece.low[:2] <= piece.high[:2] else []


def _end(node: Node, side: int) -> End:
    if infinite(node):
        return End(mpf("inf") * infinite(node), side, node)
    place = real_value(node) if not symbols(node) else None
    if place is None:
        raise UnreadableError("an end that is no real number")
    return End(place, side, node)


def _inequality(form: Relation) -> list[Piece]:
    """`a < x \\leq b`, `x > a`, `x \\neq a` with one unknown that stands alone."""
    if not all(isinstance(side, Quantity) for side in form.sides):
        raise UnreadableError("an inequality between things that are no numbers")
    nodes = [side.node for side in form.sides if isinstance(side, Quantity)]
    unknowns = [index for index, node in enumerate(nodes) if symbols(node)]
    if len(unknowns) != 1 or nodes[unknowns[0]].op != "symbol":
        raise UnreadableError("an inequality without an unknown that stands alone")
    place = unknowns[0]
    found = _pieces(Named("reals"))
    for index, operator in enumerate(form.operators):
        if place not in (index, index + 1):
            raise UnreadableError("an inequality without an unknown in the middle")
        bound = nodes[index + 1] if index == place else nodes[index]
        found = _intersection(
            found, _half_line(operator if index == place else _FLIPPED.get(operator, operator), bound)
        )
    return found


def _half_line(operator: str, bound: Node) -> list[Piece]:
    """All x with `x operator bound`."""
    match operator:
        case "<" | "\\leq":
            return _piece(Node("neg", (INFINITY,)), 1, bound, -1 if operator == "<" else 0)
        case ">" | "\\geq":
            return _piece(bound, 1 if operator == ">" else 0, INFINITY, -1)
        case "\\neq":
            return _complement(_piece(bound, 0, bound, 0))
        case "=":
            return _piece(bound, 0, bound, 0)
    raise UnreadableError(f"an inequality with {operator}")


def _joined(found: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in sorted(found, key=lambda piece: piece.low[:2]):
        if joined and _touch(joined[-1].high, piece.low):
            joined[-1] = Piece(joined[-1].low, max(joined[-1].high, piece.high, key=lambda end: end[:2]))
        else:
            joined.append(piece)
    return joined


def _touch(high: End, low: End) -> bool:
    """Whether nothing lies between an upper end and the lower end of the next piece."""
    return low.place < high.place or (low.place == high.place and low.side - high.side <= 1)


def _complement(found: Sequence[Piece]) -> list[Piece]:
    """What ordered disjoint pieces leave out."""
    start = _end(Node("neg", (INFINITY,)), 1)
    left: list[Piece] = []
    for piece in found:
        gap = Piece(start, End(piece.low.place, piece.low.side - 1, piece.low.node))
        if gap.low[:2] <= gap.high[:2]:
            left.append(gap)
        start = End(piece.high.place, piece.high.side + 1, piece.high.node)
    last = Piece(start, _end(INFINITY, -1))
    return [*left, last] if last.low[:2] <= last.high[:2] else left


def _intersection(a: Sequence[Piece], b: Sequence[Piece]) -> list[Piece]:
    common = [
        Piece(max(x.low, y.low, key=lambda end: end[:2]), min(x.high, y.high, key=lambda end: end[:2]))
        for x in a
        for y in b
    ]
    return [piece for piece in common if piece.low[:2] <= piece.high[:2]]
