"""Pictures of a run: the reward over training, and the order in which answers were denoised.

Drawn with matplotlib on in-memory figures (no window, no global state), so a background thread may draw them. Lengths
are inches. The order picture ("strip") shows every answer token in a cell whose colour is the step that committed it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

_WIDTH = 9.0
_MARGIN = 0.25
_COLUMNS = 48
"""Characters in a line of a strip."""
_MAX_CELL = 0.33
_CELL_HEIGHT = 0.34
_NUMBER_HEIGHT = 0.17
_TITLE_HEIGHT = 0.34
_PROMPT_HEIGHT = 0.2
_GAP = 0.2
_LEGEND_HEIGHT = 0.55
_CURVE_HEIGHT = 3.4
_MAX_PROMPT_LINES = 4
_ORDER_COLORS = colormaps["viridis"]
_TASK_COLORS = ("#1f6feb", "#d1495b", "#2a9d4b", "#8250df", "#bf8700")
_INK = "#24292f"
_GREY = "#6e7781"
_MONO = FontProperties(family="DejaVu Sans Mono")


@dataclass(frozen=True, slots=True)
class Strip:
    """One answer and the step that committed each of its tokens."""

    step: int
    """Training step at which the answer was drawn."""
    prompt: str
    pieces: tuple[str, ...]
    """One string per answer token."""
    step_map: tuple[int, ...]
    num_steps: int
    prompt_id: str = ""
    reward: float | None = None
    label: str = ""
    """What the strip shows; made of step and reward if empty."""
    probabilities: tuple[float, ...] = ()
    """One a piece, shown below the steps; none if empty."""

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.step_map):
            raise ValueError(f"a strip needs one step per piece: {len(self.pieces)} pieces, {len(self.step_map)} steps")
        if self.probabilities and len(self.probabilities) != len(self.pieces):
            raise ValueError(
                f"a strip needs one probability per piece: {len(self.pieces)} pieces, {len(self.probabilities)} of them"
            )

    @classmethod
    def load(cls, path: Path) -> Strip:
        """Read a strip that the tracker saved under `order/`."""
        record = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            step=record["step"],
            prompt=record["prompt"],
            pieces=tuple(record["pieces"]),
            step_map=tuple(record["step_map"]),
            num_steps=record["num_steps"],
            prompt_id=record["prompt_id"],
            reward=record["reward"],
        )

    @property
    def title(self) -> str:
        """The label, or the training step and the reward."""
        if self.label:
            return self.label
        reward = "" if self.reward is None else f", reward {self.reward:g}"
        return f"training step {self.step}{reward}"


@dataclass(frozen=True, slots=True)
class RunCurve:
    """Training reward and evaluation accuracies of one run."""

    label: str
    reward: Sequence[tuple[int, float]]
    """(step, mean reward of the answers drawn in that step)"""
    accuracy: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """(step, accuracy on held-out rows) of each task"""


def reward_curve(runs: Sequence[RunCurve], *, title: str = "") -> Figure:
    """Training reward as lines and evaluations as points; several runs are thin lines with their mean."""
    figure = Figure(figsize=(_WIDTH, _CURVE_HEIGHT), layout="constrained")
    _draw_curve(figure.subplots(), runs, title)
    return figure


def order_strips(strips: Sequence[Strip]) -> Figure:
    """Strips under each other on one colour scale, with its legend."""
    figure = Figure(figsize=(_WIDTH, _strips_height(strips)))
    _draw_strips(figure, strips, bottom_share=0.0, height_share=1.0)
    return figure


def run_summary(runs: Sequence[RunCurve], strips: Sequence[Strip], *, title: str = "") -> Figure:
    """The reward curve above the strips; either may be empty."""
    if not strips:
        return reward_curve(runs, title=title)
    if not runs:
        return order_strips(strips)
    strips_height = _strips_height(strips)
    height = strips_height + _CURVE_HEIGHT
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0.075, (strips_height + 0.6) / height, 0.9, (_CURVE_HEIGHT - 1.0) / height))
    _draw_curve(axes, runs, title)
    _draw_strips(figure, strips, bottom_share=0.0, height_share=strips_height / height)
    return figure


def load_strips(run_dir: Path) -> list[Strip]:
    """The orders saved in a run folder, by training step."""
    return [Strip.load(path) for path in sorted((Path(run_dir) / "order").glob("step_*.json"))]


def save(figure: Figure, path: Path, *, dpi: int = 150) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor="white")


def _draw_curve(axes: Axes, runs: Sequence[RunCurve], title: str) -> None:
    for run in runs:
        steps, values = _columns(run.reward)
        axes.plot(steps, values, color=_GREY, linewidth=0.8, alpha=0.45)
    steps, values = _mean_over_runs([run.reward for run in runs])
    axes.plot(steps, _smooth(values), color=_INK, linewidth=2.0, label=_with_count("training reward, smoothed", runs))
    tasks = sorted({task for run in runs for task in run.accuracy})
    for number, task in enumerate(tasks):
        _draw_accuracy(axes, runs, task, _TASK_COLORS[number % len(_TASK_COLORS)])
    axes.set_xlabel("training step", color=_INK)
    axes.set_ylabel("reward, accuracy", color=_INK)
    axes.set_ylim(0, _top_of_scale(runs))
    axes.margins(x=0.02)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize=9, framealpha=0.85, edgecolor="#d0d7de")
    if title:
        axes.set_title(title, loc="left", color=_INK, fontsize=12)


def _top_of_scale(runs: Sequence[RunCurve]) -> float:
    """1, or the next tenth above the highest value where that leaves more than half of the picture empty."""
    series = [points for run in runs for points in (run.reward, *run.accuracy.values())]
    highest = max((value for points in series for _, value in points), default=1.0)
    return 1.0 if highest > 0.5 else max(0.1, float(np.ceil(highest * 10 + 0.5) / 10))


def _draw_accuracy(axes: Axes, runs: Sequence[RunCurve], task: str, color: str) -> None:
    """Points of each run, their mean as a line; the legend says where the mean begins and ends."""
    points = [run.accuracy[task] for run in runs if task in run.accuracy]
    if len(points) > 1:
        for of_run in points:
            axes.plot(*_columns(of_run), color=color, marker="o", markersize=3.5, linewidth=0, alpha=0.4)
    steps, values = _mean_over_runs(points)
    change = f"{values[0]:.0%} → {values[-1]:.0%}" if len(values) > 1 else f"{values[0]:.0%}"
    label = f"{task}, held out: {change}"
    axes.plot(steps, values, color=color, marker="o", markersize=6, linewidth=1.6, label=label)


def _draw_strips(figure: Figure, strips: Sequence[Strip], *, bottom_share: float, height_share: float) -> None:
    """Draw in the band of the figure that the shares name, in inches from its top left corner."""
    height = _strips_height(strips)
    axes = figure.add_axes((0, bottom_share, 1, height_share), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.axis("off")
    last_step = max(strip.num_steps for strip in strips) - 1
    color_of = ScalarMappable(Normalize(0, max(last_step, 1)), _ORDER_COLORS)
    top, shown_prompt = 0.1, ""
    for strip in strips:
        if strip.prompt != shown_prompt:
            top = _draw_prompt(axes, strip.prompt, top)
            shown_prompt = strip.prompt
        top = _draw_strip(axes, strip, top, color_of)
    shows_shares = any(strip.probabilities for strip in strips)
    _draw_legend(figure, color_of, last_step, height_share / height, bottom_share, shows_shares=shows_shares)


def _draw_prompt(axes: Axes, prompt: str, top: float) -> float:
    for line in _prompt_lines(prompt):
        _text(axes, (_MARGIN, top + _PROMPT_HEIGHT / 2), line, size=9, color=_GREY, mono=True)
        top += _PROMPT_HEIGHT
    return top


def _draw_strip(axes: Axes, strip: Strip, top: float, color_of: ScalarMappable) -> float:
    _text(axes, (_MARGIN, top + _TITLE_HEIGHT * 0.6), strip.title, size=10, color=_INK, bold=True)
    top += _TITLE_HEIGHT
    width, shares = _cell_width(strip), iter(strip.probabilities)
    for line in _lines(strip):
        left = _MARGIN
        for text, step in line:
            cell = width * len(text)
            _draw_cell(axes, (left, top), cell, text, step, color_of)
            if (share := next(shares, None)) is not None:
                at = (left + cell / 2, top + _CELL_HEIGHT + _NUMBER_HEIGHT * 1.4)
                _text(axes, at, f"{share:.2f}".removeprefix("0"), size=5.5, color=_GREY, center=True)
            left += cell
        top += _line_height(strip)
    return top + _GAP


def _line_height(strip: Strip) -> float:
    return _CELL_HEIGHT + _NUMBER_HEIGHT * (2 if strip.probabilities else 1)


def _draw_cell(
    axes: Axes, corner: tuple[float, float], width: float, text: str, step: int, color_of: ScalarMappable
) -> None:
    left, top = corner
    color = color_of.to_rgba(np.array([step]))[0]
    axes.add_patch(Rectangle((left, top), width, _CELL_HEIGHT, facecolor=color, edgecolor="white", linewidth=1.0))
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = "white" if luminance < 0.55 else _INK
    size = min(13.0, 0.88 * 72 * width / (0.6 * len(text)))
    center = left + width / 2
    _text(axes, (center, top + _CELL_HEIGHT / 2), text, size=size, color=ink, mono=True, center=True)
    if width >= 0.15:
        number_top = top + _CELL_HEIGHT + _NUMBER_HEIGHT / 2
        _text(axes, (center, number_top), str(step), size=6.5, color=_GREY, center=True)


def _draw_legend(
    figure: Figure,
    color_of: ScalarMappable,
    last_step: int,
    share_of_inch: float,
    bottom_share: float,
    *,
    shows_shares: bool,
) -> None:
    box = (_MARGIN / _WIDTH, bottom_share + 0.3 * share_of_inch, 3.2 / _WIDTH, 0.14 * share_of_inch)
    bar = figure.colorbar(color_of, cax=figure.add_axes(box), orientation="horizontal")
    bar.set_ticks(sorted({0, last_step // 2, last_step}))
    bar.ax.tick_params(labelsize=8, colors=_GREY, length=2, pad=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    label = "denoising step that committed the token (number below it); blank cells are spaces"
    if shows_shares:
        label = "step that committed the token (first number below it), and its probability"
    x_label, y_label = (_MARGIN + 3.5) / _WIDTH, bottom_share + 0.37 * share_of_inch
    figure.text(x_label, y_label, label, fontsize=8.5, color=_GREY, va="center")


def _text(
    axes: Axes,
    at: tuple[float, float],
    text: str,
    *,
    size: float,
    color: str,
    mono: bool = False,
    bold: bool = False,
    center: bool = False,
) -> None:
    axes.text(
        *at,
        text,
        fontsize=size,
        color=color,
        va="center_baseline" if mono else "center",
        parse_math=False,
        ha="center" if center else "left",
        weight="bold" if bold else "normal",
        family=_MONO.get_family() if mono else None,
    )


def _lines(strip: Strip) -> list[list[tuple[str, int]]]:
    """Cells (text, step) by line; a line ends when it is full and after a token with a line break."""
    lines: list[list[tuple[str, int]]] = [[]]
    used = 0
    for piece, step in zip(strip.pieces, strip.step_map, strict=True):
        text = shown(piece)[:_COLUMNS]
        if used + len(text) > _COLUMNS:
            lines.append([])
            used = 0
        lines[-1].append((text, step))
        used += len(text)
        if "\n" in piece:
            lines.append([])
            used = 0
    return [line for line in lines if line] or [[]]


def _cell_width(strip: Strip) -> float:
    longest = max(sum(len(text) for text, _ in line) for line in _lines(strip))
    return min(_MAX_CELL, (_WIDTH - 2 * _MARGIN) / max(longest, 1))


def shown(piece: str) -> str:
    """A token as it stands in its cell: line breaks and tabs as signs, glyphs that the font lacks as boxes."""
    text = piece.replace("\n", "↵").replace("\t", "→").replace("\r", "") or "∅"
    return "".join(letter if _has_glyph(letter) else "□" for letter in text)


@cache
def _has_glyph(letter: str) -> bool:
    return letter.isprintable() and _font().get_char_index(ord(letter)) != 0


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(_MONO))


def _prompt_lines(prompt: str) -> list[str]:
    text = "".join(letter if letter == "\n" or _has_glyph(letter) else "□" for letter in prompt.strip())
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 110)]
    return lines if len(lines) <= _MAX_PROMPT_LINES else [*lines[: _MAX_PROMPT_LINES - 1], lines[-1][:100] + " ..."]


def _strips_height(strips: Sequence[Strip]) -> float:
    height, shown_prompt = 0.1 + _LEGEND_HEIGHT, ""
    for strip in strips:
        if strip.prompt != shown_prompt:
            height += _PROMPT_HEIGHT * len(_prompt_lines(strip.prompt))
            shown_prompt = strip.prompt
        height += _TITLE_HEIGHT + len(_lines(strip)) * _line_height(strip) + _GAP
    return height


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _mean_over_runs(series: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Mean at each step over the runs that have it."""
    by_step: dict[int, list[float]] = {}
    for points in series:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    return sorted(by_step), [float(np.mean(by_step[step])) for step in sorted(by_step)]


def _smooth(values: Sequence[float], *, window: int = 5) -> list[float]:
    """Centred mean over at most `window` neighbours."""
    half = window // 2
    return [float(np.mean(values[max(0, at - half) : at + half + 1])) for at in range(len(values))]


def _with_count(label: str, runs: Sequence[RunCurve]) -> str:
    return label if len(runs) == 1 else f"{label}, mean of {len(runs)} seeds"
