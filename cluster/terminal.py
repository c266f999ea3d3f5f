"""The terminal of the person who runs a command: one console for everything, and where log lines go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

if TYPE_CHECKING:
    from rollout.records import Trajectory

OUR_ROOMS = ("cluster", "learner", "models", "reward", "rollout", "samplers")
PLAIN_WIDTH = 140
"""Columns of tables that go to a file or a pipe."""
_EARLY, _LATE = (255, 214, 102), (94, 129, 255)
"""Colours of the first and the last denoising step."""


@cache
def console(*, stderr: bool = False) -> Console:
    """The console of this process; live displays, tables and log lines share it, so that they do not overwrite."""
    shared = Console(stderr=stderr, soft_wrap=False, highlight=False)
    if not shared.is_terminal:
        shared.width = PLAIN_WIDTH
    return shared


def printed(show: Callable[[Console], None]) -> str:
    """What a function prints, as plain text."""
    page = Console(file=StringIO(), width=PLAIN_WIDTH, highlight=False, no_color=True)
    show(page)
    file = page.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def log_to_terminal(level: int) -> None:
    """Show log lines of our own code from `level` on, and warnings of everything else, above any live display."""
    root = logging.getLogger()
    for shown in [handler for handler in root.handlers if isinstance(handler, RichHandler)]:
        root.removeHandler(shown)
    handler = RichHandler(
        level=level, console=console(stderr=True), show_path=False, show_time=level <= logging.INFO, markup=False
    )
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in OUR_ROOMS)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))


def show_error(text: str) -> None:
    """An error as a person reads it: the word in red, the text as it is."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


def denoising_order(trajectory: Trajectory, pieces: Sequence[str]) -> Text:
    """An answer with each token in the colour of its step: yellow was committed first, blue last."""
    text = Text()
    for piece, step in zip(pieces, trajectory.step_map, strict=False):
        text.append(piece, style=step_color(int(step), int(trajectory.num_steps)))
    return text


def step_color(step: int, num_steps: int) -> str:
    """Style of what was committed at a step of so many."""
    share = min(step / max(num_steps - 1, 1), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_EARLY, _LATE, strict=True))
    return f"rgb({red},{green},{blue})"
