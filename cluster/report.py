"""What the commands print: answers, evaluations, verdicts and the end of a run, for a person to read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.evaluate import Comparison, EvalResult, compare
from cluster.generate import PromptRow
from cluster.order_view import order_grid, pieces_of
from cluster.statistics import Interval
from cluster.terminal import denoising_order
from rollout.records import Trajectory

if TYPE_CHECKING:
    from cluster.config import TrainRecipe
    from cluster.sft_run import SftSummary
    from cluster.train_run import TrainSummary
    from models import Denoiser


def show_answers(
    console: Console,
    denoiser: Denoiser,
    rows: Sequence[PromptRow],
    answers: Sequence[Sequence[Trajectory]],
    *,
    show_order: bool = False,
) -> None:
    """Each prompt with its answers; on a terminal the colour of a token says when it was committed, and with
    `show_order` a grid says it in numbers."""
    for row, trajectories in zip(rows, answers, strict=True):
        prompt = row.prompt.text or "\n".join(f"{m['role']}: {m['content']}" for m in row.prompt.messages or ())
        console.print(Text(f"{row.prompt.id}  ", style="dim").append(prompt, style="bold"), soft_wrap=True)
        for trajectory in trajectories:
            console.print(Text("  ").append(_answer(console, denoiser, trajectory)), soft_wrap=True)
            console.print(Text(f"  {_effort(trajectory)}", style="dim"))
            if show_order:
                console.print(order_grid(trajectory, pieces_of(denoiser, trajectory), width=console.width - 1))


def show_evaluations(console: Console, results: Sequence[tuple[str, EvalResult]]) -> None:
    """One line for each task and sampler, and one for each sampler against the first."""
    sizes = sorted({size for _, result in results for size in result.pass_at} - {1})
    votes = any(len(group.trajectories) > 1 for _, result in results for group in result.samples)
    names = (*(f"pass@{size}" for size in sizes), *(["majority"] if votes else []))
    table = Table("task", "sampler", "rows", "pass@1", *names, box=None, pad_edge=False)
    for column in ("forwards/answer", "tokens/forward", "length", "capped", "failed"):
        table.add_column(column, justify="right")
    for sampler, result in results:
        table.add_row(
            result.task,
            sampler,
            str(result.num_rows),
            _percent(result.accuracy, (result.low, result.high)),
            *(_percent(result.pass_at[size], result.pass_at_interval[size]) for size in sizes),
            *([_percent(result.majority, result.majority_interval)] if votes else []),
            _number(result.forwards_per_answer, result.forwards_interval),
            _number(result.tokens_per_forward, result.tokens_interval),
            f"{result.answer_length:.1f}",
            f"{result.capped_rate:.0%}" if not math.isnan(result.capped_rate) else "-",
            Text(str(result.num_failed), style="red" if result.num_failed else "dim"),
        )
    console.print(table)
    _show_comparisons(console, compare(results), [1, *sizes])
    console.print(Text("95 % intervals: Wilson for pass@1, bootstrap over rows for the others", style="dim"))


def _show_comparisons(console: Console, comparisons: Sequence[Comparison], sizes: Sequence[int]) -> None:
    """Differences in points; green or red where the interval leaves out 0."""
    if not comparisons:
        return
    table = Table("task", "difference", "rows", *(f"pass@{size}" for size in sizes), box=None, pad_edge=False)
    table.add_column("forwards/answer", justify="right")
    for found in comparisons:
        table.add_row(
            found.task,
            f"{found.sampler} - {found.baseline}",
            str(found.num_rows),
            *(_points(found.pass_at[size], found.pass_at_interval[size]) for size in sizes),
            _number(found.forwards_per_answer, found.forwards_interval),
        )
    console.print(table)


def show_verdicts(console: Console, verdicts: Iterable[Mapping[str, Any]]) -> None:
    """How many of each verdict, their mean value, and how fast they were found."""
    rows = list(verdicts)
    counts = Counter(row["verdict"] for row in rows)
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    values = [row["value"] for row in rows if row["value"] is not None]
    mean = f", mean value {sum(values) / len(values):.3f}" if values else ""
    seconds = sum(row["seconds"] for row in rows)
    speed = f", {len(rows) / seconds:.0f} a second" if seconds > 0 else ""
    console.print(Text(f"{len(rows)} completions: {shown}{mean}{speed}"))


def show_start(console: Console, recipe: TrainRecipe) -> None:
    """What is about to run; starting the actors takes a while."""
    tasks = ", ".join(config.name for config in recipe.tasks)
    actors = (
        f"starting {recipe.learner.engine.num_ranks} learner, {recipe.rollout.num_workers} rollout and "
        f"{recipe.reward.num_workers} grader actors"
    )
    where = actors if recipe.cluster.mode == "ray" else "everything in this process"
    console.print(
        Text(recipe.name, style="bold").append(
            f": {recipe.steps} steps of {recipe.prompts_per_step} prompts x {recipe.rollout.num_samples} answers, "
            f"{tasks}, {recipe.model.path}; {where}",
            style="not bold",
        ),
        soft_wrap=True,
    )


def show_train_summary(console: Console, summary: TrainSummary) -> None:
    """First and last evaluation of a run, and where everything lies."""
    table = Table("held-out task", "before", f"after {summary.steps_done} steps", "change", box=None, pad_edge=False)
    for name in summary.last:
        if not name.endswith("/accuracy"):
            continue
        change = 100 * (summary.last[name] - summary.first.get(name, math.nan))
        style = "green" if change > 0 else "red" if change < 0 else "dim"
        task = name.removeprefix("eval.").removesuffix("/accuracy")
        table.add_row(task, *(_accuracy(m, name) for m in (summary.first, summary.last)), Text(f"{change:+.1f}", style))
    console.print(table)
    _show_places(
        console,
        {
            "run": str(summary.run_dir),
            "checkpoint": str(summary.checkpoint / "model") if summary.checkpoint else "none",
            "mlflow": f"run {summary.run_id} in {summary.uri}",
            "look": f"unmask ui --runs-dir {summary.run_dir.parent}",
        },
    )


def show_sft_summary(console: Console, summary: SftSummary) -> None:
    """First, best and last evaluation of a supervised run, and where everything lies."""
    best = f"best, step {summary.best_step}"
    table = Table("evaluation", "before", best, f"last, step {summary.steps}", box=None, pad_edge=False)
    for name in summary.last:
        if name != "step":
            table.add_row(name, *(f"{values[name]:.4g}" for values in (summary.first, summary.best, summary.last)))
    console.print(table)
    _show_places(console, {"run": summary.run_dir, "checkpoint": summary.checkpoint})


def _accuracy(metrics: Mapping[str, float], name: str) -> str:
    interval = (metrics.get(f"{name}_low", math.nan), metrics.get(f"{name}_high", math.nan))
    return _percent(metrics.get(name, math.nan), interval)


def _show_places(console: Console, places: Mapping[str, str]) -> None:
    for name, place in places.items():
        console.print(Text(f"{name:12}", style="dim").append(place, style="default"), soft_wrap=True)


def _answer(console: Console, denoiser: Denoiser, trajectory: Trajectory) -> Text:
    tokenizer = denoiser.tokenizer
    if not console.is_terminal or tokenizer is None:
        return Text(trajectory.text)
    pieces = [str(tokenizer.decode([int(token)])) for token in trajectory.tokens[: trajectory.answer_length]]
    # Characters of several tokens (UTF-8 in bytes) have no piece of their own; then the plain text is shown.
    return denoising_order(trajectory, pieces) if "".join(pieces) == trajectory.text else Text(trajectory.text)


def _effort(trajectory: Trajectory) -> str:
    ended = "" if trajectory.finish_reason == "eos" else ", no end token"
    return f"{trajectory.answer_length} tokens in {trajectory.num_forwards} forwards{ended}, {trajectory.sampler}"


def _percent(share: float, interval: Interval) -> str:
    if math.isnan(share):
        return "-"
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _points(difference: float, interval: Interval) -> Text:
    if math.isnan(difference):
        return Text("-")
    style = "green" if interval[0] > 0 else "red" if interval[1] < 0 else ""
    return Text(f"{100 * difference:+.1f} ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})", style=style)


def _number(value: float, interval: Interval) -> str:
    return "-" if math.isnan(value) else f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
