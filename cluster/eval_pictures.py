"""Pictures of an evaluation: what quality costs, and what further answers bring.

Drawn with matplotlib on in-memory figures. One column of panels a task; a sampler has one colour and one sign in all of
them. Bands and bars are 95 % intervals over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from cluster.eval_rows import Arm
from cluster.pictures import save

_PANEL = (4.2, 3.6)
_LETTER, _SIGN = 0.085, 0.55
"""Width of a letter and of a sign in the legend."""
_LEGEND_LINE = 0.24
_INK = "#24292f"
_GRID = "#d0d7de"
_SIGNS = "osD^vP*Xh<>dp8"
_COLORS = colormaps["tab10"]


def draw(arms: Sequence[Arm], folder: Path) -> list[Path]:
    """Write `quality.png`, and `pass_at_k.png` where there are several answers a row; the files written."""
    pictures = {"quality.png": quality_against_forwards(arms)}
    if all(arm.largest_k() > 1 for arm in arms):
        pictures["pass_at_k.png"] = pass_against_k(arms)
    for name, figure in pictures.items():
        save(figure, folder / name, dpi=120)
    return [folder / name for name in pictures]


def quality_against_forwards(arms: Sequence[Arm]) -> Figure:
    """pass@1 over forwards per answer; a line joins the samplers that no other one beats at no more forwards."""
    figure, panels = _panels(arms, rows=1)
    for axes, (task, own) in zip(panels[0], _by_task(arms).items(), strict=True):
        points = []
        for arm in own:
            value, (low, high) = arm.pass_at(1)
            color, sign = _look(arms, arm)
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(
                arm.forwards_per_answer, value, yerr=error, fmt=sign, color=color, label=arm.label, capsize=2, alpha=0.9
            )
            points.append((arm.forwards_per_answer, value))
        front = frontier(points)
        axes.plot(*zip(*front, strict=True), color=_INK, linewidth=0.9, linestyle="--", zorder=0)
        _dress(axes, title=task, x="forwards per answer", y="pass@1")
    _legend(figure, panels[0][0], arms)
    return figure


def pass_against_k(arms: Sequence[Arm]) -> Figure:
    """pass@k over k, and below over the forwards that k answers take: equal places across are equal forwards."""
    figure, panels = _panels(arms, rows=2)
    for column, (task, own) in enumerate(_by_task(arms).items()):
        for arm in own:
            sizes = whole_powers(arm.largest_k())
            values, intervals = zip(*(arm.pass_at(k) for k in sizes), strict=True)
            low, high = zip(*intervals, strict=True)
            color, sign = _look(arms, arm)
            cost = [k * arm.forwards_per_answer for k in sizes]
            for axes, x in ((panels[0][column], sizes), (panels[1][column], cost)):
                axes.plot(x, values, color=color, marker=sign, markersize=4, linewidth=1.4, label=arm.label)
                axes.fill_between(x, low, high, color=color, alpha=0.08, linewidth=0)
        _dress(panels[0][column], title=task, x="k answers", y="pass@k", base=2)
        _dress(panels[1][column], title="", x="forwards for k answers", y="pass@k", base=10)
    _legend(figure, panels[0][0], arms)
    return figure


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (forwards, quality) points that are better than every cheaper one, by forwards."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def whole_powers(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`."""
    powers = [2**n for n in range(largest.bit_length())]
    return powers if powers[-1] == largest else [*powers, largest]


def _panels(arms: Sequence[Arm], *, rows: int) -> tuple[Figure, list[list[Axes]]]:
    columns = len(_by_task(arms))
    legend = _LEGEND_LINE * (1 + -(-len(_labels(arms)) // _legend_columns(arms)))
    figure = Figure(figsize=(_PANEL[0] * max(columns, 2), _PANEL[1] * rows + legend), layout="constrained")
    grid = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    return figure, [list(row) for row in grid]


def _by_task(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    tasks: dict[str, list[Arm]] = {}
    for arm in arms:
        tasks.setdefault(arm.task, []).append(arm)
    return tasks


def _labels(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(arm.label for arm in arms))


def _look(arms: Sequence[Arm], arm: Arm) -> tuple[str, str]:
    number = _labels(arms).index(arm.label)
    return _COLORS(number % 10), _SIGNS[number % len(_SIGNS)]  # type: ignore[return-value]


def _dress(axes: Axes, *, title: str, x: str, y: str, base: int = 0) -> None:
    if title:
        axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    if base:
        axes.set_xscale("log", base=base)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_GRID, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, arms: Sequence[Arm]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(arms), fontsize=8.5, frameon=False)


def _legend_columns(arms: Sequence[Arm]) -> int:
    """As many as fit below the panels."""
    width = _PANEL[0] * max(len(_by_task(arms)), 2)
    longest = max(map(len, _labels(arms)))
    return max(1, min(len(_labels(arms)), int(width / (_SIGN + _LETTER * longest))))
