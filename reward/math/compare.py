r"""Whether two answers, each read on its own, are the same: every rule of equality in one place.

A label is dropped where the other side has none (`x = 5` is 5, `f(x) = 2x` is `2x`), not where the labels differ. The
order of a list or set does not count, that of a tuple does. Equations are the same if they differ by a factor, or if
each holds wherever the other does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from mpmath import mp

from reward.math.confirm import Answer, exact_value, proportional, real_value, same_value, same_zeros
from reward.math.exact import Number, read_number, rounds_to
from reward.math.forms import Based, Form, Interval, Items, Member, Quantity, Relation, Residue, Text, read_form
from reward.math.sets import is_set, same_set, unknowns
from reward.math.tree import Node, contains, infinite, symbols
from reward.math.units import DEGREE, PERCENT, is_basic

_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal|up)?|mbox|hbox|mathrm|mathbf|operatorname|emph)\b\s*")
_NOT_WORDS = re.compile(r"[{}$(),.!~\"“”]|\\[,;:! ]")
_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_STRICT = {"<": True, ">": True, "\\leq": False, "\\geq": False}
_FLIPPED = {"=": "=", "\\neq": "\\neq", "<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}


def compare(gold: str, answer: str) -> Answer:
    """Verdict on two texts; UnreadableError if one of them can not be read."""
    gold_form = read_form(gold)
    if isinstance(gold_form, Text):
        ours, theirs = plain_words(gold), plain_words(answer)
        if ours and ours == theirs:
            return "equal"
    return _same(gold_form, read_form(answer))


def plain_words(text: str) -> list[str] | None:
    """Words without commands and punctuation in lower case; None if mathematics is left."""
    text = _NOT_WORDS.sub(" ", _TEXT_COMMAND.sub(" ", text))
    if "\\" in text:
        return None
    words = text.split()
    if len(words) == 1 and len(words[0]) == 1:
        return words
    return [word.casefold() for word in words if word.casefold() not in _ARTICLES]


def _same(gold: Form, answer: Form) -> Answer:
    match gold, answer:
        case Text(), _:
            return _same_text(gold, answer)
        case _, Text():
            return _same_text(answer, gold)
        case Interval(), Interval():
            return _same_interval(gold, answer)
        case Quantity(), Quantity():
            return _same_quantity(gold, answer)
        case (Based(), _) | (_, Based()):
            return "equal" if gold == answer else "different"
        case Residue(value, modulus), Residue(value2, modulus2):
            return _all([_same(value, value2), _same(modulus, modulus2)])
        case Relation(), Relation() if not (_pure_set(gold) and _pure_set(answer)):
            return _same_relation(gold, answer)
    if is_set(gold) or is_set(answer):
        return _same_as_set(gold, answer)
    if isinstance(answer, Relation) or isinstance(gold, Relation):
        return _without_label(gold, answer)
    return _same_items(gold, answer)


def _same_interval(gold: Interval, answer: Interval) -> Answer:
    if (gold.low_closed, gold.high_closed) != (answer.low_closed, answer.high_closed):
        return "different"
    return _all([_same(Quantity(a), Quantity(b)) for a, b in ((gold.low, answer.low), (gold.high, answer.high))])


def _pure_set(form: Relation) -> bool:
    """Whether an inequality has one unknown that stands alone: `x < 1`, `1 < x < 3`."""
    names = {name for side in form.sides if isinstance(side, Quantity) for name in symbols(side.node)}
    alone = [side for side in form.sides if isinstance(side, Quantity) and side.node.op == "symbol"]
    return is_set(form) and len(names) == 1 and len(alone) == 1


def _same_text(text: Text, other: Form) -> Answer:
    if isinstance(other, Text):
        return "equal" if plain_words(text.words) == plain_words(other.words) else "different"
    if isinstance(other, Quantity):
        if other.node.op == "symbol":
            return "equal" if text.words == other.node.name else "different"
        if text.words.casefold() in _NUMBER_WORDS:
            return "equal" if exact_value(other.node) == _NUMBER_WORDS.index(text.words.casefold()) else "different"
    return "different"


def _same_quantity(gold: Quantity, answer: Quantity) -> Answer:
    units = {gold.unit, answer.unit}
    if units == {None, DEGREE} and any(contains(q.node, _is_pi) for q in (gold, answer) if q.unit is None):
        turned = [Node("degree", (q.node,)) if q.unit else q.node for q in (gold, answer)]
        return same_value(*turned)
    if not _same_unit(gold.unit, answer.unit):
        return "different"
    ends = infinite(gold.node), infinite(answer.node)
    if any(ends):
        return "equal" if ends[0] == ends[1] else "different"
    result = same_value(gold.node, answer.node)
    return "equal" if result == "different" and _same_decimal(gold, answer) else result


def _same_unit(gold: str | None, answer: str | None) -> bool:
    if gold == answer or answer is None:
        return True
    if gold is None:
        return answer != PERCENT
    if is_basic(gold) and is_basic(answer):
        return False
    ours, theirs = set(gold.split()), set(answer.split())
    return ours <= theirs or theirs <= ours


def _is_pi(node: Node) -> bool:
    return node.op == "constant" and node.name == "pi"


def _same_decimal(gold: Quantity, answer: Quantity) -> bool:
    """Decimals that stand for numbers that they can not write out, as in `exact.same_number`."""
    ours, theirs = _decimal(gold), _decimal(answer)
    if symbols(gold.node) or symbols(answer.node) or (ours is None) == (theirs is None):
        return False
    other = real_value(gold.node if ours is None else answer.node)
    if other is None:
        return False
    exact = exact_value(gold.node if ours is None else answer.node)
    with mp.workdps(60):
        value = exact if exact is not None else Fraction(mp.nstr(other, 50, min_fixed=-400, max_fixed=400))
    if ours is not None:
        return rounds_to(ours, value, None)
    return theirs is not None and exact is None and abs(theirs.value - value) <= abs(value) / 10**9


def _decimal(quantity: Quantity) -> Number | None:
    number = read_number("".join(quantity.literal))
    return number if number is not None and number.decimals else None


def _same_as_set(gold: Form, answer: Form) -> Answer:
    if len(unknowns(gold) | unknowns(answer)) > 1:
        return "different"
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return same_set(gold, answer)
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return "different"
    if isinstance(gold, Items) and gold.kind == "pair" and not isinstance(answer, Items):
        return same_set(gold, answer)
    return same_set(_unlabelled(gold), _unlabelled(answer))


def _unlabelled(form: Form) -> Form:
    r"""The set itself where a form says `D = (0, 1)` or `x \in (0, 1)`."""
    if isinstance(form, Relation) and set(form.operators) == {"="}:
        return form.sides[-1]
    return form.right if isinstance(form, Member) else form


def _same_relation(gold: Relation, answer: Relation) -> Answer:
    ours, theirs = _labelled(gold), _labelled(answer)
    if ours is not None and theirs is not None and ours[0] == theirs[0]:
        return _same(ours[1], theirs[1])
    if len(gold.operators) == len(answer.operators) == 1:
        return _same_single(gold, answer)
    flipped = Relation(answer.sides[::-1], tuple(_FLIPPED.get(op, op) for op in answer.operators[::-1]))
    for candidate in (answer, flipped):
        if candidate.operators == gold.operators:
            result = _all([_same(a, b) for a, b in zip(gold.sides, candidate.sides, strict=True)])
            if result == "equal":
                return result
    return "undecided" if is_set(gold) == is_set(answer) else "different"


def _same_single(gold: Relation, answer: Relation) -> Answer:
    """Two equations or inequalities, as `left - right` compared with zero."""
    left, right = _difference(gold), _difference(answer)
    if left is None or right is None or not symbols(left) | symbols(right):
        results = [_same(a, b) for a, b in zip(gold.sides, answer.sides, strict=True)]
        return _all(results) if gold.operators == answer.operators else "different"
    if symbols(left) != symbols(right):
        return "different"
    ours, theirs = gold.operators[0], answer.operators[0]
    if _STRICT.get(ours, ours) != _STRICT.get(theirs, theirs):
        return "different"
    if ours not in _STRICT:
        result = proportional(left, right, positive=False)
        return result if result == "equal" else same_zeros(left, right)
    return proportional(left, right if ours == theirs else Node("neg", (right,)), positive=True)


def _difference(form: Relation) -> Node | None:
    left, right = form.sides
    if not isinstance(left, Quantity) or not isinstance(right, Quantity):
        return None
    return Node("sub", (left.node, right.node))


def _without_label(gold: Form, answer: Form) -> Answer:
    """One side is an equation, the other is not."""
    if isinstance(gold, Relation):
        labelled = _labelled(gold)
        if labelled is not None:
            return _same(labelled[1], answer)
        sides = [side for side in gold.sides if isinstance(side, Quantity) and not symbols(side.node)]
        if len(sides) == len(gold.sides) and set(gold.operators) <= {"=", "\\approx"}:
            results = [_same(side, answer) for side in sides]
            return "equal" if "equal" in results else "different"
        return "different"
    labelled = _labelled(answer) if isinstance(answer, Relation) else None
    return _same(gold, labelled[1]) if labelled is not None else "different"


def _labelled(form: Relation) -> tuple[Form | None, Form] | None:
    r"""Label and value of `x = 5`, `x = 2 + 3 = 5`, `AB = 5`, `(x, y) = (1, 2)`; the label of `2 + 3 = 5` is None.

    A chain of unequal numbers has no value; what follows \approx does not count.
    """
    if not set(form.operators) <= {"=", "\\approx"}:
        return None
    exact = form.operators.index("\\approx") + 1 if "\\approx" in form.operators else len(form.sides)
    label = form.sides[0] if _is_label(form.sides[0]) else None
    sides = list(form.sides[:exact]) if exact > 1 or label is None else list(form.sides)
    values = sides[1:] if label is not None else sides
    if label is None and not all(isinstance(side, Quantity) and not symbols(side.node) for side in values):
        return None
    if isinstance(label, Quantity) and _own_names(label) & _names(values[-1]):
        return None
    if any(_same(a, values[-1]) != "equal" for a in values[:-1]):
        return None
    return label, values[-1]


def _own_names(label: Quantity) -> frozenset[str]:
    """Names that the value of a label can not contain: all of them, but only f in f(x)."""
    if len(label.literal) > 3 and label.literal[1] == "(" and label.literal[-1] == ")":
        return frozenset((label.literal[0],))
    return symbols(label.node)


def _names(form: Form) -> frozenset[str]:
    return symbols(form.node) if isinstance(form, Quantity) else frozenset()


def _is_label(form: Form) -> bool:
    """A name, or names beside or added to each other: `x`, `f(x)`, `AB`, `a+b`, `(x, y)`; no numbers."""
    if isinstance(form, Items) and form.kind in ("pair", "tuple", "ratio"):
        return all(_is_label(item) for item in form.items)
    if isinstance(form, Text):
        return True
    if not isinstance(form, Quantity) or form.unit is not None or not symbols(form.node):
        return False
    return not contains(form.node, lambda node: node.op not in ("symbol", "mul", "add", "sub", "constant"))


def _same_items(gold: Form, answer: Form) -> Answer:
    ours, theirs = _as_items(gold), _as_items(answer)
    if ours is None or theirs is None:
        return "different" if type(gold) is type(answer) or ours or theirs else "undecided"
    kinds = {ours.kind, theirs.kind}
    if kinds <= {"list", "set"}:
        left, right = _plain_list(ours), _plain_list(theirs)
        if any(isinstance(item, Relation) for item in left) == any(isinstance(item, Relation) for item in right):
            return _same_unordered(left, right, distinct="set" in kinds)
        return _same_ordered(left, right)
    is_tuple = ours.kind in ("pair", "tuple") and theirs.kind in ("pair", "tuple", "list")
    return _same_ordered(ours.items, theirs.items) if is_tuple or kinds == {"ratio"} else "undecided"


def _same_ordered(gold: Sequence[Form], answer: Sequence[Form]) -> Answer:
    """Item by item. Names that only one side gives, as in `x = 1, y = 2` for (1, 2), must be in alphabetical order."""
    if len(gold) != len(answer):
        return "different"
    for items in (gold, answer):
        labels = [_labelled(item) for item in items if isinstance(item, Relation)]
        names = [sorted(_names(label[0])) if label is not None and label[0] is not None else [] for label in labels]
        if names != sorted(names) or [] in names:
            return "undecided"
    return _all([_same(a, b) for a, b in zip(gold, answer, strict=True)])


def _as_items(form: Form) -> Items | None:
    """A list, tuple, ..; a column of a matrix is a tuple."""
    if isinstance(form, Items):
        return form
    if isinstance(form, Quantity) and form.node.op == "matrix" and all(len(row.args) == 1 for row in form.node.args):
        return Items("tuple", tuple(Quantity(row.args[0]) for row in form.node.args))
    return None


def _plain_list(form: Items) -> list[Form]:
    """The items, without a label that they share: `x = 1, x = 2` and `x = 1, 2` are 1, 2."""
    labelled = [_labelled(item) if isinstance(item, Relation) else None for item in form.items]
    labels = [label for label in labelled if label is not None and label[0] is not None]
    shared = labels and all(label[0] == labels[0][0] for label in labels) and labelled[0] is not None
    if not shared or any(
        isinstance(item, Relation) and value is None for item, value in zip(form.items, labelled, strict=True)
    ):
        return list(form.items)
    return [item if value is None else value[1] for item, value in zip(form.items, labelled, strict=True)]


def _same_unordered(gold: Sequence[Form], answer: Sequence[Form], *, distinct: bool) -> Answer:
    """Each item of one has its own partner in the other."""
    if distinct:
        gold, answer = _distinct(gold), _distinct(answer)
    if len(gold) != len(answer):
        return "different"
    left = list(answer)
    undecided = False
    for item in gold:
        results = [_same(item, other) for other in left]
        if "equal" in results:
            left.pop(results.index("equal"))
        elif "undecided" in results:
            undecided = True
        else:
            return "different"
    return "undecided" if undecided else "equal"


def _distinct(items: Sequence[Form]) -> list[Form]:
    kept: list[Form] = []
    for item in items:
        if all(_same(item, other) != "equal" for other in kept):
            kept.append(item)
    return kept


def _all(results: Sequence[Answer]) -> Answer:
    return "different" if "different" in results else "undecided" if "undecided" in results else "equal"
