"""The order in which an answer was denoised, token by token: on a terminal, and as a picture.

A cell a slot that a step has committed, up to and including the first end token: the token, the step that committed it,
and its probability under the law that it was drawn from (greedy: at temperature 1).

    token  3    +    4    end
    step   2    0    2    3
    prob   .98  .71  .64  1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from cluster.terminal import step_color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cluster.generate import PromptRow
    from cluster.pictures import Strip
    from models import Denoiser
    from rollout.records import Trajectory

END = "end"
MAX_STRIPS = 24
"""Answers in one picture."""
_SIGNS = {"\n": "↵", "\t": "→", "\r": "", " ": "␣"}
_LABELS = ("token  ", "step   ", "prob   ")


def pieces_of(denoiser: Denoiser, trajectory: Trajectory) -> list[str]:
    """Text of each committed slot up to the first end token, which is `END`."""
    tokens = trajectory.tokens[: trajectory.answer_length].tolist()
    tokenizer = denoiser.tokenizer
    texts = [str(token) if tokenizer is None else str(tokenizer.decode([token])) for token in tokens]
    return [*texts, *([END] if has_end(trajectory) else [])]


def has_end(trajectory: Trajectory) -> bool:
    """Whether a step has committed the first end token."""
    end = trajectory.answer_length
    return end < len(trajectory.tokens) and bool(trajectory.committed[end])


def order_grid(trajectory: Trajectory, pieces: Sequence[str], *, width: int) -> Text:
    """Three lines for as many cells as fit into `width` columns, and three more for the rest."""
    rows = [_shown(piece) for piece in pieces]
    steps = trajectory.step_map[: len(pieces)].tolist()
    shares = probabilities(trajectory, len(pieces))
    columns = [(piece, str(step), shown_share(share)) for piece, step, share in zip(rows, steps, shares, strict=True)]
    grid = Text()
    for line in _lines(columns, width - len(_LABELS[0])):
        for row, name in enumerate(_LABELS):
            grid.append(name, style="dim")
            for at in line:
                cell = columns[at]
                style = step_color(steps[at], int(trajectory.num_steps)) if row < 2 else "dim"
                grid.append(cell[row].ljust(_cell_width(cell)), style=style)
            grid.append("\n")
    grid.rstrip()
    return grid


def order_picture(
    denoiser: Denoiser, rows: Sequence[PromptRow], answers: Sequence[Sequence[Trajectory]]
) -> tuple[Figure, int]:
    """The same as a figure, for the first `MAX_STRIPS` answers, and how many are left out."""
    from cluster.pictures import order_strips

    pairs = [(row, one) for row, own in zip(rows, answers, strict=True) for one in own]
    strips = [strip_of(one, pieces_of(denoiser, one), prompt=_prompt(row)) for row, one in pairs[:MAX_STRIPS]]
    return order_strips(strips), len(pairs) - len(strips)


def strip_of(trajectory: Trajectory, pieces: Sequence[str], *, prompt: str) -> Strip:
    """One answer for `pictures.order_strips`."""
    from cluster.pictures import Strip

    number = len(pieces)
    effort = f"{trajectory.num_steps} steps, {trajectory.num_forwards} forwards"
    return Strip(
        step=0,
        prompt=prompt,
        pieces=tuple(pieces),
        step_map=tuple(trajectory.step_map[:number].tolist()),
        num_steps=int(trajectory.num_steps),
        probabilities=tuple(probabilities(trajectory, number)),
        label=f"{trajectory.prompt_id}, sample {trajectory.sample_index}, {trajectory.sampler}: {effort}",
    )


def save_picture(figure: Figure, file: Path) -> None:
    """Write a PNG."""
    from cluster.pictures import save

    save(figure, file)


def probabilities(trajectory: Trajectory, number: int) -> list[float]:
    """Of the first `number` tokens."""
    shares: list[float] = np.exp(trajectory.logprobs[:number].astype(np.float64)).tolist()
    return shares


def shown_share(share: float) -> str:
    """`.93`, `<.01`, `1`."""
    if share >= 0.995:
        return "1"
    return f"{share:.2f}".removeprefix("0") if share >= 0.005 else "<.01"


def _shown(piece: str) -> str:
    text = "".join(_SIGNS.get(letter, letter if letter.isprintable() else "□") for letter in piece)
    return text or "∅"


def _cell_width(cell: Sequence[str]) -> int:
    return max(Text(part).cell_len for part in cell) + 1


def _lines(columns: Sequence[Sequence[str]], room: int) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    used = 0
    for at, cell in enumerate(columns):
        width = _cell_width(cell)
        if lines[-1] and used + width > room:
            lines.append([])
            used = 0
        lines[-1].append(at)
        used += width
    return lines


def _prompt(row: PromptRow) -> str:
    return row.prompt.text or "\n".join(f"{turn['role']}: {turn['content']}" for turn in row.prompt.messages or ())
