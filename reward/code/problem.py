"""What a task gives the grader: the tests of one row."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["asserts", "check", "pytest"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Tests of a program: calls of its functions, or inputs and outputs."""

    tests: Sequence[str] = ()
    """`asserts`: statements, each a test. `check`: HumanEval's test module. `pytest`: a test module."""
    style: Style = "asserts"
    prelude: str = ""
    """Run with the tests first, before any name stands for the program: helpers that the tests share."""
    setup: str = ""
    """Run with the tests once the program is loaded; may use it."""
    reference: str | None = None
    """A right solution: never run, says which names the tests mean and what they may import."""
    entry_point: str | None = None
    """The function under test; a stand-in even where a built-in or a helper has its name."""
    stdio: Sequence[Mapping[str, str]] = ()
    """`{"input", "output"}` of whole programs, in place of `tests`."""

    def __post_init__(self) -> None:
        if bool(self.tests) == bool(self.stdio):
            raise ValueError("a problem has either tests or stdio pairs, and at least one")

    def item(self, program: str) -> dict[str, Any]:
        """The message to the tests' side; `secret` is drawn anew, so that answers cannot be prepared."""
        return {
            "secret": secrets.token_hex(16),
            "program": program,
            "style": self.style,
            "prelude": self.prelude,
            "setup": self.setup,
            "tests": list(self.tests),
            "reference": self.reference,
            "entry_point": self.entry_point,
        }
