"""Table and picture of `unmask bench objectives`: means over seeds with 95 % intervals of Student's t.

Three seeds make wide intervals; differences are paired by seed, all arms having seen the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantile of Student's t by number of values (degrees of freedom + 1)."""
Row = Mapping[str, Any]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval; nan of one value."""
    if len(values) < 2:
        return mean(values), float("nan")
    quantile = T_95[min(len(values), max(T_95))]
    return mean(values), quantile * stdev(values) / len(values) ** 0.5


def at_budget(row: Row, order: str) -> float:
    """Accuracy at the end: after the first update that reached the budget."""
    return float(row["curve"][-1][order])


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line an arm, in the order in which they were run."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = [
        "| method | lr | seeds | updates | answers | accuracy by confidence | left to right | gain over the start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        cells = [_spread([at_budget(row, order) for row in own]) for order in ("confidence", "ar")]
        gains = _spread([at_budget(row, "confidence") - row["curve"][0]["confidence"] for row in own], sign="+")
        updates, answers = (round(mean(row[name] for row in own)) for name in ("updates", "answers"))
        rate = ", ".join(f"{lr:g}" for lr in sorted({row["settings"]["lr"] for row in own}))
        lines.append(f"| {arm} | {rate} | {len(own)} | {updates} | {answers} | {cells[0]} | {cells[1]} | {gains} |")
    if rows:
        start = rows[0]["curve"][0]
        settings = rows[0]["settings"]
        lines.append(
            f"\nStart: {100 * start['confidence']:.1f} by confidence, {100 * start['ar']:.1f} left to right. Budget "
            f"{settings['budget']} forwards, {settings['prompts']} x {settings['samples']} answers an update, "
            f"{settings['eval_rows']} test rows; % of right answers, mean and 95 % interval."
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    centre, half = (100 * value for value in interval(values))
    return f"{centre:{sign}.1f}" if np.isnan(half) else f"{centre:{sign}.1f} ± {half:.1f}"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Accuracy by confidence over forwards, a line an arm, the mean over seeds at equal shares of the budget."""
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = Figure(figsize=(9, 4.6), dpi=150)
    axes = figure.add_subplot()
    budget = rows[0]["settings"]["budget"]
    grid = np.linspace(0, budget, rows[0]["settings"]["eval_points"] + 1)
    for index, arm in enumerate(arms):
        curves = [
            np.interp(grid, [p["forwards"] for p in row["curve"]], [p["confidence"] for p in row["curve"]])
            for row in rows
            if row["arm"] == arm
        ]
        centre = 100 * np.mean(curves, axis=0)
        color = f"C{index % 10}"
        axes.plot(grid / 1000, centre, label=arm, color=color, linestyle="-" if index < 10 else "--", marker="o", ms=3)
        axes.vlines(
            grid[-1] / 1000 * (1 + 0.008 * (index + 1)),
            100 * min(curve[-1] for curve in curves),
            100 * max(curve[-1] for curve in curves),
            color=color,
        )
    axes.set_xlabel("thousand forwards, gradients included")
    axes.set_ylabel("right answers, % (greedy, by confidence)")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
