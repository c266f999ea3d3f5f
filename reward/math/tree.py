"""Expressions as trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from reward.math.tokens import UnreadableError


@dataclass(frozen=True, slots=True)
class Node:
    """An operation on nodes, or a leaf: `number` (value), `symbol` (name), `constant` (`pi`, `e`, `i`, `infinity`)."""

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


def number(value: Fraction | int) -> Node:
    """A leaf with an exact value."""
    return Node("number", value=Fraction(value))


def symbols(node: Node) -> frozenset[str]:
    """Names of the free symbols."""
    if node.op == "symbol":
        return frozenset((node.name,))
    return frozenset().union(*(symbols(arg) for arg in node.args))


def contains(node: Node, wanted: Callable[[Node], bool]) -> bool:
    """Whether a node of the tree is wanted."""
    return wanted(node) or any(contains(arg, wanted) for arg in node.args)


def plus_minus(node: Node) -> tuple[Node, ...]:
    r"""The two values of an expression with one \pm, or the expression itself; UnreadableError with several."""
    count = _count_signs(node)
    if count > 1:
        raise UnreadableError("several plus-minus signs")
    return (_signed(node, "add"), _signed(node, "sub")) if count else (node,)


def infinite(node: Node) -> int:
    """1 for infinity, -1 for minus infinity, 0 for anything else."""
    if node.op == "neg":
        return -infinite(node.args[0])
    return int(node.op == "constant" and node.name == "infinity")


def _count_signs(node: Node) -> int:
    return (node.op == "pm") + sum(_count_signs(arg) for arg in node.args)


def _signed(node: Node, op: str) -> Node:
    args = tuple(_signed(arg, op) for arg in node.args)
    return Node(op if node.op == "pm" else node.op, args, node.name, node.value)
