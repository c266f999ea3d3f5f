"""The outcome of a program's tests as one word and as a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from reward.sandbox.records import JobEnd
from rollout.records import Scored


class Kind(StrEnum):
    """What became of a program. Only `PASS` is a success, and only the tests can say it."""

    PASS = "pass"
    WRONG = "wrong"
    """A test failed."""
    EXCEPTION = "exception"
    """The program raised, crashed or ended before the tests did."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    PERMISSION = "permission"
    """The program was refused something that it may not do."""
    PROTOCOL = "protocol"
    """An answer that is no plain data, or that was not asked for."""
    NO_CODE = "no_code"
    """The completion holds no program."""


OF_END = {
    JobEnd.FINISHED: Kind.EXCEPTION,
    JobEnd.CRASHED: Kind.EXCEPTION,
    JobEnd.TIMEOUT: Kind.TIMEOUT,
    JobEnd.MEMORY: Kind.MEMORY,
    JobEnd.OUTPUT_LIMIT: Kind.OUTPUT_LIMIT,
}
"""The word for a program that was over before the tests were."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of all tests of one program."""

    kind: Kind
    why: str = ""
    """Of the first failed test; a text for people."""
    num_passed: int = 0
    num_tests: int = 1

    @classmethod
    def of(cls, outcomes: Sequence[tuple[Kind, str]]) -> Verdict:
        """From the outcome of each test: the first failure names the verdict."""
        passed = sum(kind is Kind.PASS for kind, _ in outcomes)
        first = next((outcome for outcome in outcomes if outcome[0] is not Kind.PASS), (Kind.PASS, ""))
        return cls(*first, num_passed=passed, num_tests=len(outcomes))

    @property
    def fraction(self) -> float:
        """Share of the tests that passed; 0 after a broken protocol, whose answers are not worth counting."""
        return 0.0 if self.kind is Kind.PROTOCOL else self.num_passed / self.num_tests

    def scored(self, *, value: str) -> Scored:
        """The score; `value` names the part that is the reward. Every kind of failure is a part, 0 or 1."""
        parts = {"correct": float(self.kind is Kind.PASS), "fraction": self.fraction}
        parts |= {kind.value: float(self.kind is kind) for kind in Kind if kind is not Kind.PASS}
        return Scored(value=parts[value], parts=parts)
