"""What `unmask compare` prints: samplers side by side, with all seeds together, and against one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import nearest
from cluster.eval_rows import Arm, Versus, versus
from cluster.statistics import Interval

NOTE = (
    "95 % intervals: bootstrap over rows, all seeds together; +- is the standard deviation over seeds. "
    "Equal forwards: mean over 16 budgets from one answer of the dearer to all answers of the cheaper sampler."
)


def show_arms(console: Console, arms: Sequence[Arm], sizes: Sequence[int], *, baseline: str | None = None) -> None:
    """A line for each task and sampler, and one for each sampler against the baseline."""
    check_sizes(arms, sizes)
    table = Table(*_HEAD, *(f"pass@{k}" for k in sizes), *_COSTS, box=None, pad_edge=False)
    for arm in arms:
        table.add_row(*_line(arm, sizes))
    console.print(table)
    found = against(arms, baseline)
    if found:
        differences = Table(*_DIFFERENCES, box=None, pad_edge=False)
        for one in found:
            differences.add_row(*_difference(one))
        console.print(differences)
    console.print(Text(NOTE, style="dim"))


def markdown_tables(arms: Sequence[Arm], sizes: Sequence[int], *, baseline: str | None = None) -> str:
    """The same for a page."""
    check_sizes(arms, sizes)
    parts = [_markdown([*_HEAD, *(f"pass@{k}" for k in sizes), *_COSTS], [_line(arm, sizes) for arm in arms])]
    found = against(arms, baseline)
    if found:
        parts.append(_markdown(_DIFFERENCES, [_difference(one) for one in found]))
    return "\n\n".join(parts)


def against(arms: Sequence[Arm], baseline: str | None) -> list[Versus]:
    """Every arm against the baseline of its task: the arm of that label, or the first."""
    found = []
    labels = [arm.label for arm in arms]
    if baseline is not None and baseline not in labels:
        known = ", ".join(dict.fromkeys(labels))
        raise ValueError(
            f"--baseline {baseline!r}: no result has this name{nearest(baseline, labels)}; there are: {known}"
        )
    for task in dict.fromkeys(arm.task for arm in arms):
        own = [arm for arm in arms if arm.task == task]
        first = next((arm for arm in own if arm.label == baseline), own[0])
        found += [versus(arm, first) for arm in own if arm is not first]
    return found


def check_sizes(arms: Sequence[Arm], sizes: Sequence[int]) -> None:
    """Refuse a k that no row can estimate."""
    least = min(arm.largest_k() for arm in arms)
    for k in sizes:
        if not 1 <= k <= least:
            raise ValueError(
                f"pass@{k} cannot be estimated: with all seeds together some row has {least} graded answers"
            )


_HEAD = ("task", "sampler", "rows", "answers/row")
_COSTS = ("forwards/answer", "tokens/forward")
_DIFFERENCES = ("task", "difference", "rows", "pass@1", "pass@k at equal forwards", "forwards/prompt")


def _line(arm: Arm, sizes: Sequence[int]) -> list[str]:
    rows = arm.rows
    per_row = rows.answers.sum() / max(1, len(rows.ids))
    forwards, (low, high) = arm.forwards()
    return [
        arm.task,
        arm.label,
        str(int((rows.graded > 0).sum())),
        f"{per_row:g}",
        *(_share(arm, k) for k in sizes),
        f"{forwards:.2f} ({low:.2f} to {high:.2f})",
        f"{arm.tokens_per_forward():.2f}",
    ]


def _share(arm: Arm, k: int) -> str:
    value, (low, high) = arm.pass_at(k)
    if math.isnan(value):
        return "-"
    per_seed = [share for share in arm.over_seeds(k) if not math.isnan(share)]
    spread = f" +-{100 * float(np.std(per_seed, ddof=1)):.1f}" if len(per_seed) > 1 else ""
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f}){spread}"


def _difference(one: Versus) -> list[str]:
    return [
        one.arm.task,
        f"{one.arm.label} - {one.baseline.label}",
        str(one.num_rows),
        _points(*one.at_one),
        _points(*one.at_equal_forwards),
        "-" if math.isnan(one.budgets[0]) else f"{one.budgets[0]:.0f} to {one.budgets[1]:.0f}",
    ]


def _points(value: float, interval: Interval) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:+.1f} ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *(map(str, line) for line in lines))
    )
