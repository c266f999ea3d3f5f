r"""Which part of a completion is the answer.

Only the last `MAX_TEXT_CHARS` characters are read. The answer is the last `\boxed{..}` (`\fbox{..}` counts too), inside
the last `<answer>..</answer>` where there is one; a tag without a box is an answer as it stands. There is no answer

- without a box or tag: a number that merely stands last does not count;
- if the last box is empty or never closed;
- if an earlier box (or tag) holds something else, unless the words before the last one say that it is the final or the
  corrected answer: `\boxed{7} .. So the final answer is \boxed{42}` is 42, `\boxed{7}, \boxed{42}` is none;
- if the sentence takes the box back or leaves it open: `not \boxed{7}`, `\boxed{7} or \boxed{8}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from reward.math.exact import read_number
from reward.math.tokens import UnreadableError, canonical

MAX_TEXT_CHARS = 4096

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_FINAL = re.compile(
    r"\b(?:final(?:ly)?|answer|therefore|thus|hence|so|conclude|conclusion|correct(?:ed|ion|ing)?|instead|actually|wait|"
    r"mistake|error|wrong|no)\b|\\therefore\b",
    re.IGNORECASE,
)
_OPEN = re.compile(r"\b(?:or|either|alternatively|maybe|perhaps|possibly|might|could)\b", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|isn't|never|neither|rather than|instead of)[\s$*:(\\\[]*$", re.IGNORECASE)
_LEFT_OPEN = re.compile(
    r"[ \t$,;)*\\\]}]*(?:or(?!\s+(?:equivalently|approximately|about|roughly|simply)\b)|alternatively|maybe|perhaps"
    r"|possibly)\b",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[.!?:](?:\s|$)|\n")
_SPACE_AND_STARS = " \t\r\n*"
_ANNOUNCEMENT_CHARS = 120


class Extracted(NamedTuple):
    """An answer, or why there is none."""

    text: str | None
    why: str = ""


class _Mark(NamedTuple):
    """A box or tag: where it begins and ends in the text; `content` is None if it is never closed."""

    start: int
    end: int
    content: str | None


def final_answer(completion: str) -> Extracted:
    """The text of the answer by the rules above."""
    text = completion[-MAX_TEXT_CHARS:]
    tags = [_Mark(match.start(), match.end(), match[1]) for match in _TAG.finditer(text)]
    if not tags:
        return _decide(text, list(_boxes(text)), "no box and no answer tag")
    tag = _decide(text, tags, "")
    if tag.text is None:
        return tag
    boxes = list(_boxes(tag.text))
    return _decide(tag.text, boxes, "") if boxes else tag


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{..}` or `\fbox{..}` of a solution; None if there is none, or it is never closed."""
    boxes = list(_boxes(text))
    return boxes[-1].content if boxes else None


def _decide(text: str, marks: list[_Mark], why_none: str) -> Extracted:
    if not marks:
        return Extracted(None, why_none)
    last = marks[-1]
    if last.content is None:
        return Extracted(None, "the last box is never closed")
    content = last.content.strip(_SPACE_AND_STARS)
    if not content:
        return Extracted(None, "the last box is empty")
    if _DENIED.search(text[max(0, last.start - 40) : last.start]):
        return Extracted(None, "the answer is denied")
    if _LEFT_OPEN.match(text, last.end):
        return Extracted(None, "another answer follows")
    others = [mark for mark in marks[:-1] if not _same(mark.content, last.content)]
    if others and not _is_announced(text[others[-1].end : last.start]):
        return Extracted(None, "several different answers")
    return Extracted(content)


def _is_announced(between: str) -> bool:
    """Whether the words between a box and a different one say that the second is meant."""
    clauses = [clause for clause in _CLAUSE_END.split(between) if clause.strip(" $*\\()[]{}")]
    if clauses and _OPEN.search(clauses[-1]):
        return False
    return bool(_FINAL.search(between[-_ANNOUNCEMENT_CHARS:]))


def _boxes(text: str) -> Iterator[_Mark]:
    """Outermost boxes from left to right, in one pass; a box that is never closed is one without content."""
    marks: list[_Mark] = []
    opened: list[tuple[int, int] | None] = []  # per open brace: where its box and the content begin, None if no box
    for match in _BRACE.finditer(text):
        if match[0] == "}":
            box = opened.pop() if opened else None
            if box is not None:
                inside = [mark for mark in marks if mark.start > box[0]]
                del marks[len(marks) - len(inside) :]
                marks.append(_Mark(box[0], match.end(), _BOX.sub("{", text[box[1] : match.start()])))
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append((match.start(), match.end()) if len(match[0]) > 1 else None)
    marks += [_Mark(box[0], box[1], None) for box in opened if box is not None]
    yield from sorted(marks)


def _same(a: str | None, b: str) -> bool:
    if a is None or a.strip() == b.strip():
        return a is not None
    left, right = read_number(a), read_number(b)
    if left is not None and right is not None:
        return left.value == right.value
    try:
        return canonical(a) == canonical(b)
    except UnreadableError:
        return False
