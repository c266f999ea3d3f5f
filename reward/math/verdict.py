"""The verdict on an answer: exact where that is enough, by the worker process where it is not."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from reward.math.bounds import refusal
from reward.math.exact import read_number, same_number
from reward.math.process import MathProcess, Outcome
from reward.math.tokens import UnreadableError, canonical

_GROUPING = frozenset(("{", "}", "(", ")", "/", "*", "\\frac"))

_number_of = lru_cache(maxsize=4096)(read_number)


class Verdict(NamedTuple):
    """`equal`, `different`, `undecided`, `timeout` or `error`, and why where that is not plain.

    `readable` is false for an answer that is refused before it is read.
    """

    outcome: Outcome
    why: str = ""
    readable: bool = True


class Verifier:
    """Compares answers with known ones. Takes calls from any thread; holds at most one worker process."""

    def __init__(self, process: MathProcess | None = None) -> None:
        self._process = process if process is not None else MathProcess()

    @property
    def process(self) -> MathProcess:
        """The worker process behind it."""
        return self._process

    def judge(self, gold: str, answer: str, *, task: str = "") -> Verdict:
        """Verdict on an answer; `task` is the text of the problem, which is not an answer to itself."""
        ours, theirs = _number_of(gold), read_number(answer)
        if ours is not None and theirs is not None:
            return Verdict("equal" if same_number(ours, theirs) else "different")
        if gold.strip() == answer.strip():
            return Verdict("equal")
        why = refusal(answer)
        if why is not None:
            return Verdict("different", why, readable=False)
        if _looks_the_same(gold, answer):
            return Verdict("equal")
        if theirs is None and restates(gold, answer, task):
            return Verdict("different", "the answer repeats a part of the task", readable=False)
        reply = self._process.ask(gold, answer)
        return Verdict(reply.outcome, reply.why)

    def open(self) -> None:
        """Start the worker process; RuntimeError if it does not start."""
        self._process.start()

    def close(self) -> None:
        """End the worker process."""
        self._process.close()


def restates(gold: str, answer: str, task: str) -> bool:
    r"""Whether an answer stands in the task word for word and is not the gold answer written a little differently.

    To "Compute $2^{10}-24$" the answer `2^{10}-24` is equal in value, and no answer.
    """
    wanted = _without_layout(answer)
    if len(wanted) < 3 or wanted not in _without_layout(task):
        return False
    return _ingredients(gold) != _ingredients(answer)


@lru_cache(maxsize=1024)
def _without_layout(text: str) -> str:
    for command in ("\\left", "\\right", "\\!", "\\,", "\\;", "\\:", "\\ ", "~"):
        text = text.replace(command, "")
    for command in ("\\dfrac", "\\tfrac"):
        text = text.replace(command, "\\frac")
    return "".join(character for character in text if character not in " \n\t{}()$")


def _ingredients(text: str) -> list[str] | None:
    """Tokens in any order, without those that only group or divide."""
    try:
        return sorted(piece for piece in canonical(text) if piece not in _GROUPING)
    except UnreadableError:
        return None


def _looks_the_same(gold: str, answer: str) -> bool:
    try:
        return canonical(gold) == canonical(answer)
    except UnreadableError:
        return False
