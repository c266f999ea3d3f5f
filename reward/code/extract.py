"""The program in a completion. The rules are fixed, so that a model cannot gain by writing several programs.

A completion with fenced blocks: the last one that is not empty and is Python (`python`, `py`, `python3`, in any case)
or names no language; the last fence may be left open. Without a fence the whole completion is the program.
Text is never parsed or run here.
"""

from __future__ import annotations

import re

# Possessive, so that no text makes the search go back: it is linear in the length.
_FENCE = re.compile(r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[^\s`]*+)[^\n`]*+$", re.MULTILINE)
_PYTHON = ("", "py", "python", "python3")
_DEFINES = r"^(?:async[ \t]+)?def[ \t]+{}[ \t]*\("


def program_of(completion: str) -> str:
    """The program; the empty text if there is none."""
    blocks = _blocks(completion)
    if blocks is None:
        return completion if completion.strip() else ""
    return next((text for text in reversed(blocks) if text.strip()), "")


def has_fence(completion: str) -> bool:
    """Whether the completion marks its program."""
    return _FENCE.search(completion) is not None


def _blocks(completion: str) -> list[str] | None:
    """Texts of the Python blocks; None without any fence."""
    marks = list(_FENCE.finditer(completion))
    if not marks:
        return None
    blocks = []
    position = 0
    while position < len(marks):
        opening = marks[position]
        closing = next((i for i in range(position + 1, len(marks)) if _closes(marks[i], opening)), None)
        end = len(completion) if closing is None else marks[closing].start()
        if opening["language"].lower() in _PYTHON:
            blocks.append(completion[opening.end() + 1 : end])
        position = len(marks) if closing is None else closing + 1
    return blocks


def _closes(mark: re.Match[str], opening: re.Match[str]) -> bool:
    return not mark["language"] and mark["fence"].startswith(opening["fence"])


def defines(program: str, name: str) -> bool:
    """Whether a line of the program, not indented, begins to define a function of that name."""
    return re.search(_DEFINES.format(re.escape(name)), program, re.MULTILINE) is not None


def body_of(continuation: str) -> str:
    """A function's body from text that goes on after its head: up to the first line that is not indented."""
    lines = continuation.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "\n".join(lines[:end])
