"""The tasks by name.

A task has rows, turns a row into a prompt, and grades a completion. `grade` sees the completion only, never the prompt:
text that the prompt already holds can not be mistaken for an answer.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from reward.config import TaskConfig
from rollout.records import Failed, Prompt, Scored

Split = Literal["train", "test"]
Row = Mapping[str, Any]


class Example(NamedTuple):
    """A row with an answer that must be graded right and one that must be graded wrong."""

    row: Row
    right: str
    wrong: str


class Task(Protocol):
    """Rows, prompts and a grader."""

    name: str

    def rows(self, split: Split) -> Sequence[Row]:
        """Rows of a split, in a fixed order; each has a text `id` that stays the same from run to run."""

    def prompt(self, row: Row) -> Prompt:
        """What the model sees; `Prompt.gold` is the row."""

    def solution(self, row: Row) -> str:
        """A right answer for supervised training; ValueError if the row has none."""

    def grade(self, row: Row, completion: str) -> Scored | Failed:
        """Verdict on a completion: `value` in 0..1, `parts` with at least `correct` (0 or 1)."""

    def example(self) -> Example:
        """A known row for the self-test of a grader; reads no file."""


_CLASSES = {
    "aime24": ("reward.math_task", "Aime24"),
    "aime25": ("reward.math_task", "Aime25"),
    "arithmetic": ("reward.arithmetic", "Arithmetic"),
    "code": ("reward.programs", "Programs"),
    "code-tiny": ("reward.code_tiny", "CodeTiny"),
    "countdown": ("reward.countdown", "Countdown"),
    "gsm8k": ("reward.gsm8k", "Gsm8k"),
    "humaneval": ("reward.humaneval", "HumanEval"),
    "jsonl": ("reward.custom", "Jsonl"),
    "math": ("reward.math_task", "Math"),
    "math500": ("reward.math_task", "Math500"),
    "mbpp": ("reward.mbpp", "Mbpp"),
    "mbpp-sanitized": ("reward.mbpp", "MbppSanitized"),
    "sudoku4": ("reward.sudoku", "Sudoku4"),
}


def names() -> list[str]:
    """Names of all tasks."""
    return sorted(_CLASSES)


def task(name: str, **fields: Any) -> Task:
    """Build a task; `fields` are those of `TaskConfig`, for instance `seed=1` or `test_file="rows.jsonl"`."""
    return build(TaskConfig(name=name, **fields))


def build(config: TaskConfig) -> Task:
    """Build the task that a recipe names."""
    if config.name not in _CLASSES:
        near = difflib.get_close_matches(config.name, names(), n=1)
        hint = f" - did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no task is named {config.name!r}{hint}; allowed: {', '.join(names())}")
    module, class_name = _CLASSES[config.name]
    built: Task = getattr(importlib.import_module(module), class_name)(config)
    return built
